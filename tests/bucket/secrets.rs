//! Keys that end and are renewed while a server runs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use lockd::clock::{Clock, SystemClock};
use lockd::store::Store;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::DEMANDS;
use crate::place::BucketPlace;
use crate::proxy::{Proxy, Rates};
use crate::suite::fixture::Place;
use crate::suite::lockd_calls::{assert_healthy, hold, wait_until};
use crate::suite::process::Daemon;

/// Keys are renewed when they have five minutes left.
const AHEAD_SECONDS: i64 = 5 * 60;

/// What an agent that hands out keys, as containers have one, does next.
#[derive(Debug, Clone, Copy)]
struct Mood {
    /// How long its keys are good.
    seconds: i64,
    /// It refuses.
    refuses: bool,
}

/// Such an agent: a small HTTP server. Each answer has a key of its own, `KEY-<number>`.
struct Agent {
    address: SocketAddr,
    asked: Arc<Mutex<u32>>,
    mood: Arc<Mutex<Mood>>,
}

const TOKEN: &str = "the-token-of-the-container";

impl Agent {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
            mood: Arc::new(Mutex::new(mood)),
        };
        let (asked, mood) = (Arc::clone(&agent.asked), Arc::clone(&agent.mood));
        thread::spawn(move || {
            for client in listener.incoming() {
                answer(client.unwrap(), &mut asked.lock(), *mood.lock());
            }
        });
        agent
    }
}

fn answer(mut client: TcpStream, asked: &mut u32, mood: Mood) {
    let lines = BufReader::new(client.try_clone().unwrap()).lines();
    let head: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let is_ours = head[0].starts_with("GET /keys ")
        && head
            .iter()
            .any(|line| line.to_lowercase() == format!("authorization: {TOKEN}"));
    *asked += 1;
    let (status, body) = if mood.refuses || !is_ours {
        ("500 Internal Server Error", String::new())
    } else {
        let ends = u64::try_from(SystemClock::new().wall_seconds() + mood.seconds).unwrap();
        let ends = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(ends));
        let body = format!(
            "{{\"AccessKeyId\":\"KEY-{asked}\",\"SecretAccessKey\":\"secret\",\"Token\":\"TOKEN-{asked}\",\
             \"Expiration\":\"{ends}\",\"RoleArn\":\"arn\",\"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\
             \"LastUpdated\":\"{ends}\"}}"
        );
        ("200 OK", body)
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    client.write_all((head + &body).as_bytes()).unwrap();
}

/// A place whose daemons find their keys where these variables lead, and nowhere else.
struct WithKeys<'a> {
    place: &'a dyn Place,
    variables: Vec<(&'static str, String)>,
}

impl<'a> WithKeys<'a> {
    fn from_agent(place: &'a dyn Place, agent: &Agent) -> Self {
        let variables = vec![
            (
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                format!("http://{}/keys", agent.address),
            ),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", TOKEN.to_owned()),
        ];
        Self { place, variables }
    }
}

impl Place for WithKeys<'_> {
    fn store(&self) -> Arc<dyn Store> {
        self.place.store()
    }

    fn url(&self) -> String {
        self.place.url()
    }

    fn variables(&self) -> Vec<(String, String)> {
        let is_secret = |name: &str| ["KEY", "TOKEN", "PROFILE"].iter().any(|word| name.contains(word));
        let mut variables = self.place.variables();
        variables.retain(|(name, _)| !is_secret(name));
        // Without a home there is no file of credentials either.
        variables.push(("HOME".to_owned(), "/nonexistent".to_owned()));
        let more = self.variables.iter();
        variables.extend(more.map(|(name, value)| ((*name).to_owned(), value.clone())));
        variables
    }
}

/// The keys that requests were signed with, each once, in order; each with the token that belongs to it.
fn keys_in(heads: &[String]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for head in heads {
        let (_, behind) = head
            .split_once("Credential=")
            .unwrap_or_else(|| panic!("not signed: {head}"));
        let key = behind.split('/').next().unwrap_or_default().to_owned();
        let number = key.strip_prefix("KEY-").unwrap_or_else(|| panic!("{key}"));
        let token = format!("x-amz-security-token: token-{number}\r\n");
        assert!(head.to_lowercase().contains(&token), "{head}");
        assert!(
            head.contains("x-amz-security-token") && head.contains("SignedHeaders="),
            "{head}"
        );
        if keys.last() != Some(&key) {
            keys.push(key);
        }
    }
    keys
}

