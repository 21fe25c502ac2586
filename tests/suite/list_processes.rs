// The claims about servers that hold wherever these run, for targets that start them as processes of their own.

suite!(
    servers:
    a_lease_and_its_staged_state_survive_a_crash,
    a_lease_may_wander_over_the_servers,
    a_waiter_hears_of_a_release_on_another_server,
    probes_say_whether_a_server_lives_and_serves,
);

suite!(
    multi:
    what_one_server_commits_the_other_shows,
    counters_at_several_servers_lose_no_increment,
    what_one_server_removes_is_gone_at_the_other,
    a_release_at_another_server_commits,
    a_rollback_at_another_server_drops_what_was_staged,
    a_lease_survives_the_crash_of_the_server_that_granted_it,
);

suite!(drain: a_draining_server_refuses_to_acquire_and_says_for_how_long);

suite!(
    contention:
    fifty_threads_take_turns_at_one_key,
    fifty_threads_at_two_servers_never_hold_a_key_together,
);

suite!(
    failover:
    an_update_survives_a_kill_at_handler_start,
    an_update_survives_a_kill_before_save,
    an_update_survives_a_kill_after_save,
    an_update_survives_a_kill_at_handler_start_behind_chaos,
    an_update_survives_a_kill_before_save_behind_chaos,
    an_update_survives_a_kill_after_save_behind_chaos,
    an_update_survives_a_crash_at_handler_start,
    an_update_survives_a_crash_before_save,
    an_update_survives_a_crash_after_save,
    an_update_survives_whichever_server_granted_its_lease,
    a_drain_under_a_handler_makes_it_run_again_elsewhere,
    a_removal_survives_the_loss_of_its_server,
    without_any_server_the_client_names_everyone_it_asked,
);

suite!(
    queue_servers:
    a_message_is_taken_at_one_server_and_finished_at_another,
    a_waiting_consumer_gets_what_another_server_takes_in,
    messages_survive_the_crash_of_the_server_that_delivered_them,
    consumers_move_on_when_their_server_crashes,
);
