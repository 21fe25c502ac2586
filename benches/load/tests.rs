//! The load generator against a small server of its own, over real sockets. Only counts are asserted, never speed.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the modules under test report on standard streams"
)]

mod driver;
mod http;
mod measure;
mod options;
mod parked;
mod process;
mod report;
mod run;
mod scripted;
mod subscribe;
mod units;
mod workload;

use std::ffi::OsString;

use lockd::clock::SystemClock;

use options::{Command, Limit, Options};
use report::Measured;
use scripted::{Manners, Scripted};
use workload::Workload;

fn command(arguments: &str) -> Result<Command, options::UsageError> {
    let arguments: Vec<OsString> = format!("load {arguments}")
        .split_whitespace()
        .map(OsString::from)
        .collect();
    options::parse(arguments)
}

fn options_for(server: &Scripted, arguments: &str) -> Options {
    match command(&format!(
        "--bench --url http://{} --warmup 0 {arguments}",
        server.address
    )) {
        Ok(Command::Run(options)) => *options,
        other => panic!("{other:?}"),
    }
}

/// One round with one workload.
fn measure(server: &Scripted, arguments: &str) -> Measured {
    let options = options_for(server, arguments);
    let mut rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    rounds.remove(0).remove(0)
}

fn errors(measured: &Measured) -> Vec<(&str, u64)> {
    measured
        .tally
        .errors
        .0
        .iter()
        .map(|(what, count)| (what.as_str(), *count))
        .collect()
}

#[test]
fn every_operation_of_a_workload_is_counted_with_its_requests() {
    for threads in [1, 3] {
        for (workload, requests_each) in [("health", 1), ("lease", 2), ("lock", 3)] {
            let server = Scripted::start(Manners::default());
            let arguments = format!("--workload {workload} --connections 8 --operations 500 --threads {threads}");
            let measured = measure(&server, &arguments);
            assert_eq!(measured.tally.operations, 500, "{workload}");
            assert_eq!(measured.tally.requests, 500 * requests_each, "{workload}");
            assert_eq!(measured.tally.latency_ns.len(), 500, "{workload}");
            assert_eq!(server.requests(), 500 * requests_each, "{workload}");
            assert_eq!(errors(&measured), [], "{workload}");
            assert_eq!(server.held(), 0, "{workload} leaves no lease behind");
        }
    }
}

/// A real server, because a queue is more than a script.
fn queue_server() -> lockd::testing::TestServer {
    lockd::testing::TestServer::builder().start().unwrap()
}

fn measure_queue(server: &lockd::testing::TestServer, arguments: &str) -> Measured {
    let line = format!("--bench --url {} --warmup 0 {arguments}", server.url());
    let Ok(Command::Run(options)) = command(&line) else {
        panic!("{line}")
    };
    let mut rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    rounds.remove(0).remove(0)
}

#[test]
fn every_message_of_a_queue_is_enqueued_dequeued_and_acknowledged() {
    let server = queue_server();
    for queues in [1, 3] {
        let arguments =
            format!("--workload queue --connections 4 --operations 60 --payload-bytes 20 --queues {queues}");
        let measured = measure_queue(&server, &arguments);
        assert_eq!(errors(&measured), []);
        assert_eq!((measured.tally.operations, measured.tally.requests), (60, 180));
        assert_eq!(measured.tally.latency_ns.len(), 60);
    }
}

#[test]
fn subscribers_get_and_acknowledge_what_producers_put_in() {
    let server = queue_server();
    for subscribers in [1, 3] {
        let arguments = format!(
            "--workload queue-subscribe --connections 2 --operations 100 --payload-bytes 3000 --prefetch 4 --subscribers \
             {subscribers}"
        );
        let measured = measure_queue(&server, &arguments);
        assert_eq!(errors(&measured), []);
        assert_eq!((measured.tally.operations, measured.tally.requests), (100, 200));
        assert_eq!(measured.tally.latency_ns.len(), 100);
        assert!(0.0 < measured.seconds);
    }
    let timed = measure_queue(&server, "--workload queue-subscribe --connections 2 --seconds 0.3");
    assert!(
        0 < timed.tally.operations && errors(&timed).is_empty(),
        "{:?}",
        errors(&timed)
    );
}

#[test]
fn a_measurement_by_time_leaves_no_lease_behind_and_counts_only_its_own_time() {
    let server = Scripted::start(Manners::default());
    let measured = measure(&server, "--workload lease --connections 8 --seconds 0.2");
    assert!(measured.tally.operations > 0);
    assert!(measured.tally.requests <= server.requests());
    assert_eq!(errors(&measured), []);
    assert_eq!(server.held(), 0);
}