#[test]
fn keys_that_end_are_renewed_ahead_of_their_end() {
    let place = BucketPlace::new(DEMANDS, true);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    proxy.keep_heads();
    // Their time to be renewed comes soon, their end does not.
    let agent = Agent::start(Mood {
        seconds: AHEAD_SECONDS + 3,
        refuses: false,
    });
    let behind = place.behind(proxy.address());
    let place = WithKeys::from_agent(&behind, &agent);
    let (daemon, address) = Daemon::on_tcp(&place);
    assert_eq!(keys_in(&proxy.heads()), ["KEY-1"]);
    wait_until("the keys are renewed", || {
        assert_healthy(address);
        1 < *agent.asked.lock()
    });
    assert_healthy(address);
    assert_eq!(keys_in(&proxy.heads()), ["KEY-1", "KEY-2"]);

    // A renewal that fails is no failure as long as the keys are good.
    agent.mood.lock().refuses = true;
    let before = *agent.asked.lock();
    wait_until("a renewal fails", || {
        assert_healthy(address);
        before < *agent.asked.lock()
    });
    assert_healthy(address);
    assert_eq!(keys_in(&proxy.heads()), ["KEY-2"]);
    assert!(daemon.log().contains("credentials not renewed"), "{}", daemon.log());
    // It is not tried again with every request.
    assert_eq!(*agent.asked.lock(), before + 1);
}

/// Keys that have ended are not used any more, and as soon as there are new ones everything goes on.
#[test]
fn without_new_keys_a_server_says_so_and_goes_on_when_it_gets_some() {
    let place = BucketPlace::new(DEMANDS, true);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let agent = Agent::start(Mood {
        seconds: 15,
        refuses: false,
    });
    let behind = place.behind(proxy.address());
    let place = WithKeys::from_agent(&behind, &agent);
    let (daemon, address) = Daemon::on_tcp(&place);
    agent.mood.lock().refuses = true;
    let held = hold(address, "k");
    wait_until("the keys have ended", || {
        let answer = held.keepalive(30);
        answer.status == 503 || {
            thread::sleep(Duration::from_millis(100));
            false
        }
    });
    *agent.mood.lock() = Mood {
        seconds: AHEAD_SECONDS + 600,
        refuses: false,
    };
    wait_until("the server goes on", || {
        thread::sleep(Duration::from_millis(100));
        held.keepalive(30).status == 200
    });
    assert!(daemon.log().contains("credentials not renewed"), "{}", daemon.log());
    proxy.keep_heads();
    assert_healthy(address);
    let keys = keys_in(&proxy.heads());
    assert!(keys.len() == 1 && keys[0] != "KEY-1", "{keys:?}");
}

/// Keys of the environment, else those of the profile that is named, else those of the default one.
#[test]
fn keys_come_from_the_environment_or_from_the_profile_that_is_named() {
    let place = BucketPlace::new(DEMANDS, true);
    let proxy = Proxy::start(place.upstream(), Rates::NONE, 0, &[]);
    let behind = place.behind(proxy.address());
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("credentials");
    let section = |name: &str, number: u32| {
        format!(
            "[{name}]\naws_access_key_id = KEY-{number}\naws_secret_access_key = secret\naws_session_token = \
             TOKEN-{number}\n\n"
        )
    };
    fs::write(&file, section("default", 1) + &section("other", 2)).unwrap();
    let in_file = ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap().to_owned());
    let profile = |name: &str| ("AWS_PROFILE", name.to_owned());
    let environment = [
        ("AWS_ACCESS_KEY_ID", "KEY-3".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ("AWS_SESSION_TOKEN", "TOKEN-3".to_owned()),
    ];
    let cases = [
        (vec![in_file.clone()], "KEY-1"),
        (vec![in_file.clone(), profile("other")], "KEY-2"),
        (
            [&[in_file.clone(), profile("other")][..], &environment].concat(),
            "KEY-3",
        ),
    ];
    for (variables, expected) in cases {
        proxy.keep_heads();
        let place = WithKeys {
            place: &behind,
            variables,
        };
        let _daemon = Daemon::on_tcp(&place);
        assert_eq!(keys_in(&proxy.heads()), [expected]);
    }
    // A profile that was asked for must be there: others are not looked for.
    let place = WithKeys {
        place: &behind,
        variables: vec![in_file, profile("missing")],
    };
    let mut daemon = Daemon::spawn(&place, &["--listen", "127.0.0.1:0"]);
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("AWS_PROFILE: "), "{}", daemon.log());
}
