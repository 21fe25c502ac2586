//! Names of objects: where a record or a body lies in the bucket.
//!
//! ```text
//! <prefix>/r/<encoded record key>!     a record
//! <prefix>/b/<body id>                 a body
//! <prefix>/.lockd/<anything>           what the start-up check writes, and removes again
//! ```
//!
//! A record key is text of other people's choosing, and an object name goes into URLs and, in some stores, into paths.
//! The encoding keeps the order of the keys and what begins with what, so that a listing of objects is a listing of
//! records, and its names are harmless:
//!
//! - No segment is empty, `.` or `..`, and none is longer than [`SEGMENT_BYTES_MAX`] and three more: under some
//!   addressing `..` leads into another bucket, and stores that keep objects in files have limits of their own.
//! - No record's name is a directory of another's, which such stores cannot have either: the last segment of every name
//!   ends with `!`, and no other does. `!` is less than everything that may follow in a longer key, so `a` is listed
//!   before `a/b` and `a-b`, as it must be.
//! - Characters that services ask to avoid do not occur, except for the back quote.
//!
//! Ordinary keys look as they did: `k/shop/orders/4711` lies under `r/k/shop/orders/4711!`.
//!
//! | byte of the key | is written as |
//! |---|---|
//! | `0-9 A-Y a-z _ -` and the back quote | itself |
//! | `.` | `.`, at the beginning of a segment `.-` |
//! | `/` | `/`, at the beginning of a segment `.0/` |
//! | space to `,` | `(a` to `(m` |
//! | `:` to `@` | `=a` to `=g` |
//! | `Z` to `^` | `Za` to `Ze` |
//! | `{` to `~` | `~a` to `~d` |
//!
//! A segment that has grown to its limit is cut by a `/` before the next byte, whatever that is.

/// A segment is cut once it has so many bytes.
pub(super) const SEGMENT_BYTES_MAX: usize = 200;
/// What services take as a whole name.
pub(super) const NAME_BYTES_MAX: usize = 1024;

/// Ends the name of a record.
const END: char = '!';

/// The name of a whole record key. `None` if the key is no printable ASCII.
pub(super) fn encode(key: &str) -> Option<String> {
    let mut name = encode_prefix(key)?;
    name.push(END);
    Some(name)
}

/// What the names of all keys begin with that begin with `prefix`, and of no others.
pub(super) fn encode_prefix(prefix: &str) -> Option<String> {
    let mut name = String::with_capacity(prefix.len() + 8);
    let mut segment_bytes = 0;
    for byte in prefix.bytes() {
        if SEGMENT_BYTES_MAX <= segment_bytes {
            name.push('/');
            segment_bytes = 0;
        }
        let before = name.len();
        match byte {
            b'.' if segment_bytes == 0 => name.push_str(".-"),
            b'/' if segment_bytes == 0 => name.push_str(".0/"),
            b'/' | b'.' | b'0'..=b'9' | b'A'..=b'Y' | b'a'..=b'z' | b'_' | b'-' | b'`' => name.push(char::from(byte)),
            _ => {
                let (lead, first, _) = ESCAPES
                    .into_iter()
                    .find(|(_, first, last)| (*first..=*last).contains(&byte))?;
                name.push(char::from(lead));
                name.push(char::from(b'a' + (byte - first)));
            }
        }
        segment_bytes = if byte == b'/' {
            0
        } else {
            segment_bytes + name.len() - before
        };
    }
    Some(name)
}

/// Lead of an escape, and the first and the last byte that it stands for. Each lead is an escaped byte or one of those
/// that do not occur otherwise, and lies in order between the bytes around its range.
const ESCAPES: [(u8, u8, u8); 4] = [
    (b'(', b' ', b','),
    (b'=', b':', b'@'),
    (b'Z', b'Z', b'^'),
    (b'~', b'{', b'~'),
];

