use std::net::SocketAddr;

use parking_lot::Mutex;
use uuid::Uuid;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::dispatch::consumers::Wish;
use crate::dispatch::credit::PACE;
use crate::dispatch::one_queue::OLD_PAGES_MAX;
use crate::dispatch::scanner::Seen;
use crate::keys::{Namespace, QueueName};
use crate::store::StoreError;

/// A consumer's client. Those below 1000 have an address.
#[derive(Debug, PartialEq, Eq)]
struct Client(u16);

impl Parked for Client {
    fn peer(&self) -> Option<Peer> {
        (self.0 < 1000).then(|| SocketAddr::from(([127, 0, 0, 1], 1000 + self.0)).into())
    }
}

type Report = (QueueId, Option<StreamId>, Vec<(MessageId, Tried)>);

#[derive(Default)]
struct Reports(Mutex<Vec<Report>>);

impl TrialSink for Reports {
    fn tried(&self, queue: &QueueId, stream: Option<StreamId>, outcomes: Vec<(MessageId, Tried)>) {
        self.0.lock().push((queue.clone(), stream, outcomes));
    }
}

const FLOOR: Duration = Duration::from_secs(3);
const BEGINNING_MS: i64 = 1_767_261_600_000;

/// A desk with a clock that stands still, and everything that it has asked for.
struct Bench {
    desk: Desk<Client>,
    clock: Arc<ManualClock>,
    reports: Arc<Reports>,
    jobs: Vec<QueueJob<Client>>,
    scans: Vec<ScanTask>,
}

impl Bench {
    fn new(feed: bool) -> Self {
        let limits = DeskLimits {
            poll: PollLimits {
                floor: FLOOR,
                jitter: Duration::ZERO,
                resilient: Duration::from_secs(300),
                feed,
            },
            ready: ReadyLimits::default(),
            page: 4,
            queues_max: 3,
            trace: None,
        };
        let reports = Arc::new(Reports::default());
        let sink: Arc<dyn TrialSink> = reports.clone();
        Self {
            desk: Desk::new(limits, sink, crate::logging::off()),
            clock: ManualClock::at_wall_ms(BEGINNING_MS),
            reports,
            jobs: Vec::new(),
            scans: Vec::new(),
        }
    }

    /// A desk with a feed that knows everything of an empty queue.
    fn fresh() -> Self {
        let mut bench = Self::new(true);
        bench.ask(999, Patience::None);
        bench.page([], Frontier::End);
        assert_eq!(bench.told(), ["empty 999"]);
        bench
    }

    fn time(&self) -> Time {
        Time {
            now: self.clock.now(),
            wall_ms: self.clock.wall_ms(),
        }
    }

    fn with(&mut self, act: impl FnOnce(&mut Desk<Client>, Time, &mut Outbox<Client>)) {
        let mut out = Outbox::default();
        let time = self.time();
        act(&mut self.desk, time, &mut out);
        // Reports of trials that were dropped come back like from workers.
        let reports: Vec<_> = self.reports.0.lock().drain(..).collect();
        for (queue, stream, outcomes) in reports {
            self.desk.tried(&queue, stream, &outcomes, time, &mut out);
        }
        self.desk.tick(time, &mut out);
        self.jobs.append(&mut out.jobs);
        self.scans.append(&mut out.scans);
    }

    fn pass(&mut self, span: Duration) {
        self.clock.advance(span);
        self.with(|_, _, _| ());
    }

    fn ask_for(&mut self, client: u16, purpose: Purpose, patience: Patience) {
        let stream = matches!(purpose, Purpose::Take { stream: Some(_), .. });
        let wish = Wish {
            queue: queue("jobs"),
            purpose,
            patience,
            looks: !stream || patience == Patience::None,
        };
        self.with(|desk, time, out| desk.ask(Consumer::new(wish, Client(client)), time, out));
    }

    fn ask(&mut self, client: u16, patience: Patience) {
        self.ask_for(client, take(1), patience);
    }