#[test]
fn documents_have_the_size_asked_for_and_differ() {
    let server = Scripted::start(Manners::default());
    for document_bytes in [18, 19, 4096, 3_000_000] {
        let arguments = "--workload lock --connections 2 --operations 6 --document-bytes";
        let measured = measure(&server, &format!("{arguments} {document_bytes}"));
        assert_eq!(measured.tally.operations, 6);
        assert_eq!(errors(&measured), []);
        let of_this_size = |(state, _): &(Vec<u8>, i64)| state.len() == document_bytes;
        assert!(server.states().iter().filter(|state| of_this_size(state)).count() >= 1);
    }
    let server = Scripted::start(Manners::default());
    measure(&server, "--workload lock --contended --connections 1 --operations 7");
    let states = server.states();
    let [(state, version)] = &states[..] else {
        panic!("one key")
    };
    assert!(str::from_utf8(state).unwrap().contains("0000000007"));
    assert_eq!(*version, 7);
}

#[test]
fn a_public_read_finds_the_prepared_state_however_it_is_framed() {
    for chunk_bytes in [0, 7, 100_000] {
        let server = Scripted::start(Manners {
            chunk_bytes,
            ..Manners::default()
        });
        let measured = measure(&server, "--workload public-read --document-bytes 70000 --operations 50");
        assert_eq!(measured.tally.operations, 50);
        assert_eq!(errors(&measured), []);
    }
}

#[test]
fn refusals_are_counted_by_status_and_code_and_the_lease_is_released_all_the_same() {
    let server = Scripted::start(Manners {
        refused_update: 5,
        ..Manners::default()
    });
    let measured = measure(&server, "--workload lock --connections 4 --operations 100");
    assert_eq!(measured.tally.operations, 80);
    assert_eq!(measured.tally.requests, 300);
    assert_eq!(errors(&measured), [("503 staging_unavailable", 20)]);
    assert_eq!(server.held(), 0);
}

#[test]
fn contention_shows_as_waiting() {
    let server = Scripted::start(Manners::default());
    let measured = measure(&server, "--workload lease --contended --connections 4 --operations 400");
    let refused: u64 = errors(&measured).iter().map(|(_, count)| count).sum();
    assert_eq!(measured.tally.operations + refused, 400);
    assert!(
        errors(&measured).iter().all(|(what, _)| *what == "409 waiting"),
        "{:?}",
        errors(&measured)
    );
    assert_eq!(measured.tally.requests, measured.tally.operations * 2 + refused);

    let waiting = measure(
        &server,
        "--workload lease --contended --block 0 --connections 4 --operations 400",
    );
    assert_eq!((waiting.tally.operations, errors(&waiting)), (400, vec![]));
}

#[test]
fn a_connection_that_the_server_ends_is_opened_again() {
    let server = Scripted::start(Manners {
        answers_per_connection: 3,
        ..Manners::default()
    });
    let measured = measure(&server, "--workload lease --connections 1 --operations 60");
    assert_eq!(measured.tally.operations, 60);
    assert_eq!(measured.tally.reconnects, 40);
    assert_eq!(errors(&measured), []);
}

#[test]
fn a_server_that_hangs_up_without_an_answer_ends_the_run_and_shows_in_it() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hang_up = move || {
        for stream in listener.incoming().take(20) {
            drop(stream);
        }
    };
    let acceptor = lockd::threads::spawn("hang-up", hang_up).unwrap();
    let arguments =
        format!("--bench --url http://{address} --warmup 0 --workload health --connections 4 --operations 9");
    let Ok(Command::Run(options)) = command(&arguments) else {
        panic!("legal")
    };
    let rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    let tally = &rounds[0][0].tally;
    assert_eq!(tally.operations, 0);
    assert!(tally.errors.total() > 0);
    assert!(
        tally.errors.0.keys().all(|what| what.starts_with("connection: ")),
        "{:?}",
        tally.errors
    );
    // The acceptor takes twenty; whoever comes later is refused, because the listener is gone with it.
    while !acceptor.is_finished() {
        let _ = std::net::TcpStream::connect(address);
    }
    acceptor.join().unwrap();
}

#[test]
fn a_connection_that_is_taken_and_never_served_shows_as_that() {
    // The backlog of a listener completes connections that nobody accepts.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let arguments =
        format!("--bench --url http://{address} --warmup 0 --workload health --connections 3 --seconds 0.1");
    let Ok(Command::Run(options)) = command(&arguments) else {
        panic!("legal")
    };
    let rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    assert_eq!(errors(&rounds[0][0]), [("no answer, never one on this connection", 3)]);
}

