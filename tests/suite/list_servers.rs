// The claims about several servers over one store. The targets whose servers may share an engine run them once more with
// servers that do not.

suite!(
    servers:
    a_lease_and_its_staged_state_survive_a_crash,
    a_lease_may_wander_over_the_servers,
    a_lease_outlives_the_server_that_granted_it,
    a_waiter_hears_of_a_release_on_another_server,
    a_waiter_is_woken_by_the_report_of_a_change,
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

suite!(
    release:
    the_same_release_at_two_servers_commits_once,
    commit_and_rollback_at_the_same_time_end_the_lease_once,
    after_the_answer_every_server_shows_the_commit,
);

suite!(
    state:
    updates_at_the_same_time_leave_one_body,
    a_read_during_replacement_is_never_torn,
    staged_states_are_the_same_on_every_server,
);

suite!(metadata: a_namespace_keeps_what_a_change_does_not_name);

suite!(
    transactions:
    an_untouched_participant_may_expire,
    joining_races_with_the_release_of_the_first_holder,
    releases_of_one_transaction_race_to_one_decision,
    transfers_are_whole_whatever_expires,
    random_histories_agree_with_a_model,
);

suite!(
    acquire:
    clients_of_two_servers_never_hold_one_key_together,
    a_waiter_of_another_server_that_has_gone_gets_nothing,
    a_waiter_hears_of_a_release_on_another_server,
    one_of_ten_creators_succeeds,
    every_grant_raises_the_token_by_one,
);

suite!(contention: fifty_threads_at_two_servers_never_hold_a_key_together);

suite!(
    failover:
    an_update_survives_a_kill_at_handler_start,
    an_update_survives_a_kill_before_save,
    an_update_survives_a_kill_after_save,
    an_update_survives_a_crash_at_handler_start,
    an_update_survives_a_crash_before_save,
    an_update_survives_a_crash_after_save,
    an_update_survives_whichever_server_granted_its_lease,
    a_drain_under_a_handler_makes_it_run_again_elsewhere,
    a_removal_survives_the_loss_of_its_server,
);