    /// Asks and waits so many seconds.
    fn wait(&mut self, client: u16, seconds: u64) {
        let deadline = self.clock.now().after(Duration::from_secs(seconds));
        self.ask(client, Patience::Until(deadline));
    }

    fn enqueue(&mut self, number: u128) {
        self.enqueue_later(number, 0);
    }

    fn enqueue_later(&mut self, number: u128, delay_ms: i64) {
        let from = self.clock.wall_ms() + delay_ms;
        self.with(|desk, time, out| desk.visible(&queue("jobs"), id(number), from, time, out));
    }

    fn changed(&mut self, number: u128) {
        self.with(|desk, time, out| desk.changed(&[(queue("jobs"), id(number))], time, out));
    }

    /// The answer to the one scan that is under way: a page.
    #[track_caller]
    fn page(&mut self, numbers: impl IntoIterator<Item = u128>, reached: Frontier) {
        let found = numbers.into_iter().map(|number| (id(number), Found::From(0)));
        self.seen(found.collect(), reached);
    }

    #[track_caller]
    fn seen(&mut self, found: Vec<(MessageId, Found)>, reached: Frontier) {
        assert_eq!(self.scans.len(), 1, "{:?}", self.scans);
        let task = self.scans.remove(0);
        let outcome = Ok(Seen { found, reached });
        self.with(|desk, time, out| desk.scanned(Scanned { task, outcome }, time, out));
    }

    /// What was asked for since the last call.
    fn told(&mut self) -> Vec<String> {
        let jobs = std::mem::take(&mut self.jobs);
        let names = jobs.iter().map(name).collect();
        // Whatever was suggested is left untouched.
        drop(jobs);
        names
    }

    /// The one suggestion that was made: who got it, and which messages.
    #[track_caller]
    fn suggestion(&mut self) -> (Consumer<Client>, Trial) {
        assert_eq!(self.jobs.len(), 1, "{:?}", self.jobs);
        match self.jobs.remove(0) {
            QueueJob::Deliver(consumer, trial) => (consumer, trial),
            other => panic!("{other:?}"),
        }
    }

    /// The suggestion is delivered for 30 s.
    #[track_caller]
    fn deliver(&mut self) -> (u16, Vec<u128>) {
        let (consumer, mut trial) = self.suggestion();
        let until_ms = self.clock.wall_ms() + 30_000;
        let mut numbers = Vec::new();
        trial.each(|_, id| {
            numbers.push(number(id));
            Some(Tried::Delivered { until_ms })
        });
        drop(trial);
        self.with(|_, _, _| ());
        (consumer.parked.0, numbers)
    }

    fn settle(&mut self, number: u128) {
        self.with(|desk, time, out| desk.removed(&queue("jobs"), id(number), time, out));
    }
}

fn take(count: usize) -> Purpose {
    Purpose::Take { count, stream: None }
}

fn stream(number: u64, count: usize) -> Purpose {
    Purpose::Take {
        count,
        stream: Some(StreamId(number)),
    }
}

fn queue(name: &str) -> QueueId {
    QueueId {
        namespace: Namespace::parse("default").unwrap(),
        queue: QueueName::parse(name).unwrap(),
    }
}

fn id(number: u128) -> MessageId {
    MessageId::new(Uuid::from_u128(number))
}

fn number(id: MessageId) -> u128 {
    Uuid::parse_str(&id.to_string()).unwrap().as_u128()
}

