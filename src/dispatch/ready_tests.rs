use uuid::Uuid;

use super::*;

fn id(number: u128) -> MessageId {
    MessageId::new(Uuid::from_u128(number))
}

fn set(ready_max: usize, hidden_max: usize) -> ReadySet {
    ReadySet::new(ReadyLimits {
        ready_max,
        hidden_max,
        changed_max: 3,
    })
}

/// A set that knows everything of an empty queue.
fn known(ready_max: usize, hidden_max: usize) -> ReadySet {
    let mut set = set(ready_max, hidden_max);
    set.begin_look();
    set.merge(&[], Some(Frontier::End), 0);
    set
}

fn found(numbers: impl IntoIterator<Item = u128>) -> Vec<(MessageId, Found)> {
    numbers.into_iter().map(|number| (id(number), Found::From(0))).collect()
}

#[test]
fn what_waits_longest_comes_first() {
    let mut set = known(10, 10);
    set.heard(id(1), 50, 100);
    set.heard(id(2), 20, 100);
    set.heard(id(3), 20, 100);
    assert_eq!(set.head(), Some(id(2)));
    assert_eq!(set.take(5), [id(2), id(3), id(1)]);
    assert_eq!(set.take(5), []);
}

#[test]
fn a_message_is_taken_once_until_it_is_known_what_came_of_it() {
    let mut set = known(10, 10);
    set.heard(id(1), 0, 100);
    assert_eq!(set.take(1), [id(1)]);
    // Neither news nor a look gives it to somebody else meanwhile.
    set.heard(id(1), 0, 100);
    set.begin_look();
    set.merge(&found([1]), None, 100);
    assert_eq!(set.ready_len(), 0);
    set.tried(id(1), None, 100);
    assert_eq!(set.take(1), [id(1)]);
    set.tried(id(1), Some(Found::From(500)), 100);
    assert_eq!((set.ready_len(), set.hidden_len()), (0, 1));
    assert_eq!(set.next_due(), Some(500));
    assert_eq!(set.promote(499), []);
    assert_eq!(set.promote(500), [id(1)]);
    assert_eq!(set.take(1), [id(1)]);
    set.tried(id(1), Some(Found::Gone), 500);
    assert!(!set.is_trying());
    assert_eq!((set.ready_len(), set.hidden_len()), (0, 0));
}

#[test]
fn what_is_removed_while_it_is_tried_does_not_come_back() {
    let mut set = known(10, 10);
    set.heard(id(1), 0, 100);
    set.take(1);
    set.gone(id(1));
    set.tried(id(1), None, 100);
    assert_eq!(set.ready_len(), 0);
    assert!(!set.is_trying());
}

#[test]
fn what_is_given_back_while_it_is_tried_counts() {
    let mut set = known(10, 10);
    set.heard(id(1), 0, 100);
    set.take(1);
    set.heard(id(1), 100, 100);
    set.tried(id(1), Some(Found::From(30_000)), 100);
    assert_eq!(set.ready_len(), 1);
}

#[test]
fn without_room_the_newest_ready_message_goes_and_is_beyond_the_frontier() {
    let mut set = known(2, 10);
    for number in [10, 11] {
        assert_eq!(set.heard(id(number), 0, 100), None);
    }
    assert_eq!(set.heard(id(12), 0, 100), Some(id(12)));
    assert_eq!(set.frontier(), Frontier::After(id(11)));
    // An older one has its room.
    assert_eq!(set.heard(id(5), 0, 100), Some(id(11)));
    assert_eq!(set.frontier(), Frontier::After(id(10)));
    // What is beyond is not taken in.
    assert_eq!(set.heard(id(13), 0, 100), None);
    assert_eq!(set.take(9), [id(5), id(10)]);
    // A scan finds it again.
    set.begin_look();
    set.merge(&found([11, 12, 13]), Some(Frontier::End), 100);
    assert_eq!(set.take(9), [id(11), id(12)]);
    assert_eq!(set.frontier(), Frontier::After(id(12)));
}

