//! What a person is told of a bucket that cannot be used, by `lockd verify store` and by a daemon that does not start: what
//! is wrong, and what can be done about it.

use std::env;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::json;

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
    if env::var("LOCKD_S3_ACCESS_KEY_ID").is_err() || place.engine_with(&wrong).is_ok() {
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

/// What a server needs to be allowed in its bucket.
const RIGHTS: [&str; 4] = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"];

/// Keys of a session that may do this and no more, as the store itself gives them to whoever may do more. `None`, said
/// aloud, where it gives none.
fn session(store: SocketAddr, bucket: &str, rights: &[&str]) -> Option<[(&'static str, String); 3]> {
    let root = |name: &str| env::var(name).ok();
    let user = format!(
        "{}:{}",
        root("LOCKD_S3_ACCESS_KEY_ID")?,
        root("LOCKD_S3_SECRET_ACCESS_KEY")?
    );
    let policy = json!({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": rights,
        "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")]}]});
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--fail",
        "--aws-sigv4",
        "aws:amz:us-east-1:sts",
        "--user",
        &user,
    ]);
    for field in [
        "Action=AssumeRole",
        "Version=2011-06-15",
        "DurationSeconds=3600",
        &format!("Policy={policy}"),
    ] {
        curl.args(["--data-urlencode", field]);
    }
    let done = curl.arg(format!("http://{store}/")).output();
    let Some(answer) = done.ok().filter(|done| done.status.success()) else {
        eprintln!("skipped: this store gives no keys for a session, or curl cannot ask for them");
        return None;
    };
    let answer = String::from_utf8(answer.stdout).unwrap();
    let field = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>")).unwrap();
        rest.split_once('<').unwrap().0.to_owned()
    };
    Some([
        ("LOCKD_S3_ACCESS_KEY_ID", field("AccessKeyId")),
        ("LOCKD_S3_SECRET_ACCESS_KEY", field("SecretAccessKey")),
        ("LOCKD_S3_SESSION_TOKEN", field("SessionToken")),
    ])
}

#[test]
fn the_rights_that_are_needed_are_enough_and_each_of_them_is_missed_at_the_start() {
    let place = BucketPlace::new(DEMANDS, true);
    let url = place.url();
    let bucket = url.split('/').nth(3).unwrap();
    let session = |rights: &[&str]| session(place.upstream(), bucket, rights);
    let Some(enough) = session(&RIGHTS) else { return };
    place
        .engine_with(&enough.each_ref().map(|(name, value)| (*name, value.as_str())))
        .unwrap();
    for missing in RIGHTS {
        let rights: Vec<&str> = RIGHTS.into_iter().filter(|right| *right != missing).collect();
        let variables = session(&rights).unwrap();
        let told = Told::of(
            &place,
            &url,
            &variables.each_ref().map(|(name, value)| (*name, value.as_str())),
        );
        eprintln!("without {missing}: {}", told.verify);
        told.both_say("these credentials have no right to do that");
    }
}
