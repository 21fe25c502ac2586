use std::net::SocketAddr;

use super::*;

struct Request(u32);

impl Parked for Request {
    fn peer(&self) -> Option<Peer> {
        (self.0 < 1000).then(|| SocketAddr::from(([127, 0, 0, 1], 1000 + self.0 as u16)).into())
    }
}

const LIMITS: WaitLimits = WaitLimits {
    recheck: Duration::from_secs(3),
    peer_check: Duration::from_secs(5),
};

struct Bench {
    waiters: Waiters<Request>,
    hint: Arc<WaitHint>,
    now: Moment,
}

impl Bench {
    fn new() -> Self {
        let hint = Arc::new(WaitHint::default());
        Self {
            waiters: Waiters::new(LIMITS, Arc::clone(&hint)),
            hint,
            now: Moment::ZERO,
        }
    }

    fn at(&mut self, seconds: u64) -> &mut Self {
        self.now = Moment::ZERO.after(Duration::from_secs(seconds));
        self
    }

    fn park(&mut self, key: &str, request: u32, deadline_s: Option<u64>) -> Vec<Job<Request>> {
        let deadline = deadline_s.map(|seconds| Moment::ZERO.after(Duration::from_secs(seconds)));
        let mut jobs = Vec::new();
        self.waiters
            .park(RecordKey::new(key), deadline, Request(request), self.now, &mut jobs);
        jobs
    }

    fn tried(&mut self, key: &str, outcome: Outcome<Request>) -> Vec<Job<Request>> {
        let mut jobs = Vec::new();
        self.waiters.tried(&RecordKey::new(key), outcome, self.now, &mut jobs);
        jobs
    }

    fn still_held(&mut self, jobs: Vec<Job<Request>>, until_s: u64) -> Vec<Job<Request>> {
        let waiter = the_tried(jobs);
        let key = waiter.key.as_str().to_owned();
        let until = Moment::ZERO.after(Duration::from_secs(until_s));
        self.tried(&key, Outcome::StillHeld { waiter, until })
    }

    fn ended(&mut self, key: &str) -> Vec<Job<Request>> {
        let mut jobs = Vec::new();
        self.waiters.lease_ended(&RecordKey::new(key), &mut jobs);
        jobs
    }

    fn tick(&mut self) -> Vec<Job<Request>> {
        let mut jobs = Vec::new();
        self.waiters.tick(self.now, &mut jobs);
        jobs
    }
}

fn the_tried(mut jobs: Vec<Job<Request>>) -> Waiter<Request> {
    assert_eq!(jobs.len(), 1);
    match jobs.remove(0) {
        Job::Try(waiter) => waiter,
        other => panic!("{}", name(&other)),
    }
}

fn name(job: &Job<Request>) -> String {
    match job {
        Job::Try(waiter) => format!("try {}", waiter.parked.0),
        Job::TimeUp(waiter) => format!("time up {}", waiter.parked.0),
        Job::Refuse(waiter) => format!("refuse {}", waiter.parked.0),
        Job::Discard(waiter) => format!("discard {}", waiter.parked.0),
        Job::CheckPeers(peers) => format!("check {}", peers.len()),
    }
}

fn names(jobs: &[Job<Request>]) -> Vec<String> {
    let mut names: Vec<String> = jobs.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn the_first_to_park_is_tried_at_once_so_that_no_release_is_missed() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    assert_eq!(names(&jobs), ["try 1"]);
    assert!(bench.hint.contains(&RecordKey::new("k")));
    assert_eq!(names(&bench.park("k", 2, None)), [""; 0]);
    assert_eq!(names(&bench.still_held(jobs, 30)), [""; 0]);
}