fn name(job: &QueueJob<Client>) -> String {
    match job {
        QueueJob::Deliver(consumer, trial) => {
            let ids: Vec<_> = trial.ids().map(|id| number(id).to_string()).collect();
            format!("{} gets {}", consumer.parked.0, ids.join(","))
        }
        QueueJob::Head(consumer, head, _) => format!("{} sees {:?}", consumer.parked.0, head.map(number)),
        QueueJob::Empty(consumer) => format!("empty {}", consumer.parked.0),
        QueueJob::Failed(consumer, _) => format!("failed {}", consumer.parked.0),
        QueueJob::Refuse(consumer) => format!("refuse {}", consumer.parked.0),
        QueueJob::Discard(consumer) => format!("discard {}", consumer.parked.0),
        QueueJob::CheckPeers(peers) => format!("check {}", peers.len()),
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn consumers_are_served_in_the_order_of_their_arrival() {
    let mut bench = Bench::fresh();
    for client in 1..=3 {
        bench.ask(client, Patience::Endless);
    }
    assert_eq!(bench.told(), NOTHING);
    for number in 1..=3 {
        bench.enqueue(number);
        assert_eq!(bench.deliver(), (u16::try_from(number).unwrap(), vec![number]));
    }
}

#[test]
fn two_consumers_are_never_suggested_the_same_message() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.ask(2, Patience::Endless);
    bench.enqueue(1);
    let first = bench.suggestion();
    bench.enqueue(1);
    bench.changed(1);
    assert_eq!(bench.told(), NOTHING);
    drop(first);
    bench.with(|_, _, _| ());
    assert_eq!(bench.told(), ["2 gets 1"]);
}

#[test]
fn what_is_there_is_shared_among_those_who_wait() {
    let mut bench = Bench::new(true);
    bench.ask_for(1, take(10), Patience::Endless);
    bench.ask_for(2, take(10), Patience::Endless);
    bench.page(1..=4, Frontier::End);
    assert_eq!(bench.told(), ["1 gets 1,2", "2 gets 3,4"]);
}

#[test]
fn a_single_consumer_gets_a_whole_page() {
    let mut bench = Bench::fresh();
    bench.with(|desk, time, out| {
        for number in 1..=4 {
            desk.visible(&queue("jobs"), id(number), 0, time, out);
        }
    });
    bench.ask_for(1, take(3), Patience::None);
    assert_eq!(bench.told(), ["1 gets 1,2,3"]);
}

#[test]
fn whoever_does_not_wait_hears_at_once_that_a_known_queue_is_empty() {
    let mut bench = Bench::fresh();
    for client in 1..=3 {
        bench.ask(client, Patience::None);
        assert_eq!(bench.told(), [format!("empty {client}")]);
    }
    assert_eq!(bench.scans, []);
}

#[test]
fn without_a_feed_whoever_does_not_wait_is_looked_for_and_looks_are_shared() {
    let mut bench = Bench::new(false);
    bench.ask(1, Patience::None);
    bench.ask(2, Patience::None);
    assert_eq!(bench.told(), NOTHING);
    // The look that runs began before the second one came, so it gets one of its own, and with it the third.
    bench.page([], Frontier::End);
    assert_eq!(bench.told(), ["empty 1"]);
    bench.ask(3, Patience::None);
    bench.page([], Frontier::End);
    assert_eq!(bench.told(), ["empty 2"]);
    bench.page([7], Frontier::End);
    assert_eq!(bench.told(), ["3 gets 7"]);
}

#[test]
fn a_message_that_a_look_finds_goes_to_whoever_came_first() {
    let mut bench = Bench::new(false);
    bench.wait(1, 10);
    bench.ask(2, Patience::None);
    bench.page([7], Frontier::End);
    assert_eq!(bench.deliver(), (1, vec![7]));
    bench.seen(vec![(id(7), Found::From(BEGINNING_MS + 30_000))], Frontier::End);
    assert_eq!(bench.told(), ["empty 2"]);
}

/// Each look at a page may be a request that somebody pays for.
#[test]
fn a_queue_that_fits_into_one_page_is_polled_in_one_look() {
    let mut bench = Bench::new(false);
    bench.ask(1, Patience::Endless);
    bench.page([], Frontier::End);
    let leased = Found::From(BEGINNING_MS + 600_000);
    for known in 0..=4 {
        bench.pass(FLOOR);
        let after = (known == 4).then(|| id(4));
        assert_eq!(bench.scans[0].what, ScanWhat::Page { after, limit: 4 }, "{known}");
        let messages = (1..=known + 1).map(|number| (id(number), leased));
        // Four of four that were asked for: there may be more.
        let reached = if known == 3 {
            Frontier::After(id(4))
        } else {
            Frontier::End
        };
        bench.seen(messages.take(4).collect(), reached);
        if known == 3 {
            bench.seen(vec![], Frontier::End);
        }
        assert_eq!(bench.scans.len(), usize::from(known == 4));
    }
}

#[test]
fn nobody_waits_and_nothing_is_scanned() {
    let mut bench = Bench::new(false);
    bench.enqueue(1);
    bench.changed(1);
    bench.pass(FLOOR * 10);
    assert_eq!(bench.scans, []);
    bench.wait(1, 1);
    bench.page([], Frontier::End);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.told(), ["empty 1"]);
    for _ in 0..10 {
        bench.pass(FLOOR);
        bench.enqueue(2);
    }
    assert_eq!(bench.scans, []);
    assert_eq!(bench.desk.next_due(), None);
}

