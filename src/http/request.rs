//! From text to values: query parameters, headers, strict JSON.
//!
//! Each function says with which code it refuses what it cannot take. Nothing here looks at a record.

use std::borrow::Cow;
use std::fmt;

use lockd_client::wire::codes;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::reply::BadRequest;
use crate::keys::{Key, Namespace};

/// The parameters of a query. The first of several with one name counts; a pair that cannot be decoded counts as absent.
#[derive(Debug, Default)]
pub struct Query<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'a> Query<'a> {
    /// Takes a query apart.
    pub fn parse(query: &'a str) -> Self {
        let sound = query
            .split('&')
            .filter(|pair| !pair.contains(';') && has_sound_escapes(pair));
        Self {
            pairs: sound.flat_map(|pair| form_urlencoded::parse(pair.as_bytes())).collect(),
        }
    }

    /// A parameter, trimmed; empty when it is absent.
    pub fn get(&self, name: &str) -> &str {
        self.pairs
            .iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value.trim())
    }

    /// A switch: `1`, `true`, `on` and `yes` in any case.
    pub fn is_set(&self, name: &str) -> bool {
        ["1", "true", "on", "yes"]
            .iter()
            .any(|word| self.get(name).eq_ignore_ascii_case(word))
    }
}

fn has_sound_escapes(pair: &str) -> bool {
    pair.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

/// A namespace; an empty text means the default.
pub fn namespace(text: &str, default: &Namespace) -> Result<Namespace, BadRequest> {
    if text.trim().is_empty() {
        return Ok(default.clone());
    }
    Namespace::parse(text).map_err(|cause| BadRequest::new(codes::INVALID_NAMESPACE, cause.to_string()))
}

/// A key that must be there.
pub fn key(text: &str) -> Result<Key, BadRequest> {
    Key::parse(text).map_err(|cause| BadRequest::new(codes::INVALID_KEY, cause.to_string()))
}

/// A signed 64-bit integer in base 10, if there is one.
pub fn integer(text: Option<&str>, code: &'static str, what: &str) -> Result<Option<i64>, BadRequest> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(BadRequest::new(code, format!("{what} must be a 64-bit integer"))),
        },
    }
}

/// The fencing token, which every leased call must bring.
pub fn fencing_token(text: Option<&str>) -> Result<i64, BadRequest> {
    integer(text, codes::INVALID_FENCING_TOKEN, "X-Fencing-Token")?
        .ok_or_else(|| BadRequest::new(codes::MISSING_FENCING_TOKEN, "X-Fencing-Token is required"))
}

/// The switch of the query-hidden header, in the spellings that clients use.
pub fn query_hidden(text: Option<&str>) -> Result<Option<bool>, BadRequest> {
    match text {
        None | Some("") => Ok(None),
        Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(Some(true)),
        Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(Some(false)),
        Some(_) => Err(BadRequest::new(
            codes::INVALID_METADATA,
            "X-Lockd-Meta-Query-Hidden must be a boolean",
        )),
    }
}

/// An etag without surrounding space and quotes; `None` when nothing is left.
pub fn etag(text: Option<&str>) -> Option<String> {
    let etag = text?.trim_matches(|c: char| c.is_whitespace() || c == '"');
    (!etag.is_empty()).then(|| etag.to_owned())
}

/// One JSON object with known members only.
///
/// Member names match in any case, the last of several with one name counts, `null` is as good as absent, and a body of
/// `null` is an empty object. Everything else that is unusual is refused.
pub fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadRequest> {
    // What needs no leniency, which is nearly everything, is read straight into its type.
    // An array would pass for an object there.
    if body.trim_ascii_start().first() == Some(&b'{')
        && let Ok(value) = serde_json::from_slice(body)
    {
        return Ok(value);
    }
    let bad = |cause: serde_json::Error| BadRequest::new(codes::INVALID_BODY, cause.to_string());
    let Members(members) = serde_json::from_slice::<Option<Members>>(body)
        .map_err(bad)?
        .unwrap_or_default();
    T::deserialize(Value::Object(members)).map_err(bad)
}

/// An object's members under lower-case names, those that are `null` left out, at every depth.
#[derive(Default)]
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some(name) = access.next_key::<String>()? {
                    let name = name.to_lowercase();
                    match normalized(access.next_value()?) {
                        Value::Null => members.remove(&name),
                        value => members.insert(name, value),
                    };
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

fn normalized(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(name, value)| (name.to_lowercase(), normalized(value)))
                    .collect(),
            )
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use lockd_client::wire::{AcquireRequest, KeepaliveRequest, NamespaceRequest};

    use super::*;

    fn acquire(body: &str) -> Option<AcquireRequest> {
        json(body.as_bytes()).ok()
    }

    #[test]
    fn json_bodies_are_strict_where_it_matters() {
        for bad in [
            "",
            " ",
            "{",
            "{} {}",
            "{}x",
            "[]",
            "\"x\"",
            "1",
            "{\"unknown\":1}",
            "{\"ttl_seconds\":3.0}",
            "{\"ttl_seconds\":1e1}",
            "{\"ttl_seconds\":\"3\"}",
            "{\"ttl_seconds\":99999999999999999999}",
            "{\"owner\":1}",
            "{\"if_not_exists\":1}",
            "\u{feff}{}",
        ] {
            assert_eq!(acquire(bad), None, "{bad}");
        }
    }

    #[test]
    fn json_bodies_are_lenient_where_clients_need_it() {
        assert_eq!(acquire("null"), Some(AcquireRequest::default()));
        assert_eq!(acquire(" {} \r\n"), Some(AcquireRequest::default()));
        assert_eq!(acquire("{\"ttl_seconds\":null}"), Some(AcquireRequest::default()));
        assert_eq!(acquire("{\"Key\":\"a\",\"KEY\":\"b\"}").unwrap().key, "b");
        assert_eq!(acquire("{\"key\":\"a\",\"key\":null}").unwrap().key, "");
        let keepalive: KeepaliveRequest = json(b"{\"fencing_token\":7}").unwrap();
        assert_eq!(keepalive.fencing_token, Some(7));
        let namespace: NamespaceRequest = json(b"{\"query\":{\"Preferred_Engine\":\"scan\"}}").unwrap();
        assert_eq!(namespace.query.unwrap().preferred_engine, "scan");
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_overflow() {
        assert_eq!(acquire(&format!("{{\"owner\":{}", "[".repeat(100_000))), None);
    }

    #[test]
    fn the_first_of_repeated_parameters_counts_and_bad_pairs_are_absent() {
        let query = Query::parse("key=a&key=b&x=%zz&y=%4&z=a;b&w=a%2Fb+c&public=YES&n");
        assert_eq!(
            (query.get("key"), query.get("x"), query.get("y"), query.get("z")),
            ("a", "", "", "")
        );
        assert_eq!((query.get("w"), query.get("n"), query.get("none")), ("a/b c", "", ""));
        assert!(query.is_set("public") && !query.is_set("key"));
    }

    #[test]
    fn etags_come_with_and_without_quotes() {
        assert_eq!(etag(Some(" \"abc\" ")).as_deref(), Some("abc"));
        assert_eq!(etag(Some("\"\"")), None);
        assert_eq!(etag(None), None);
    }

    #[test]
    fn integers_are_signed_and_whole() {
        for (text, expected) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
        ] {
            assert_eq!(integer(Some(text), "c", "x").unwrap(), expected);
        }
        for bad in ["abc", "1.0", "9223372036854775808", "0x1", "1 2"] {
            assert!(integer(Some(bad), "c", "x").is_err(), "{bad}");
        }
    }
}