#[test]
fn an_open_loop_starts_what_is_due_and_no_more() {
    let server = Scripted::start(Manners::default());
    let measured = measure(&server, "--workload health --connections 4 --rate 400 --seconds 0.5");
    let due = measured.tally.operations + measured.tally.never_started;
    assert!(
        (199..=201).contains(&due),
        "{due} operations were due in half a second at 400 per second"
    );
    assert_eq!(server.requests(), measured.tally.requests);
}

/// The backlog of the warm-up once swallowed the whole measurement: nothing was counted, not even as undone.
#[test]
fn a_rate_that_no_server_reaches_shows_as_work_left_undone() {
    let server = Scripted::start(Manners::default());
    let arguments = "--workload health --connections 2 --rate 1000000 --seconds 0.2 --warmup 0.2";
    let options = options_for(&server, arguments);
    let rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    let tally = &rounds[0][0].tally;
    assert!(tally.operations > 0);
    let due = tally.operations + tally.never_started;
    assert!(
        (199_990..=200_010).contains(&due),
        "{due} operations were due in 0.2 s at a million per second"
    );
    let (text, _) = run::run(&options).unwrap();
    assert!(text.contains("the rate was not reached"), "{text}");
}

#[test]
fn an_open_loop_charges_a_stall_to_everything_that_was_due() {
    // One connection, and a server that is slow with its first answer: what was due meanwhile is late.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let stall = move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 1024];
        let mut stall = Some(std::time::Duration::from_millis(250));
        while stream.read(&mut buffer).is_ok_and(|count| count > 0) {
            std::thread::sleep(stall.take().unwrap_or_default());
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                .unwrap();
        }
    };
    let server = lockd::threads::spawn("stall", stall).unwrap();
    let arguments = "--workload health --connections 1 --rate 100 --seconds 0.5 --warmup 0";
    let Ok(Command::Run(options)) = command(&format!("--bench --url http://{address} {arguments}")) else {
        panic!("legal")
    };
    let rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    server.join().unwrap();
    let tally = &rounds[0][0].tally;
    let late = tally.latency_ns.count_between(100_000_000, u64::MAX) + tally.never_started;
    assert!(
        late >= 10,
        "only {late} operations were charged for a stall that held up about 25"
    );
}

#[test]
fn parked_requests_are_woken_one_after_the_other() {
    for keys in [1, 7] {
        let server = Scripted::start(Manners::default());
        let options = options_for(
            &server,
            &format!("--workload parked --connections 60 --keys {keys} --settle 0.1"),
        );
        let outcome = parked::run(&options, &SystemClock::new()).unwrap();
        assert_eq!(outcome.waiting, 60);
        assert_eq!(outcome.refused_early, 0);
        assert_eq!(outcome.wake_up_ns.len(), 60);
        assert_eq!(outcome.errors.total(), 0, "{:?}", outcome.errors);
        assert_eq!(server.held(), 0);
    }
}

#[test]
fn one_message_goes_through_the_hands_of_all_who_wait_for_one() {
    let server = queue_server();
    let line = format!(
        "--bench --url {} --workload parked-queue --connections 20 --keys 2 --settle 0.1",
        server.url()
    );
    let Ok(Command::Run(options)) = command(&line) else {
        panic!("{line}")
    };
    let outcome = parked::run(&options, &SystemClock::new()).unwrap();
    assert_eq!(outcome.errors.total(), 0, "{:?}", outcome.errors);
    assert_eq!((outcome.waiting, outcome.wake_up_ns.len()), (20, 20));
}

#[test]
fn parked_requests_that_are_refused_are_not_waited_for() {
    let server = Scripted::start(Manners::default());
    let options = options_for(&server, "--workload parked --connections 10 --block -1 --settle 0.1");
    let outcome = parked::run(&options, &SystemClock::new()).unwrap();
    assert_eq!((outcome.waiting, outcome.wake_up_ns.len()), (0, 0));
    assert_eq!(outcome.errors.0.get("409 waiting"), Some(&10));
}

#[test]
fn workloads_take_turns_and_are_compared_with_the_first() {
    let server = Scripted::start(Manners::default());
    let options = options_for(
        &server,
        "--workload health --workload lease --rounds 3 --operations 100 --connections 2 --json",
    );
    let rounds = run::measure_all(&options, &SystemClock::new()).unwrap();
    let order: Vec<_> = rounds.iter().flatten().map(|measured| measured.workload).collect();
    assert_eq!(order, [Workload::Health, Workload::Lease].repeat(3));
    let json = report::measured_json(&options, &rounds);
    assert_eq!(json["ratios"][0]["of"], "lease");
    assert_eq!(json["ratios"][0]["to"], "health");
    let rates = |n: usize| -> Vec<f64> {
        let of_round = |round: usize| json["rounds"][round][n]["requests_per_second"].as_f64().unwrap();
        (0..3).map(of_round).collect()
    };
    let mut ratios: Vec<f64> = rates(1)
        .iter()
        .zip(rates(0))
        .map(|(lease, health)| lease / health)
        .collect();
    ratios.sort_by(f64::total_cmp);
    assert_eq!(json["ratios"][0]["requests_per_second"].as_f64().unwrap(), ratios[1]);
}