#[test]
fn an_idle_queue_is_polled_no_more_often_than_the_floor_however_much_wakes_it() {
    let mut bench = Bench::new(false);
    bench.ask(1, Patience::Endless);
    bench.page([], Frontier::End);
    let began = bench.clock.now();
    let mut polls = Vec::new();
    for round in 0..1_300 {
        bench.pass(Duration::from_millis(10));
        // Wake-ups pour in: messages of the same queue that are gone when they are tried, and of others.
        bench.enqueue_later(round, 60_000);
        bench.settle(round);
        bench.changed(round);
        while let Some(task) = bench.scans.first() {
            if let ScanWhat::Page { .. } = task.what {
                polls.push(bench.clock.now().since(began));
            }
            bench.page([], Frontier::End);
        }
        polls.dedup();
    }
    assert_eq!(polls, [FLOOR, FLOOR * 2, FLOOR * 3, FLOOR * 4]);
}

#[test]
fn with_a_feed_only_the_resilient_interval_polls() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.pass(Duration::from_secs(299));
    assert_eq!(bench.scans, []);
    bench.pass(Duration::from_secs(1));
    bench.page([5], Frontier::End);
    bench.told();
}

#[test]
fn a_delayed_message_is_delivered_when_it_is_due_and_not_at_the_next_poll() {
    for feed in [true, false] {
        let mut bench = Bench::new(feed);
        bench.ask(1, Patience::Endless);
        bench.page([], Frontier::End);
        bench.enqueue_later(1, 120);
        assert_eq!(bench.told(), NOTHING);
        let due = bench.desk.next_due().unwrap();
        assert_eq!(due.since(bench.clock.now()), Duration::from_millis(120));
        bench.pass(Duration::from_millis(119));
        assert_eq!(bench.told(), NOTHING);
        bench.pass(Duration::from_millis(1));
        assert_eq!(bench.deliver(), (1, vec![1]));
        // And a delivery that lapses comes again in the same way.
        bench.ask(2, Patience::Endless);
        if !feed {
            bench.page([], Frontier::End);
        }
        bench.pass(Duration::from_secs(30));
        assert!(bench.told().contains(&"2 gets 1".to_owned()));
    }
}

#[test]
fn the_candidate_of_a_consumer_whose_time_is_up_goes_to_the_next_one() {
    let mut bench = Bench::fresh();
    bench.wait(1, 1);
    bench.ask(2, Patience::Endless);
    bench.enqueue(1);
    let (first, trial) = bench.suggestion();
    // Its worker finds that it is too late, or that the client has gone, and tries nothing.
    bench.pass(Duration::from_secs(2));
    drop((first, trial));
    bench.with(|_, _, _| ());
    assert_eq!(bench.told(), ["2 gets 1"]);
}