/// The record key of a name that [`encode`] has made. `None` for any other name.
pub(super) fn decode(name: &str) -> Option<String> {
    let body = name.strip_suffix(END)?;
    let mut key = String::with_capacity(body.len());
    let mut rest = body.bytes();
    let mut segment_bytes = 0;
    while let Some(byte) = rest.next() {
        let (key_byte, written) = match byte {
            b'/' if SEGMENT_BYTES_MAX <= segment_bytes => {
                segment_bytes = 0;
                continue;
            }
            b'.' if segment_bytes == 0 => match rest.next()? {
                b'-' => (b'.', 2),
                b'0' if rest.next() == Some(b'/') => (b'/', 0),
                _ => return None,
            },
            _ => match ESCAPES.into_iter().find(|(lead, _, _)| *lead == byte) {
                Some((_, first, last)) => {
                    let offset = rest.next()?.checked_sub(b'a')?;
                    (first.checked_add(offset).filter(|byte| *byte <= last)?, 2)
                }
                None => (byte, 1),
            },
        };
        segment_bytes = if key_byte == b'/' { 0 } else { segment_bytes + written };
        key.push(char::from(key_byte));
    }
    // Whatever was read leniently above is not one of ours.
    (encode(&key).as_deref() == Some(name)).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_keys_look_as_they_did() {
        for key in [
            "k/shop/orders/4711",
            "t/d4k7q2m0h5r8e1t6n9b0",
            "n/my_shop",
            "k/a/b.json",
        ] {
            assert_eq!(encode(key), Some(format!("{key}!")));
        }
    }

    #[test]
    fn odd_keys_become_harmless_names() {
        for (key, name) in [
            ("", "!"),
            ("..", ".-.!"),
            ("../x", ".-./x!"),
            ("/a", ".0/a!"),
            ("a//b", "a/.0/b!"),
            ("a/", "a/!"),
            ("a b%", "a(ab(f!"),
            ("Z[~", "ZaZb~d!"),
        ] {
            assert_eq!(encode(key).as_deref(), Some(name));
            assert_eq!(decode(name).as_deref(), Some(key));
        }
        let long = "x".repeat(450);
        let name = encode(&long).unwrap();
        let lengths: Vec<usize> = name.split('/').map(str::len).collect();
        assert_eq!(lengths, [200, 200, 51]);
        assert_eq!(decode(&name), Some(long));
        assert_eq!(encode("\u{fc}"), None);
        assert_eq!(encode("a\n"), None);
    }

    #[test]
    fn foreign_names_are_no_keys() {
        for name in [
            "", "a", "a!b", "./!", "//!", "a//b!", "(!", "(z!", "=!", "a/../b!", ".!", "[!",
        ] {
            assert_eq!(decode(name), None, "{name}");
        }
    }

    /// Keys of a few characters that matter, many of them close to a place where a segment is cut.
    fn random_key(rng: &mut fastrand::Rng) -> String {
        let alphabet = b" !,-./09:@AYZ[^_`az{~";
        let mut key = "y".repeat(if rng.bool() { 0 } else { rng.usize(195..203) });
        key.extend((0..rng.usize(..6)).map(|_| char::from(*rng.choice(alphabet).unwrap())));
        key
    }

    #[test]
    fn order_prefixes_and_harmlessness_hold_for_random_keys() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200_000 {
            let (a, b) = (random_key(&mut rng), random_key(&mut rng));
            let (name_a, name_b) = (encode(&a).unwrap(), encode(&b).unwrap());
            assert_eq!(a.cmp(&b), name_a.cmp(&name_b), "{a} {b}: {name_a} {name_b}");
            assert_eq!(
                b.starts_with(&a),
                name_b.starts_with(&encode_prefix(&a).unwrap()),
                "{a} {b}: {name_b}"
            );
            assert_eq!(decode(&name_a), Some(a), "{name_a}");
            for segment in name_a.split('/') {
                assert!(
                    !["", ".", ".."].contains(&segment) && segment.len() <= SEGMENT_BYTES_MAX + 3,
                    "{name_a}"
                );
            }
            assert!(
                !name_b.starts_with(&format!("{name_a}/")),
                "{name_a} is a directory of {name_b}"
            );
        }
    }
}
