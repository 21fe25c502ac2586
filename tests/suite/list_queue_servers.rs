// The claims about queues at several servers of one store. The targets whose servers may share an engine run them once
// more with servers that do not.

suite!(queue_finish:
    servers_of_one_store_share_a_queue,
    a_consumer_hears_of_what_other_servers_enqueue_and_give_back,
    messages_and_leases_survive_their_server,
);

suite!(queue_watchful:
    an_enqueue_makes_nobody_poll,
    a_lost_feed_is_made_up_for_by_polling,
);

suite!(
    queue_servers:
    a_message_is_taken_at_one_server_and_finished_at_another,
    a_waiting_consumer_gets_what_another_server_takes_in,
    messages_survive_the_crash_of_the_server_that_delivered_them,
    consumers_move_on_when_their_server_crashes,
);

extended!(queue_long of queue_long:
    a_thousand_messages_pass_from_server_to_server_once,
    a_crowd_at_three_servers_loses_nothing_and_gets_nothing_twice,
);