#[test]
fn without_room_the_latest_hidden_message_goes_and_is_looked_for_in_time() {
    let mut set = known(10, 2);
    set.heard(id(1), 1_000, 100);
    set.heard(id(2), 3_000, 100);
    assert_eq!(set.heard(id(3), 2_000, 100), Some(id(2)));
    set.promote(2_500);
    assert_eq!((set.ready_len(), set.frontier()), (2, Frontier::End));
    assert_eq!(set.next_due(), Some(3_000));
    set.promote(3_000);
    assert_eq!((set.frontier(), set.next_due()), (Frontier::Start, None));
    set.begin_look();
    set.merge(&found([2]), Some(Frontier::End), 3_000);
    assert_eq!(set.ready_len(), 3);
}

#[test]
fn what_is_enqueued_behind_the_back_of_a_scan_is_not_lost() {
    let mut set = set(10, 10);
    // Nothing is known, so this will be found by the scan.
    set.heard(id(7), 0, 100);
    assert_eq!(set.ready_len(), 0);
    set.begin_look();
    // The page goes up to 9 and was read before these came; the clock of their server is late, so 5 is in its range.
    set.heard(id(5), 0, 100);
    set.heard(id(12), 0, 100);
    set.merge(&found([7, 9]), Some(Frontier::After(id(9))), 100);
    assert_eq!(set.take(9), [id(5), id(7), id(9)]);
    set.begin_look();
    set.heard(id(13), 0, 100);
    set.merge(&found([12]), Some(Frontier::End), 100);
    assert_eq!(set.take(9), [id(12), id(13)]);
}

#[test]
fn news_is_better_than_what_a_look_saw_before_it() {
    let mut set = known(10, 10);
    set.heard(id(1), 30_000, 100);
    set.heard(id(2), 0, 100);
    set.begin_look();
    set.heard(id(1), 100, 100);
    set.gone(id(2));
    set.merge(&[(id(1), Found::From(30_000)), (id(2), Found::From(0))], None, 100);
    assert_eq!(set.take(9), [id(1)]);
    assert_eq!(set.hidden_len(), 0);
}

#[test]
fn a_look_is_better_than_what_was_known_before_it() {
    let mut set = known(10, 10);
    set.heard(id(1), 0, 100);
    set.heard(id(2), 30_000, 100);
    set.heard(id(3), 0, 100);
    set.begin_look();
    let seen = [
        (id(1), Found::From(30_000)),
        (id(2), Found::From(0)),
        (id(3), Found::Gone),
    ];
    set.merge(&seen, None, 100);
    assert_eq!(set.take(9), [id(2)]);
    assert_eq!(set.hidden_len(), 1);
}

#[test]
fn what_others_change_is_looked_at_but_not_while_it_is_tried() {
    let mut set = known(10, 10);
    set.heard(id(1), 0, 100);
    set.take(1);
    set.changed(id(1));
    assert!(!set.has_changes());
    set.changed(id(2));
    assert!(set.has_changes());
    assert_eq!(set.begin_look_at_changes(), [id(2)]);
    set.merge(&found([2]), None, 100);
    set.tried(id(1), Some(Found::From(30_000)), 100);
    assert!(set.has_changes());
    assert_eq!(set.begin_look_at_changes(), [id(1)]);
    set.abort_look(vec![id(1)]);
    assert!(set.has_changes());
}

#[test]
fn more_changes_than_are_kept_mean_that_everything_is_looked_at() {
    let mut set = known(10, 10);
    for number in 1..=4 {
        set.changed(id(number));
    }
    assert!(!set.has_changes());
    assert_eq!(set.frontier(), Frontier::Start);
    // And what is changed now will be seen by that.
    set.changed(id(9));
    assert!(!set.has_changes());
}
