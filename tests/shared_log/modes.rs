//! The modes in which servers of one store may be told to share the work: here all of them always serve.

use rustix::process::Signal;

use crate::place::{self, Servers};
use crate::suite::fixture::Backend;
use crate::suite::lockd_calls::{acquire, get_public, hold};
use crate::suite::process::Daemon;
use crate::{DEMANDS, MODE};

/// Runs a claim about two servers for every pair of modes that means something elsewhere.
fn for_pairs(test: &str, claim: fn(&dyn Backend, [&str; 2])) {
    let pairs = [
        ["failover", "failover"],
        ["single", "auto"],
        ["auto", "auto"],
        ["concurrent", "single"],
    ];
    for pair in pairs {
        place::run(DEMANDS, test, (Servers::Processes, MODE), |backend| {
            claim(backend, pair);
        });
    }
}

fn says_it_is_overridden(daemon: &Daemon, mode: &str) {
    if mode == "concurrent" {
        assert!(!daemon.log().contains("ha.mode.override"), "{}", daemon.log());
    } else {
        let said = daemon.wait_for_event("ha.mode.override");
        assert_eq!(said.str_field("requested"), Some(mode));
        assert_eq!(said.str_field("effective"), Some("concurrent"));
    }
}

/// TH-31: nobody stands by, so nothing has to be taken over: not when a server crashes, and not when it comes back.
#[test]
fn servers_of_any_mode_serve_together_and_go_on_alone() {
    for_pairs("modes", |backend, [mode, other_mode]| {
        let place = backend.open();
        let (mut one, address) = Daemon::on_tcp_with(&*place, &["--ha", mode]);
        let (other, other_address) = Daemon::on_tcp_with(&*place, &["--ha", other_mode]);
        says_it_is_overridden(&one, mode);
        says_it_is_overridden(&other, other_mode);
        let held = hold(address, "k");
        held.update("[1]").expect(200);
        assert_eq!(acquire(other_address, "k").error(), (409, "waiting".to_owned()));

        one.signal(Signal::KILL);
        one.wait();
        let held = held.at(other_address);
        held.keepalive(30).expect(200);
        let (_again, address) = Daemon::on_tcp_with(&*place, &["--ha", mode]);
        assert_eq!(acquire(address, "k").error(), (409, "waiting".to_owned()));
        held.release().expect(200);
        assert_eq!(get_public(address, "k").expect(200).body, b"[1]");
        assert_eq!(hold(address, "k").token, 2);
        hold(other_address, "another");
    });
}