#[test]
fn a_consumer_that_got_nothing_of_its_suggestion_comes_before_others() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.ask(2, Patience::Endless);
    bench.enqueue(1);
    let (first, mut trial) = bench.suggestion();
    trial.each(|_, _| Some(Tried::Found(Found::Gone)));
    drop(trial);
    bench.with(|desk, time, out| desk.back(first, time, out));
    bench.enqueue(2);
    assert_eq!(bench.told(), ["1 gets 2"]);
    bench.pass(Duration::ZERO);
    let (second, _trial) = bench.suggestion();
    assert_eq!(second.parked, Client(2));
    // What is being tried for one is nothing for another.
    bench.ask(3, Patience::None);
    assert_eq!(bench.told(), ["empty 3"]);
}

#[test]
fn patience_ends_in_time() {
    let mut bench = Bench::fresh();
    bench.wait(1, 2);
    bench.wait(2, 1);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.told(), ["empty 2"]);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.told(), ["empty 1"]);
    bench.enqueue(1);
    assert_eq!(bench.told(), NOTHING);
    assert_eq!(bench.desk.len(), 0);
}

#[test]
fn clients_are_asked_for_and_those_that_are_gone_get_nothing() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.ask(2, Patience::Endless);
    bench.pass(PEER_CHECK);
    let peers = match bench.jobs.remove(0) {
        QueueJob::CheckPeers(peers) => peers,
        other => panic!("{other:?}"),
    };
    assert_eq!(peers.len(), 2);
    let gone = peers.iter().find(|(_, peer)| peer.address.port() == 1001).unwrap().0;
    bench.with(|desk, _, out| desk.gone(&[gone], out));
    assert_eq!(bench.told(), ["discard 1"]);
    bench.enqueue(1);
    assert_eq!(bench.told(), ["2 gets 1"]);
}

#[test]
fn a_drain_sends_everybody_away() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.wait(2, 10);
    bench.with(|desk, _, out| desk.drain(out));
    let mut told = bench.told();
    told.sort();
    assert_eq!(told, ["refuse 1", "refuse 2"]);
    bench.enqueue(1);
    bench.ask(3, Patience::None);
    assert_eq!(bench.told(), ["refuse 3"]);
    // Who looks and takes nothing is served.
    bench.ask_for(4, Purpose::Head, Patience::None);
    assert_eq!(bench.told(), ["4 sees Some(1)"]);
    bench.pass(Duration::from_secs(20));
    assert_eq!(bench.told(), NOTHING);
}

#[test]
fn a_look_at_the_head_takes_nothing() {
    let mut bench = Bench::fresh();
    bench.ask_for(1, Purpose::Head, Patience::None);
    bench.enqueue(1);
    bench.enqueue(2);
    bench.ask_for(2, Purpose::Head, Patience::None);
    bench.ask_for(3, Purpose::Head, Patience::None);
    assert_eq!(bench.told(), ["1 sees None", "2 sees Some(1)", "3 sees Some(1)"]);
    bench.ask(4, Patience::None);
    assert_eq!(bench.told(), ["4 gets 1"]);
}

#[test]
fn what_others_change_is_looked_at_when_somebody_wants_it() {
    let mut bench = Bench::fresh();
    bench.changed(1);
    assert_eq!(bench.scans, []);
    bench.ask(1, Patience::None);
    assert_eq!(bench.scans[0].what, ScanWhat::Messages(vec![id(1)]));
    bench.seen(vec![(id(1), Found::Gone)], Frontier::Start);
    assert_eq!(bench.told(), ["empty 1"]);
    bench.ask(2, Patience::Endless);
    bench.changed(2);
    bench.seen(vec![(id(2), Found::From(0))], Frontier::Start);
    assert_eq!(bench.told(), ["2 gets 2"]);
}

#[test]
fn streams_share_a_queue_although_one_came_first() {
    let mut bench = Bench::fresh();
    bench.with(|desk, time, out| {
        for number in 1..=8 {
            desk.visible(&queue("jobs"), id(number), 0, time, out);
        }
    });
    bench.ask_for(1, stream(1, 1), Patience::Endless);
    assert_eq!(bench.deliver(), (1, vec![1]));
    // It is back for more at once, but the first message is not acknowledged yet.
    bench.ask_for(1, stream(1, 1), Patience::Endless);
    assert_eq!(bench.told(), NOTHING);
    bench.ask_for(2, stream(2, 1), Patience::Endless);
    assert_eq!(bench.deliver(), (2, vec![2]));
    bench.settle(1);
    assert_eq!(bench.deliver(), (1, vec![3]));
}

