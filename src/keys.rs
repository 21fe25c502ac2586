//! Names of things, and where their records live. The only place that builds storage keys.
//!
//! ```text
//! k/<namespace>/<key>   the record of a key
//! t/<txn id>            the record of a transaction
//! t/<page>              the same where batches change one record: several transactions share a page
//! p/<txn id>            where the one lease of a transaction lives that acquire made up an id for
//! r/<namespace>         what is kept of the namespace's keys that were deleted for their age
//! n/<namespace>         the configuration of a namespace
//! m/<namespace>/<queue>/<message id>   the record of a message
//! d/<namespace>/<queue>/<message id>   the record of a dead message
//! ```
//!
//! A namespace and a queue name hold no `/`, so the parts are never ambiguous. Message ids sort by the time of their enqueue,
//! and so do the records of a queue. Keys may (`orders/4711`), and may hold `.` and
//! `..` as segments: they are text to us, and an engine that maps names to paths must encode them.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use lockd_client::wire::{NAME_BYTES_MAX, QUEUE_NAME_BYTES_MAX, is_name_byte, normalize_namespace, normalize_queue};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::ids::Xid;

/// A namespace in its one form: lower case, 1 to 128 of `a-z 0-9 . _ -`, not beginning with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Namespace(Arc<str>);

/// A key in its one form: lower case, segments of `a-z 0-9 . _ -` with `/` between them, 1 to 128 bytes in all. Only the key
/// of a message's state may be longer, because it holds the name of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(Arc<str>);

/// The name of a record: printable ASCII, at most 512 bytes, compared byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordKey(Arc<str>);

