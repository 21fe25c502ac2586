// Every claim about queues; included by each backend's test target, which defines `suite!`.

suite!(queue:
    a_message_goes_in_and_out_as_the_protocol_shows,
    enqueue_takes_any_multipart_type_and_no_other,
    a_malformed_enqueue_leaves_no_message,
    a_message_may_carry_nothing,
    payloads_of_any_size_and_content_come_back_whole,
    what_an_enqueue_does_not_say_has_a_default,
    attributes_come_back_as_they_were,
    a_description_without_attributes_is_short,
    requests_are_strict_where_it_matters,
    names_and_ids_have_one_form,
    the_correlation_id_of_the_enqueue_stays_with_the_message,
    an_empty_queue_is_told_in_time,
    a_dequeue_waits_until_a_message_comes_or_its_client_goes,
    nothing_is_delivered_to_a_client_that_has_gone,
    a_client_that_comes_again_from_the_same_port_is_another_client,
    a_delivery_that_breaks_off_comes_again_at_once,
    a_client_of_http_1_0_is_served_without_chunks,
    a_page_holds_what_is_there_up_to_its_size,
    a_page_that_has_begun_waits_a_moment_for_more,
    a_visibility_timeout_has_a_default_and_a_maximum,
    of_five_consumers_one_gets_the_message,
    messages_come_out_in_the_order_they_went_in,
    a_delayed_message_comes_when_it_is_due,
    more_consumers_than_the_limit_are_refused,
    stats_tell_of_a_queue_and_change_nothing,
    a_client_that_spins_is_answered_cheaply,
);

suite!(queue_streams:
    a_subscription_says_nothing_before_its_first_message,
    every_message_of_a_stream_is_here_before_the_next_one_exists,
    a_stream_outlives_its_waiting_time,
    a_stream_without_patience_ends_with_the_closing_line_when_nothing_is_left,
    a_stream_whose_client_has_gone_leases_nothing_more,
    two_subscribers_share_a_queue_that_was_full_before_they_came,
    a_subscriber_with_its_hands_full_leaves_the_rest_to_others,
    a_subscriber_that_reads_nothing_holds_nobody_up,
    a_drain_ends_streams_and_lets_holders_finish,
    a_watch_tells_of_every_change_of_the_head_and_changes_nothing,
    a_watch_ends_when_the_server_stops,
);

suite!(queue_finish:
    an_ack_removes_a_message_once,
    a_call_by_somebody_else_leaves_a_message_alone,
    a_stale_etag_matters_to_nack_and_extend_but_not_to_ack,
    extend_sets_the_end_of_the_lease_anew,
    a_late_ack_is_told_what_became_of_the_message,
    a_nack_counts_as_a_failure_unless_it_defers,
    a_nack_is_refused_for_what_it_cannot_mean,
    after_a_nack_the_old_lease_does_nothing,
    a_lapsed_lease_is_no_failure,
    a_message_that_failed_too_often_is_never_delivered_again,
    a_message_whose_time_is_over_is_gone,
    servers_of_one_store_share_a_queue,
    a_consumer_hears_of_what_other_servers_enqueue_and_give_back,
    messages_and_leases_survive_their_server,
    a_state_goes_along_with_its_message,
    the_lease_of_a_state_is_prolonged_with_its_message,
    a_message_whose_state_is_held_by_hand_is_skipped,
    a_damaged_message_holds_up_no_others,
    a_kill_in_the_middle_of_an_enqueue_leaves_no_message,
    a_message_decides_the_transaction_that_it_takes_part_in,
);

suite!(queue_client:
    messages_make_their_round_through_the_client,
    large_payloads_stream_through_the_client,
    the_state_of_a_message_survives_what_gives_it_back,
    every_consumer_gets_its_share,
    a_slow_handler_keeps_its_message_from_others,
    what_a_handler_does_not_settle_comes_again,
    what_a_consumer_leaves_behind_is_there_for_others_at_once,
    a_message_that_came_again_into_a_dying_stream_is_there_for_others,
    consumers_move_on_when_their_server_stops,
);

suite!(queue_watchful:
    polls_of_an_idle_queue_keep_their_distance,
    an_enqueue_makes_nobody_poll,
    a_lost_feed_is_made_up_for_by_polling,
    the_log_tells_the_story_of_a_message,
);

// With LOCKD_LQ_EXTENDED=1.
extended!(queue_long of queue_long:
    a_payload_of_64_mib_comes_back_whole,
    a_payload_streams_through_a_server_that_has_little_memory,
    a_watch_is_kept_alive,
    a_thousand_messages_pass_from_server_to_server_once,
    a_crowd_loses_nothing_and_gets_nothing_twice,
    a_crowd_at_three_servers_loses_nothing_and_gets_nothing_twice,
);
extended!(queue_watchful_long of queue_watchful: the_polling_interval_is_respected);

suite!(
    queue_servers:
    a_message_is_taken_at_one_server_and_finished_at_another,
    a_waiting_consumer_gets_what_another_server_takes_in,
    messages_survive_the_crash_of_the_server_that_delivered_them,
    consumers_move_on_when_their_server_crashes,
);