#[test]
fn waiters_are_served_in_the_order_of_arrival() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    bench.park("k", 2, None);
    bench.park("k", 3, None);
    bench.still_held(jobs, 30);
    assert_eq!(names(&bench.ended("k")), ["try 1"]);
    let granted = Outcome::Answered {
        held_until: Some(Moment::ZERO.after(Duration::from_secs(30))),
    };
    assert_eq!(names(&bench.tried("k", granted)), [""; 0]);
    assert_eq!(names(&bench.ended("k")), ["try 2"]);
    assert_eq!(
        names(&bench.tried("k", Outcome::Answered { held_until: None })),
        ["try 3"]
    );
    bench.tried("k", Outcome::Answered { held_until: None });
    assert!(!bench.hint.contains(&RecordKey::new("k")));
    assert_eq!(bench.waiters.len(), 0);
}

#[test]
fn a_lease_that_ends_while_the_first_is_out_is_not_forgotten() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    assert_eq!(names(&bench.ended("k")), [""; 0]);
    assert_eq!(names(&bench.still_held(jobs, 30)), ["try 1"]);
}

#[test]
fn the_end_of_the_holders_lease_is_looked_at_but_never_later_than_the_recheck() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    bench.still_held(jobs, 2);
    assert_eq!(names(&bench.at(1).tick()), [""; 0]);
    let jobs = bench.at(2).tick();
    assert_eq!(names(&jobs), ["try 1"]);
    bench.still_held(jobs, 100);
    assert_eq!(names(&bench.at(4).tick()), [""; 0]);
    assert_eq!(names(&bench.at(5).tick()), ["try 1"]);
}

#[test]
fn patience_ends_at_its_deadline_also_behind_others() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    bench.park("k", 2, Some(2));
    bench.still_held(jobs, 2);
    assert_eq!(
        bench.waiters.next_due(),
        Some(Moment::ZERO.after(Duration::from_secs(2)))
    );
    assert_eq!(names(&bench.at(2).tick()), ["time up 2", "try 1"]);
}

#[test]
fn a_deadline_that_passed_while_out_is_noticed_on_return() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, Some(1));
    assert_eq!(names(&bench.at(2).tick()), [""; 0]);
    bench.still_held(jobs, 30);
    assert_eq!(names(&bench.tick()), ["time up 1"]);
    assert!(!bench.hint.contains(&RecordKey::new("k")));
}

#[test]
fn somebody_who_has_gone_is_discarded_and_skipped() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    bench.park("k", 2, None);
    bench.park("k", 3, None);
    bench.still_held(jobs, 30);
    let gone: Vec<WaiterId> = bench
        .waiters
        .parked
        .values()
        .filter(|waiter| waiter.parked.0 < 3)
        .map(|waiter| waiter.id)
        .collect();
    let mut jobs = Vec::new();
    bench.waiters.gone(&gone, &mut jobs);
    assert_eq!(names(&jobs), ["discard 1", "discard 2"]);
    assert_eq!(names(&bench.ended("k")), ["try 3"]);
}

#[test]
fn peers_are_checked_only_while_somebody_waits() {
    let mut bench = Bench::new();
    let jobs = bench.park("k", 1, None);
    bench.still_held(jobs, 1000);
    bench.park("k", 2, None);
    bench.park("k", 1001, None);
    assert!(names(&bench.at(5).tick()).contains(&"check 1".to_owned()));
    let mut jobs = Vec::new();
    bench.waiters.drain(&mut jobs);
    bench.at(10).tick();
    assert_eq!(bench.waiters.next_due(), None);
}

#[test]
fn a_drain_refuses_everybody_also_who_comes_later_or_back() {
    let mut bench = Bench::new();
    let out = bench.park("k", 1, None);
    bench.park("k", 2, None);
    bench.park("l", 3, None);
    let mut jobs = Vec::new();
    bench.waiters.drain(&mut jobs);
    assert_eq!(names(&jobs), ["refuse 2"]);
    assert_eq!(names(&bench.still_held(out, 30)), ["refuse 1"]);
    assert_eq!(names(&bench.park("m", 4, None)), ["refuse 4"]);
}