impl RecordKey {
    /// Wraps a name. Only this module invents names; everybody else passes them on.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets an ordered map of records be searched by a prefix without making a name of it first.
impl Borrow<str> for RecordKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameError(String);

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NameError {}

impl Namespace {
    /// Brings a namespace into its one form. The caller has replaced an empty one by its default.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let Some(name) = normalize_namespace(text) else {
            return Err(NameError(format!(
                "namespace {:?} must be 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, '.', '_' and '-'",
                shown(text.trim())
            )));
        };
        if name.starts_with('.') {
            return Err(NameError(format!("namespace {name:?} is reserved")));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Key {
    /// Brings a key into its one form: trimmed, one leading `/` removed, every segment trimmed and lower-cased.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let name = text.trim();
        let name = name.strip_prefix('/').unwrap_or(name);
        if NAME_BYTES_MAX < name.len() {
            return queue_state_key_from(name)
                .ok_or_else(|| NameError(format!("key is longer than {NAME_BYTES_MAX} bytes")));
        }
        let mut key = String::with_capacity(name.len());
        for segment in name.split('/') {
            let segment = segment.trim();
            if !key.is_empty() {
                key.push('/');
            }
            let legal = segment.bytes().all(|byte| is_name_byte(byte.to_ascii_lowercase()));
            if segment.is_empty() || !legal {
                return Err(NameError(format!(
                    "key {:?}: each segment must be one or more of a-z, 0-9, '.', '_' and '-'",
                    shown(text.trim())
                )));
            }
            key.extend(segment.bytes().map(|byte| char::from(byte.to_ascii_lowercase())));
        }
        Ok(Self(key.into()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for the state that belongs to a queue message: `q/<queue>/state/<id>`.
    pub fn is_queue_state(&self) -> bool {
        let mut segments = self.0.split('/');
        segments.next() == Some("q")
            && segments.next().is_some()
            && segments.next() == Some("state")
            && segments.next().is_some()
            && segments.next().is_none()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A queue's name in its one form: lower case, 1 to 128 of `a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QueueName(Arc<str>);

impl QueueName {
    /// Brings a queue name into its one form.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match normalize_queue(text) {
            Some(name) => Ok(Self(name.into())),
            None => Err(NameError(format!(
                "queue {:?} must be 1 to {QUEUE_NAME_BYTES_MAX} characters of a-z, 0-9, '.', '_' and '-'",
                shown(text.trim())
            ))),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A queue in its namespace: the same name in two namespaces is two queues. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueId {
    /// Namespace.
    pub namespace: Namespace,
    /// Queue.
    pub queue: QueueName,
}

/// The id of a message: a UUID of version 7, so ids sort by the time of their enqueue. 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Uuid);

impl MessageId {
    /// Wraps a UUID that was made for a message.
    pub fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// Reads an id in its one text form: 36 characters, lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let id = Uuid::try_parse(text).ok()?;
        let mut buffer = Uuid::encode_buffer();
        (id.hyphenated().encode_lower(&mut buffer) == text).then_some(Self(id))
    }

    /// The greatest id before this one, whether a message has it or not; `None` before the first.
    pub fn predecessor(self) -> Option<Self> {
        Some(Self(Uuid::from_u128(self.0.as_u128().checked_sub(1)?)))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.write_str(self.0.hyphenated().encode_lower(&mut buffer))
    }
}

/// What acquire echoes: the key as asked for, without surrounding space, one leading `/` and a leading `<namespace>/`.
/// Case stays as it was.
pub fn echoed_key<'a>(text: &'a str, namespace: &Namespace) -> &'a str {
    let key = text.trim();
    let key = key.strip_prefix('/').unwrap_or(key);
    match key.split_at_checked(namespace.as_str().len()) {
        Some((head, tail)) if head.eq_ignore_ascii_case(namespace.as_str()) => tail.strip_prefix('/').unwrap_or(key),
        _ => key,
    }
}

/// What the names of all records of keys begin with.
pub const KEY_PREFIX: &str = "k/";

/// What the names of all records of dead messages begin with.
pub const DEAD_PREFIX: &str = "d/";

/// Where the record of a key lives.
pub fn key_record(namespace: &Namespace, key: &Key) -> RecordKey {
    RecordKey::new(["k/", namespace.as_str(), "/", key.as_str()].concat())
}

/// True for the record of a key, as opposed to one of a transaction or a namespace.
pub fn is_key_record(record_key: &RecordKey) -> bool {
    record_key.as_str().starts_with(KEY_PREFIX)
}

/// Which key the name of a record stands for; `None` for a record of another kind.
pub fn key_of(record_key: &RecordKey) -> Option<(Namespace, Key)> {
    let (namespace, key) = record_key.as_str().strip_prefix(KEY_PREFIX)?.split_once('/')?;
    Some((Namespace(namespace.into()), Key(key.into())))
}

/// The record of the message whose state this key holds; `None` for any other key.
pub fn message_of_state(namespace: &Namespace, key: &Key) -> Option<RecordKey> {
    if !key.is_queue_state() {
        return None;
    }
    let mut segments = key.as_str().split('/');
    let (queue, id) = (segments.nth(1)?, segments.nth(1)?);
    Some(RecordKey::new(format!("m/{namespace}/{queue}/{id}")))
}

/// Where the record of what is kept of a namespace's deleted keys lives.
pub fn retired_record(namespace: &Namespace) -> RecordKey {
    RecordKey::new(["r/", namespace.as_str()].concat())
}

/// What the names of all transaction records begin with.
pub const TXN_PREFIX: &str = "t/";

/// Where the record of a transaction lives.
pub fn txn_record(txn_id: &Xid) -> RecordKey {
    RecordKey::new([TXN_PREFIX, txn_id.as_str()].concat())
}

/// How many pages [`txn_page`] tells apart.
const TXN_PAGES: u64 = 256;

/// The page that a transaction is written on where several share one. Pages are few and stay, so that a name which a
/// client may use again is never deleted.
pub fn txn_page(txn_id: &Xid) -> RecordKey {
    // FNV-1a: the same for ever, on every machine.
    let hash = txn_id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    RecordKey::new(format!("{TXN_PREFIX}{:03x}", hash % TXN_PAGES))
}

/// What the names of all pointers begin with.
pub const POINTER_PREFIX: &str = "p/";

/// Where it is written down which lease acquire made up a transaction id for.
pub fn txn_pointer(txn_id: &Xid) -> RecordKey {
    RecordKey::new([POINTER_PREFIX, txn_id.as_str()].concat())
}

/// True for names that are written once and, when they have been deleted, never again: an engine may then remove what is
/// left of them without asking who else might be at it. Messages and dead messages, the states that belong to messages,
/// and pointers.
pub fn is_used_once(record_key: &RecordKey) -> bool {
    let is_state_of_message =
        || key_of(record_key).is_some_and(|(namespace, key)| message_of_state(&namespace, &key).is_some());
    let name = record_key.as_str();
    ["m/", DEAD_PREFIX, POINTER_PREFIX]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || is_state_of_message()
}

/// What the names of all records of a queue's messages begin with.
pub fn message_prefix(queue: &QueueId) -> String {
    ["m/", queue.namespace.as_str(), "/", queue.queue.as_str(), "/"].concat()
}

/// Where the record of a message lives.
pub fn message_record(queue: &QueueId, id: MessageId) -> RecordKey {
    RecordKey::new(format!("m/{}/{}/{id}", queue.namespace, queue.queue))
}

/// Where the record of a dead message lives.
pub fn dead_message_record(queue: &QueueId, id: MessageId) -> RecordKey {
    RecordKey::new(format!("d/{}/{}/{id}", queue.namespace, queue.queue))
}

/// Which message the name of a record stands for; `None` for a record of another kind.
pub fn message_of(record_key: &RecordKey) -> Option<(QueueId, MessageId)> {
    let mut parts = record_key.as_str().strip_prefix("m/")?.split('/');
    let (namespace, queue, id) = (parts.next()?, parts.next()?, parts.next()?);
    let queue = QueueId {
        namespace: Namespace(namespace.into()),
        queue: QueueName(queue.into()),
    };
    Some((queue, MessageId::parse(id)?))
}

/// The key that holds the state of a message, in the namespace of the message: `q/<queue>/state/<message id>`. It may be
/// longer than a key of a client's own may be.
pub fn queue_state_key(queue: &QueueName, id: MessageId) -> Key {
    Key(format!("q/{queue}/state/{id}").into())
}

/// The key of a message's state, from text that is longer than other keys may be.
fn queue_state_key_from(text: &str) -> Option<Key> {
    let mut segments = text.split('/').map(str::trim);
    let (first, queue, kind) = (segments.next()?, segments.next()?, segments.next()?);
    let id = MessageId::parse(&segments.next()?.to_ascii_lowercase())?;
    if !first.eq_ignore_ascii_case("q") || !kind.eq_ignore_ascii_case("state") || segments.next().is_some() {
        return None;
    }
    Some(queue_state_key(&QueueName::parse(queue).ok()?, id))
}

/// Where the configuration of a namespace lives.
pub fn namespace_record(namespace: &Namespace) -> RecordKey {
    RecordKey::new(["n/", namespace.as_str()].concat())
}

/// Caps what an error message repeats of the caller's text.
fn shown(text: &str) -> String {
    text.chars().take(NAME_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Option<String> {
        Key::parse(text).ok().map(|key| key.as_str().to_owned())
    }

    #[test]
    fn keys_have_one_form() {
        assert_eq!(key("Orders/A").as_deref(), Some("orders/a"));
        assert_eq!(key(" /a ").as_deref(), Some("a"));
        assert_eq!(key("a / b").as_deref(), Some("a/b"));
        assert_eq!(key("..").as_deref(), Some(".."));
        assert_eq!(key(&"k".repeat(128)).map(|key| key.len()), Some(128));
    }

    #[test]
    fn the_name_of_a_keys_record_leads_back_to_the_key() {
        let (shop, orders) = (Namespace::parse("shop").unwrap(), Key::parse("orders/4711").unwrap());
        assert_eq!(key_of(&key_record(&shop, &orders)), Some((shop.clone(), orders)));
        assert_eq!(key_of(&namespace_record(&shop)), None);
    }

    #[test]
    fn malformed_keys_are_refused() {
        for bad in ["", "/", "a//b", "a b", "a/", "a\u{fc}", "//a", &"k".repeat(129)] {
            assert_eq!(key(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn acquire_echoes_the_key_without_its_namespace() {
        let shop = Namespace::parse("shop").unwrap();
        assert_eq!(echoed_key(" /shop/Orders/A", &shop), "Orders/A");
        assert_eq!(echoed_key("Orders/A", &shop), "Orders/A");
        assert_eq!(echoed_key("shop", &shop), "shop");
        assert_eq!(echoed_key("shopping/a", &shop), "shopping/a");
        assert_eq!(echoed_key("\u{fc}\u{fc}\u{fc}", &shop), "\u{fc}\u{fc}\u{fc}");
    }

    #[test]
    fn the_key_of_a_state_may_be_as_long_as_the_name_of_its_queue_makes_it() {
        let id = MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap();
        for queue_bytes in [1, 84, 85, 86, 128] {
            let queue = "q".repeat(queue_bytes);
            let key = queue_state_key(&QueueName::parse(&queue).unwrap(), id);
            assert_eq!(Key::parse(key.as_str()), Ok(key.clone()));
            assert_eq!(
                Key::parse(&format!(" /{} ", key.as_str().to_uppercase())),
                Ok(key.clone())
            );
            assert!(key.is_queue_state());
        }
        let long = "q".repeat(128);
        for bad in [
            format!("q/{long}q/state/{id}"),
            format!("q/{long}/msg/{id}"),
            format!("q/{long}/state/{id}/x"),
            format!("q/{long}/state/x"),
            format!("x/{long}/state/{id}"),
            format!("q/{long}//{id}"),
        ] {
            assert!(Key::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_and_malformed_namespaces_are_refused() {
        assert!(
            Namespace::parse(".txns")
                .unwrap_err()
                .to_string()
                .contains("is reserved")
        );
        assert!(Namespace::parse("a/b").is_err());
        assert_eq!(Namespace::parse(" Shop ").unwrap().as_str(), "shop");
    }

    #[test]
    fn a_message_is_known_by_the_name_of_its_record() {
        let queue = QueueId {
            namespace: Namespace::parse("shop").unwrap(),
            queue: QueueName::parse(" Orders ").unwrap(),
        };
        let id = MessageId::parse("0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50").unwrap();
        let record_key = message_record(&queue, id);
        assert_eq!(
            record_key.as_str(),
            "m/shop/orders/0198f2aa-6d10-7c3b-9e55-0b1c2d3e4f50"
        );
        assert!(record_key.as_str().starts_with(&message_prefix(&queue)));
        assert_eq!(message_of(&record_key), Some((queue.clone(), id)));
        assert_eq!(message_of(&dead_message_record(&queue, id)), None);
        assert!(queue_state_key(&queue.queue, id).is_queue_state());
        for bad in [
            "",
            "0198F2AA-6D10-7C3B-9E55-0B1C2D3E4F50",
            "0198f2aa6d107c3b9e550b1c2d3e4f50",
            "x",
        ] {
            assert_eq!(MessageId::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn queue_state_keys_are_told_from_others() {
        let shop = Namespace::parse("shop").unwrap();
        let message = |key: &str| message_of_state(&shop, &Key::parse(key).unwrap());
        assert_eq!(message("q/x/state/y"), Some(RecordKey::new("m/shop/x/y")));
        assert_eq!(message("q/x/msg/y"), None);
        assert!(Key::parse("q/x/state/y").unwrap().is_queue_state());
        assert!(!Key::parse("q/x/msg/y").unwrap().is_queue_state());
        assert!(!Key::parse("q/x/state").unwrap().is_queue_state());
        assert!(!Key::parse("a/q/x/state/y").unwrap().is_queue_state());
    }
}