#[test]
fn a_stream_that_acknowledges_nothing_is_only_slowed_down() {
    let mut bench = Bench::fresh();
    bench.with(|desk, time, out| {
        for number in 1..=3 {
            desk.visible(&queue("jobs"), id(number), 0, time, out);
        }
    });
    bench.ask_for(1, stream(1, 1), Patience::Endless);
    for number in 1..=3 {
        assert_eq!(bench.deliver(), (1, vec![number]));
        bench.ask_for(1, stream(1, 1), Patience::Endless);
        assert_eq!(bench.told(), NOTHING);
        bench.pass(PACE);
    }
    assert_eq!(bench.told(), NOTHING);
}

#[test]
fn a_stream_without_patience_ends_when_nothing_is_left() {
    let mut bench = Bench::fresh();
    bench.enqueue(1);
    bench.ask_for(1, stream(1, 2), Patience::None);
    assert_eq!(bench.deliver(), (1, vec![1]));
    bench.ask_for(1, stream(1, 2), Patience::None);
    assert_eq!(bench.told(), ["empty 1"]);
}

#[test]
fn a_long_backlog_is_read_page_by_page_and_only_as_far_as_needed() {
    let mut bench = Bench::new(true);
    bench.ask(1, Patience::None);
    let mut pages = 0;
    while let Some(task) = bench.scans.first() {
        let ScanWhat::Page { after, limit } = task.what else {
            panic!("{task:?}")
        };
        let first = after.map_or(0, number) + 1;
        let last = first + limit as u128 - 1;
        bench.page(first..=last, Frontier::After(id(last)));
        pages += 1;
        assert!(pages < 100);
    }
    assert_eq!(bench.deliver(), (1, vec![1]));
    assert_eq!(pages, HIGH_WATER_PAGES + 1);
    // What is enqueued far behind does not concern anybody yet, and the next ones are known.
    bench.enqueue(1_000_000);
    bench.ask(2, Patience::None);
    assert_eq!(bench.deliver(), (2, vec![2]));
    assert_eq!(bench.scans, []);
    // When they are used up, it goes on where it stopped.
    bench.ask_for(3, take(64), Patience::None);
    let (_, numbers) = bench.deliver();
    bench.ask(4, Patience::None);
    let after = numbers.last().copied().map(id);
    assert_eq!(bench.scans[0].what, ScanWhat::Page { after, limit: 4 });
}

#[test]
fn a_backlog_of_leased_messages_does_not_hide_new_work() {
    let mut bench = Bench::new(false);
    bench.ask(1, Patience::Endless);
    // All of the backlog is leased by others.
    let leased = BEGINNING_MS + 600_000;
    let mut after = 0;
    for _ in 0..1_000 {
        let page = (after + 1..=after + 4).map(|number| (id(number), Found::From(leased)));
        after += 4;
        bench.seen(page.collect(), Frontier::After(id(after)));
    }
    bench.seen(vec![], Frontier::End);
    // The next poll begins where the last one ended.
    bench.pass(FLOOR);
    let newest = Some(id(4_000));
    assert_eq!(
        bench.scans[0].what,
        ScanWhat::Page {
            after: newest,
            limit: 4
        }
    );
    bench.page([4_001], Frontier::End);
    assert_eq!(bench.deliver(), (1, vec![4_001]));
}

