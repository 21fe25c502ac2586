//! What a person is told of a bucket that cannot be used, by `lockd verify store` and by a daemon that does not start: what
//! is wrong, and what can be done about it.

use std::env;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::proxy::{Proxy, Rates};
use crate::suite::fixture::Place;

/// A store that is told to both, with variables that differ from those of the suite.
struct Told {
    verify: String,
    daemon: String,
}

impl Told {
    fn of(place: &dyn Place, url: &str, variables: &[(&str, &str)]) -> Self {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lockd"));
            command.args(arguments).args(["--store", url]).env_clear();
            command.envs(place.variables()).envs(variables.iter().copied());
            let done = command.stdin(Stdio::null()).output().unwrap();
            assert_eq!(done.status.code(), Some(1), "{url}: {done:?}");
            String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap()
        };
        Self {
            verify: run(&["verify", "store"]),
            daemon: run(&["--listen", "127.0.0.1:0"]),
        }
    }

    #[track_caller]
    fn both_say(&self, what: &str) {
        assert!(self.verify.contains(what), "{}", self.verify);
        assert!(self.verify.contains("\u{2718}"), "{}", self.verify);
        assert!(self.daemon.contains(what), "{}", self.daemon);
        for text in [&self.verify, &self.daemon] {
            assert!(!text.contains(WRONG), "a secret is told: {text}");
        }
    }
}

const WRONG: &str = "certainly-not-the-secret";

#[test]
fn a_wrong_secret_is_told_from_an_unknown_key() {
    let place = BucketPlace::new(DEMANDS, true);
    let wrong = [("LOCKD_S3_SECRET_ACCESS_KEY", WRONG)];
    if env::var("LOCKD_S3_ACCESS_KEY_ID").is_err() || place.opens_with(&wrong) {
        eprintln!("skipped: this store does not check who asks");
        return;
    }
    let told = Told::of(&place, &place.url(), &wrong);
    told.both_say("the secret does not belong to the access key");
    let told = Told::of(&place, &place.url(), &[("LOCKD_S3_ACCESS_KEY_ID", "nobody")]);
    told.both_say("the store does not know the access key");
}

#[test]
fn a_bucket_that_is_not_there_is_told() {
    let place = BucketPlace::new(DEMANDS, true);
    let url = format!("s3://{}/lockd-no-such-bucket?insecure=1", place.upstream());
    Told::of(&place, &url, &[]).both_say("there is no bucket lockd-no-such-bucket, it must be made first");
}

#[test]
fn an_address_where_nobody_listens_or_speaks_otherwise_is_told() {
    let place = BucketPlace::new(DEMANDS, true);
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let told = Told::of(&place, &format!("s3://{free}/bucket?insecure=1"), &[]);
    told.both_say("nobody listens there");
    let told = Told::of(&place, &format!("s3://{}/bucket", place.upstream()), &[]);
    told.both_say("insecure=1 in the URL speaks plain HTTP");
}

#[test]
fn a_store_that_ignores_conditions_is_told() {
    let (Ok(url), Ok(key)) = (env::var("LOCKD_TEST_BAD_STORE"), env::var("LOCKD_TEST_BAD_KEY")) else {
        eprintln!("skipped: LOCKD_TEST_BAD_STORE names no store that ignores conditions");
        return;
    };
    let place = BucketPlace::new(DEMANDS, true);
    let keys = [("LOCKD_S3_ACCESS_KEY_ID", &*key), ("LOCKD_S3_SECRET_ACCESS_KEY", &*key)];
    Told::of(&place, &url, &keys).both_say("it ignores If-None-Match");
}

/// Who may read may not write: puts are answered as a store answers then.
#[test]
fn missing_rights_are_told() {
    let place = BucketPlace::new(DEMANDS, true);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    proxy.refuse_puts();
    let told = Told::of(&place, &place.behind(proxy.address()).url(), &[]);
    told.both_say("these credentials have no right to do that");
    assert!(told.verify.contains("\u{2714} Bucket"), "{}", told.verify);
}