#[test]
fn reports_name_the_ratio_the_refusals_and_the_cost_of_measuring() {
    let server = Scripted::start(Manners {
        refused_update: 5,
        ..Manners::default()
    });
    let pid = std::process::id();
    let arguments = format!("--workload health --workload lock --operations 50 --rounds 2 --pid {pid}");
    let (text, verdict) = run::run(&options_for(&server, &arguments)).unwrap();
    assert_eq!(verdict, run::Verdict::Measured);
    for part in [
        "closed loop",
        "lock / health in requests/s: ",
        "20 x 503 staging_unavailable",
        "load generator used ",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    let arguments = format!("--workload parked --connections 5 --settle 0.1 --json --pid {pid}");
    let (text, verdict) = run::run(&options_for(&server, &arguments)).unwrap();
    assert_eq!(verdict, run::Verdict::Measured);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["wake_ups"], 5);
    assert!(json["server_resident_bytes_parked"].as_u64().unwrap() > 0);
    assert!(json["server_resident_bytes_after"].as_u64().unwrap() > 0);
    let arguments = "--workload lock --operations 4 --connections 1";
    let refusing = Scripted::start(Manners {
        refused_update: 1,
        ..Manners::default()
    });
    let (_, verdict) = run::run(&options_for(&refusing, arguments)).unwrap();
    assert_eq!(verdict, run::Verdict::NothingSucceeded);
}

#[test]
fn without_a_server_to_drive_cargo_finds_nothing_to_do() {
    for line in [
        "",
        "--bench",
        "--test-threads=2",
        "--list --format terse",
        "some_filter --nocapture",
    ] {
        assert!(matches!(command(line), Ok(Command::Nothing)), "{line}");
    }
    assert!(matches!(command("--bench --help"), Ok(Command::Help)));
}

#[test]
fn command_lines_are_checked_before_anything_is_connected() {
    let url = "--bench --url http://127.0.0.1:9341";
    let legal = command(&format!("{url} --workload lock --connections 5 --operations 7")).unwrap();
    let Command::Run(options) = legal else { panic!("legal") };
    assert_eq!((options.limit, options.keys), (Limit::Operations(7), 5));
    for line in [
        "--bench --connections 4",
        "--bench --url https://127.0.0.1:9341",
        "--bench --url http://127.0.0.1:9341/v1",
        &format!("{url} --workload nonsense"),
        &format!("{url} --workload parked --workload lease"),
        &format!("{url} --workload parked --rate 5"),
        &format!("{url} --seconds 1 --operations 5"),
        &format!("{url} --connections 0"),
        &format!("{url} --seconds -1"),
        &format!("{url} --seconds 1e300"),
        &format!("{url} --document-bytes 17"),
        &format!("{url} --payload-bytes 19"),
        &format!("{url} --prefetch 65"),
        &format!("{url} --workload queue-subscribe --rate 5"),
        &format!("{url} --unknown"),
        &format!("{url} stray"),
    ] {
        assert!(command(line).is_err(), "{line}");
    }
}

#[test]
fn every_option_in_the_help_text_exists() {
    let words = options::HELP.split(|c: char| c.is_whitespace() || c == ',');
    let named: Vec<&str> = words.filter(|word| word.starts_with("--") && word.len() > 2).collect();
    assert!(named.len() > 15);
    for option in named
        .into_iter()
        .filter(|option| !["--help", "--bench"].contains(option))
    {
        let refusal = command(&format!("--bench --url http://127.0.0.1:1 {option}"))
            .err()
            .map(|error| error.to_string());
        assert!(
            !refusal.is_some_and(|refusal| refusal.contains("unknown option")),
            "{option}"
        );
    }
}

#[test]
fn processor_time_and_memory_of_this_process_are_known() {
    use process::Process;
    let (now, most) = Process::Myself.resident_bytes().unwrap();
    assert!(now > 0 && most >= now);
    assert!(Process::Pid(std::process::id()).cpu_seconds().unwrap() >= 0.0);
    assert!(Process::Pid(u32::MAX).cpu_seconds().is_err());
}