#[test]
fn a_poll_reads_a_part_of_what_is_known_and_the_next_one_goes_on_there() {
    let mut bench = Bench::new(false);
    bench.ask(1, Patience::Endless);
    let leased = BEGINNING_MS + 600_000;
    let page = |first: u128| -> Vec<_> { (first..first + 4).map(|n| (id(n), Found::From(leased))).collect() };
    let pages = OLD_PAGES_MAX as u128 + 10;
    for number in 0..pages {
        bench.seen(page(4 * number + 1), Frontier::After(id(4 * number + 4)));
    }
    bench.seen(vec![], Frontier::End);
    let mut read = Vec::new();
    for _ in 0..2 {
        bench.pass(FLOOR);
        bench.seen(vec![], Frontier::End);
        let mut old = 0;
        while let Some(task) = bench.scans.first() {
            let ScanWhat::Page { after, .. } = task.what else {
                panic!("{task:?}")
            };
            let first = after.map_or(0, number) + 1;
            read.push(first);
            bench.seen(page(first), Frontier::After(id(first + 3)));
            old += 1;
        }
        assert!(old <= OLD_PAGES_MAX);
    }
    let everything: Vec<u128> = (0..pages).map(|number| 4 * number + 1).collect();
    assert_eq!(read, everything);
}

#[test]
fn a_fault_of_the_store_is_told_to_those_without_patience_and_not_hammered_on() {
    let mut bench = Bench::new(true);
    bench.ask(1, Patience::None);
    bench.ask(2, Patience::Endless);
    let fail = |bench: &mut Bench| {
        let task = bench.scans.remove(0);
        let detail = "out of order".to_owned();
        let outcome = Err(StoreError::NotDone { detail }.into());
        bench.with(|desk, time, out| desk.scanned(Scanned { task, outcome }, time, out));
    };
    fail(&mut bench);
    assert_eq!(bench.told(), ["failed 1"]);
    assert_eq!(bench.scans, []);
    bench.enqueue(1);
    assert_eq!(bench.scans, []);
    // Whoever comes anew is worth another attempt.
    bench.ask(3, Patience::None);
    fail(&mut bench);
    assert_eq!(bench.told(), ["failed 3"]);
    bench.pass(FLOOR);
    bench.page([1], Frontier::End);
    assert_eq!(bench.told(), ["2 gets 1"]);
}

#[test]
fn a_message_whose_try_failed_is_left_alone_for_a_moment() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    bench.enqueue(1);
    let (consumer, mut trial) = bench.suggestion();
    trial.each(|_, _| Some(Tried::Faulty));
    drop(trial);
    bench.with(|desk, time, out| desk.back(consumer, time, out));
    assert_eq!(bench.told(), NOTHING);
    bench.pass(AFTER_FAULT);
    assert_eq!(bench.told(), ["1 gets 1"]);
}

#[test]
fn idle_queues_are_forgotten_and_busy_ones_are_not() {
    let mut bench = Bench::fresh();
    bench.ask(1, Patience::Endless);
    for number in 0..20 {
        let wish = Wish {
            queue: queue(&format!("other-{number}")),
            purpose: take(1),
            patience: Patience::None,
            looks: true,
        };
        bench.with(|desk, time, out| desk.ask(Consumer::new(wish, Client(2)), time, out));
        bench.page([], Frontier::End);
    }
    assert_eq!(bench.desk.queues.len(), 3);
    bench.told();
    bench.enqueue(1);
    assert_eq!(bench.told(), ["1 gets 1"]);
}

#[test]
fn a_watcher_gets_a_word_when_something_may_have_changed() {
    let mut bench = Bench::fresh();
    let (poke, pokes) = crossbeam_channel::bounded(1);
    bench.with(|desk, time, out| desk.watch(&queue("jobs"), 1, poke, time, out));
    bench.enqueue(1);
    bench.enqueue_later(2, 5_000);
    assert_eq!(pokes.try_iter().count(), 1);
    bench.pass(Duration::from_secs(5));
    assert_eq!(pokes.try_iter().count(), 1);
    bench.settle(1);
    bench.changed(3);
    assert_eq!(pokes.try_iter().count(), 1);
    bench.with(|desk, _, _| desk.unwatch(&queue("jobs"), 1));
    bench.enqueue(4);
    assert_eq!(pokes.try_iter().count(), 0);
}
