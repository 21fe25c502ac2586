//! Tables of good and bad input, random input against its known form, and agreement with serde_json.

use serde::de::IgnoredAny;

use super::*;
use crate::clock::{Clock, SystemClock};

/// Runs a compactor over the input in pieces of these sizes, over and over.
fn compact_in_pieces(input: &[u8], mut next_size: impl FnMut() -> usize) -> Result<Vec<u8>, JsonError> {
    let mut compactor = JsonCompactor::new();
    let mut out = Vec::new();
    let mut rest = input;
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(next_size().min(rest.len()));
        compactor.push(piece, &mut out)?;
        rest = later;
    }
    compactor.finish()?;
    Ok(out)
}

/// The result, which must be the same in one piece and byte by byte.
fn compact_both_ways(input: &[u8]) -> Result<Vec<u8>, JsonError> {
    let whole = compact(input);
    assert_eq!(whole, compact_in_pieces(input, || 1), "{}", input.escape_ascii());
    whole
}

/// A generator whose seed is printed, so that a failure can be run again with `LOCKD_TEST_SEED`.
fn seeded() -> fastrand::Rng {
    let given = std::env::var("LOCKD_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("LOCKD_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

#[test]
fn only_insignificant_white_space_is_removed() {
    let table: &[(&[u8], &[u8])] = &[
        (br#"{ "b" : 1.0, "a":"\u0041" }"#, br#"{"b":1.0,"a":"\u0041"}"#),
        (b" \t\r\n1 \t\r\n", b"1"),
        (b"[ ]", b"[]"),
        (b"{ }", b"{}"),
        (b"[1 , 2\n,\t3 ]", b"[1,2,3]"),
        (b"[ [ ] , { } , [ { \"a\" : [ ] } ] ]", b"[[],{},[{\"a\":[]}]]"),
        (b"\" a \\\" b  \"", b"\" a \\\" b  \""),
        (b"                  true                       ", b"true"),
        (b"[\n        \n                1]", b"[1]"),
    ];
    for (input, compacted) in table {
        let result = compact_both_ways(input).unwrap();
        assert_eq!(result.escape_ascii().to_string(), compacted.escape_ascii().to_string());
    }
}

#[test]
fn the_example_of_the_protocol_has_its_22_bytes() {
    assert_eq!(compact(br#"{ "b" : 1.0, "a":"\u0041" }"#).unwrap().len(), 22);
}

#[test]
fn every_kind_of_value_is_taken_and_its_spelling_survives() {
    let table: &[&[u8]] = &[
        b"null",
        b"true",
        b"false",
        b"0",
        b"-0",
        b"-1",
        b"0.0",
        b"-0.10",
        b"10",
        b"1.0",
        b"1e400",
        b"1E+05",
        b"1e-5",
        b"0e1",
        b"0E0",
        b"0.5e00",
        b"123456789012345678901234567890123456789.0123456789",
        b"-9999999999999999999999999999999999999999",
        b"\"\"",
        br#""\"\\\/\b\f\n\r\t\u0000\uABCD\uabcd""#,
        // Lone and swapped surrogates.
        br#""\ud800""#,
        br#""\udc00\ud800""#,
        // Characters above ASCII, DEL, U+2028, a NUL escape.
        "\"\u{7f}\u{80}\u{2028}\u{10ffff}\u{feff}\"".as_bytes(),
        // Bytes that are not UTF-8: a lone continuation, an overlong form, a surrogate, a cut sequence.
        b"\"\x80\xc0\xaf\xed\xa0\x80\xf0\x9f\"",
        b"[]",
        b"{}",
        b"[[]]",
        br#"{"a":1,"a":1,"":null,"a":2}"#,
        br#"{"b":1,"a":2}"#,
        br#"["a",{"b":[true,false,null]},-1.5e-7]"#,
        br#"{"\u0061":{"a":{"a":[{}]}}}"#,
    ];
    for input in table {
        let result = compact_both_ways(input).unwrap();
        assert_eq!(result.escape_ascii().to_string(), input.escape_ascii().to_string());
    }
}

#[test]
fn what_is_not_one_value_is_refused_and_the_error_says_where_and_why() {
    use Expected::*;
    let table: &[(&[u8], u64, Expected)] = &[
        // No value, more than one, a byte-order mark, other white space.
        (b"", 0, Value),
        (b" \r\n\t ", 5, Value),
        (b"{}{}", 2, End),
        (b"1 2", 2, End),
        (b"1,", 1, End),
        (b"null null", 5, End),
        (b"[]]", 2, End),
        (b"{}}", 2, End),
        (b"\"a\"\"b\"", 3, End),
        (b"\xef\xbb\xbf{}", 0, Value),
        (b"\xff\xfe{\0}\0", 0, Value),
        (b"\x0c1", 0, Value),
        (b"\x0b1", 0, Value),
        (b"\xc2\xa01", 0, Value),
        (b"[\xe2\x81\xa0]", 1, ValueOrArrayEnd),
        (b"1\0", 1, End),
        (b"\0", 0, Value),
        // Arrays.
        (b"[", 1, ValueOrArrayEnd),
        (b"[1", 2, CommaOrArrayEnd),
        (b"[1,", 3, Value),
        (b"[1,]", 3, Value),
        (b"[,1]", 1, ValueOrArrayEnd),
        (b"[,]", 1, ValueOrArrayEnd),
        (b"[1,,2]", 3, Value),
        (b"[1 2]", 3, CommaOrArrayEnd),
        (b"[1:2]", 2, CommaOrArrayEnd),
        (b"[1}", 2, CommaOrArrayEnd),
        (b"]", 0, Value),
        (b"[[]", 3, CommaOrArrayEnd),
        (b"[\"a\"", 4, CommaOrArrayEnd),
        // Objects.
        (b"{", 1, NameOrObjectEnd),
        (b"}", 0, Value),
        (b"{,}", 1, NameOrObjectEnd),
        (b"{1:1}", 1, NameOrObjectEnd),
        (b"{a:1}", 1, NameOrObjectEnd),
        (b"{'a':1}", 1, NameOrObjectEnd),
        (b"{null:1}", 1, NameOrObjectEnd),
        (b"{[]:1}", 1, NameOrObjectEnd),
        (b"{]", 1, NameOrObjectEnd),
        (b"{\"a\"", 4, Colon),
        (b"{\"a\"}", 4, Colon),
        (b"{\"a\",1}", 4, Colon),
        (b"{\"a\" 1}", 5, Colon),
        (b"{\"a\":", 5, Value),
        (b"{\"a\":}", 5, Value),
        (b"{\"a\"::1}", 5, Value),
        (b"{\"a\":1", 6, CommaOrObjectEnd),
        (b"{\"a\":1]", 6, CommaOrObjectEnd),
        (b"{\"a\":1 \"b\":2}", 7, CommaOrObjectEnd),
        (b"{\"a\":1,}", 7, Name),
        (b"{\"a\":1,,\"b\":2}", 7, Name),
        (b"{\"a\":1,1}", 7, Name),
        (b"{\"a\":1,", 7, Name),
        (b"[{]", 2, NameOrObjectEnd),
        (b"{\"a\":[}", 6, ValueOrArrayEnd),
        // Strings.
        (b"\"", 1, StringByte),
        (b"\"a", 2, StringByte),
        (b"\"a\nb\"", 2, StringByte),
        (b"\"\t\"", 1, StringByte),
        (b"\"\0\"", 1, StringByte),
        (b"\"12345678\x1f\"", 9, StringByte),
        (b"{\"a\r\":1}", 3, StringByte),
        (b"\"\\", 2, Escape),
        (b"\"\\\"", 3, StringByte),
        (b"\"\\a\"", 2, Escape),
        (b"\"\\'\"", 2, Escape),
        (b"\"\\x00\"", 2, Escape),
        (b"\"\\U0041\"", 2, Escape),
        (b"\"\\\n\"", 2, Escape),
        (b"\"\\u", 3, HexDigit),
        (b"\"\\u004\"", 6, HexDigit),
        (b"\"\\u00g0\"", 5, HexDigit),
        (b"\"\\u+041\"", 3, HexDigit),
        (b"'a'", 0, Value),
        (b"a", 0, Value),
        // Numbers.
        (b"01", 1, End),
        (b"-01", 2, End),
        (b"00", 1, End),
        (b"[01]", 2, CommaOrArrayEnd),
        (b"1.", 2, Digit),
        (b"[1.]", 3, Digit),
        (b"1.e1", 2, Digit),
        (b"1..2", 2, Digit),
        (b"1.2.3", 3, End),
        (b"+1", 0, Value),
        (b".5", 0, Value),
        (b"-", 1, Digit),
        (b"--1", 1, Digit),
        (b"-.5", 1, Digit),
        (b"- 1", 1, Digit),
        (b"-a", 1, Digit),
        (b"1e", 2, DigitOrSign),
        (b"1ee1", 2, DigitOrSign),
        (b"1e.5", 2, DigitOrSign),
        (b"1e+", 3, Digit),
        (b"1e+-1", 3, Digit),
        (b"1e1.5", 3, End),
        (b"1 .5", 2, End),
        (b"0x10", 1, End),
        (b"1_000", 1, End),
        (b"1,000", 1, End),
        (b"Infinity", 0, Value),
        (b"-Infinity", 1, Digit),
        (b"NaN", 0, Value),
        (b"{\"a\":1e}", 7, DigitOrSign),
        (b"\xef\xbc\x91", 0, Value),
        // Words.
        (b"t", 1, Word("true")),
        (b"tru", 3, Word("true")),
        (b"trues", 4, End),
        (b"truth", 3, Word("true")),
        (b"True", 0, Value),
        (b"TRUE", 0, Value),
        (b"fals", 4, Word("false")),
        (b"fal se", 3, Word("false")),
        (b"nul", 3, Word("null")),
        (b"nulL", 3, Word("null")),
        (b"[nul]", 4, Word("null")),
        (b"undefined", 0, Value),
        // What other formats allow.
        (b"// a\n1", 0, Value),
        (b"[1 /* a */]", 3, CommaOrArrayEnd),
        (b"1 # a", 2, End),
        (b"{\"a\" = 1}", 5, Colon),
        (b"(1)", 0, Value),
        (b"<null>", 0, Value),
        (b"\x1f\x8b\x08\0", 0, Value),
    ];
    for (input, offset, expected) in table {
        let shown = input.escape_ascii();
        let error = compact_both_ways(input).expect_err(&shown.to_string());
        let found = input.get(*offset as usize).copied();
        let wanted = JsonError {
            offset: *offset,
            expected: *expected,
            found,
        };
        assert_eq!(error, wanted, "{shown}");
        assert!(
            serde_json::from_slice::<IgnoredAny>(input).is_err(),
            "serde_json takes {shown}"
        );
    }
}

#[test]
fn errors_read_well() {
    let text = |input: &[u8]| compact(input).unwrap_err().to_string();
    assert_eq!(
        text(b"{\"a\":1]"),
        "invalid JSON at byte 6: expected `,` or `}`, found `]`"
    );
    assert_eq!(
        text(b"[tru"),
        "invalid JSON at byte 4: expected `true`, found the end of the input"
    );
    assert_eq!(
        text(b"\"\n\""),
        "invalid JSON at byte 1: expected more of a string, with control characters escaped, found byte 0x0a"
    );
}

#[test]
fn an_error_is_repeated_whatever_comes_after_it() {
    let mut compactor = JsonCompactor::new();
    let mut out = Vec::new();
    compactor.push(b"[1, ", &mut out).unwrap();
    let error = compactor.push(b"]", &mut out).unwrap_err();
    assert_eq!(error.offset, 4);
    assert_eq!(compactor.push(b"2]", &mut out).unwrap_err(), error);
    assert_eq!(compactor.push(b"", &mut out).unwrap_err(), error);
    assert_eq!(compactor.finish().unwrap_err(), error);
}

#[test]
fn nesting_is_bounded_by_a_limit_and_not_by_the_stack() {
    // On a small stack, so that recursion would show.
    let thread = std::thread::Builder::new().stack_size(64 * 1024);
    let body = || {
        // Arrays and objects in turn, so that the bits differ.
        let opening = |depth: usize| ["[", "{\"\":"].into_iter().cycle().take(depth).collect::<String>();
        let closing = |depth: usize| ["]", "}"].into_iter().cycle().take(depth).collect::<String>();
        let nested = |depth: usize| {
            let ends: String = closing(depth).chars().rev().collect();
            opening(depth) + "1" + &ends
        };

        let deepest = nested(DEPTH_MAX);
        assert_eq!(compact(deepest.as_bytes()).unwrap(), deepest.as_bytes());

        let error = compact(nested(DEPTH_MAX + 1).as_bytes()).unwrap_err();
        assert_eq!(error.expected, Expected::LessDepth);
        assert_eq!(error.offset, opening(DEPTH_MAX).len() as u64);

        // One wrong end in the middle of the way out is found.
        let mut crossed = nested(10_001).into_bytes();
        let middle = crossed.len() - 5_000;
        crossed[middle] = if crossed[middle] == b']' { b'}' } else { b']' };
        assert_eq!(compact(&crossed).unwrap_err().offset, middle as u64);
    };
    thread.spawn(body).unwrap().join().unwrap();
}

/// Writes a random value twice: as it should come out, and with white space wherever it may stand.
struct Writer {
    rng: fastrand::Rng,
    compact: Vec<u8>,
    spaced: Vec<u8>,
}

impl Writer {
    fn text(&mut self, text: &[u8]) {
        self.compact.extend_from_slice(text);
        self.spaced.extend_from_slice(text);
    }

    fn space(&mut self) {
        // Mostly none, sometimes much.
        let count = if self.rng.u8(..4) == 0 { self.rng.usize(..24) } else { 0 };
        for _ in 0..count {
            let mostly_spaces = [b' ', b' ', b' ', b' ', b' ', b' ', b'\t', b'\r', b'\n'];
            self.spaced.push(*self.rng.choice(&mostly_spaces).unwrap());
        }
    }

    fn value(&mut self, depth_left: usize) {
        self.space();
        match self.rng.u8(..if depth_left == 0 { 5 } else { 9 }) {
            0 => self.string(),
            1 | 2 => self.number(),
            3 | 4 => {
                let word: &[u8] = self.rng.choice([b"true".as_slice(), b"false", b"null"]).unwrap();
                self.text(word);
            }
            5 | 6 => {
                self.text(b"[");
                self.space();
                for index in 0..self.rng.usize(..5) {
                    if index > 0 {
                        self.text(b",");
                    }
                    self.value(depth_left - 1);
                }
                self.text(b"]");
            }
            _ => {
                self.text(b"{");
                self.space();
                for index in 0..self.rng.usize(..5) {
                    if index > 0 {
                        self.text(b",");
                        self.space();
                    }
                    self.string();
                    self.space();
                    self.text(b":");
                    self.value(depth_left - 1);
                }
                self.text(b"}");
            }
        }
        self.space();
    }

    fn string(&mut self) {
        let mut text = vec![b'"'];
        for _ in 0..self.rng.usize(..40) {
            match self.rng.u8(..20) {
                0 => text.extend_from_slice(b"\\\""),
                1 => text.extend_from_slice(b"\\\\"),
                2 => text.extend_from_slice(format!("\\u{:04x}", self.rng.u16(..)).as_bytes()),
                3 => text.extend_from_slice(self.rng.char(' '..).to_string().replace(['"', '\\'], "").as_bytes()),
                4 => text.push(self.rng.u8(0x80..)),
                5 => text.push(b' '),
                _ => text.push(self.rng.alphanumeric() as u8),
            }
        }
        text.push(b'"');
        self.text(&text);
    }

    fn number(&mut self) {
        let mut text = String::new();
        if self.rng.bool() {
            text.push('-');
        }
        text += &match self.rng.u8(..3) {
            0 => "0".to_owned(),
            1 => self.rng.u8(1..).to_string(),
            _ => self.rng.u128(1..).to_string(),
        };
        if self.rng.bool() {
            text += &format!(".{:03}", self.rng.u32(..));
        }
        if self.rng.bool() {
            text += self.rng.choice(["e", "E", "e+", "E-"]).unwrap();
            text += &format!("{:02}", self.rng.u16(..));
        }
        self.text(text.as_bytes());
    }

    fn random_value(rng: &mut fastrand::Rng) -> Self {
        let mut writer = Writer {
            rng: rng.fork(),
            compact: Vec::new(),
            spaced: Vec::new(),
        };
        let depth = writer.rng.usize(..6);
        writer.value(depth);
        writer
    }
}

#[test]
fn random_values_come_out_compact_whatever_the_pieces() {
    let mut rng = seeded();
    for _ in 0..3_000 {
        let Writer {
            compact: wanted,
            spaced,
            ..
        } = Writer::random_value(&mut rng);
        for largest in [1, 3, 16, 200, usize::MAX] {
            let result = compact_in_pieces(&spaced, || rng.usize(1..=largest));
            assert_eq!(result.as_deref(), Ok(&*wanted), "{}", spaced.escape_ascii());
        }
        assert_eq!(compact(&wanted).as_deref(), Ok(&*wanted));
    }
}

#[test]
fn mutated_values_are_valid_exactly_when_serde_json_says_so() {
    let mut rng = seeded();
    let mut valid = 0;
    let rounds = 30_000;
    for _ in 0..rounds {
        let spaced = Writer::random_value(&mut rng).spaced;
        let mut input = String::from_utf8_lossy(&spaced).into_owned().into_bytes();
        for _ in 0..rng.usize(..4) {
            let at = rng.usize(..input.len());
            let interesting = b"\"\\{}[]:,0123456789+-.eEutrfn \t\r\n\x0b\x00\x1f/'";
            match rng.u8(..4) {
                0 => {
                    input.remove(at);
                    if input.is_empty() {
                        input.push(b' ');
                    }
                }
                1 => input.insert(at, *rng.choice(interesting).unwrap()),
                2 => input[at] = *rng.choice(interesting).unwrap(),
                _ => input.truncate(at + 1),
            }
        }
        let input = String::from_utf8_lossy(&input).into_owned();
        let ours = compact_in_pieces(input.as_bytes(), || rng.usize(1..50));
        let theirs = serde_json::from_str::<IgnoredAny>(&input);
        assert_eq!(
            ours.is_ok(),
            theirs.is_ok(),
            "{ours:?} {theirs:?} {}",
            input.escape_debug()
        );
        valid += usize::from(ours.is_ok());
    }
    // Otherwise the test would have looked at one side only.
    assert!(
        valid > rounds / 10 && valid < rounds * 9 / 10,
        "{valid} of {rounds} were valid"
    );
}

/// Not a test but a measurement: `cargo test --release --lib json::tests::speed -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, meaningful only in a release build"]
fn speed_beside_serde_json() {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut record = |index: usize| {
        serde_json::json!({
            "id": index, "name": format!("customer {index}"), "active": index.is_multiple_of(3), "balance": rng.f64() * 1e4,
            "tags": ["one", "two", "three"], "address": {"street": "Long Lane 12, second floor", "zip": "12345"},
            "note": "a line of text with a \"quote\" in it and some more words after that\n",
        })
    };
    let records: Vec<_> = (0..20_000).map(&mut record).collect();
    let long_strings: Vec<_> = (0..200).map(|_| "text without escapes ".repeat(2_000)).collect();
    let numbers: Vec<_> = (0..400_000).map(|index| f64::from(index) * 1.37).collect();
    let clock = SystemClock::new();
    for (name, input) in [
        ("records, compact", serde_json::to_vec(&records).unwrap()),
        ("records, indented", serde_json::to_vec_pretty(&records).unwrap()),
        ("long strings", serde_json::to_vec(&long_strings).unwrap()),
        ("numbers", serde_json::to_vec(&numbers).unwrap()),
        ("numbers, indented", serde_json::to_vec_pretty(&numbers).unwrap()),
    ] {
        let mb_per_second = |work: &dyn Fn()| {
            let mut best = f64::MAX;
            for _ in 0..15 {
                let start = clock.now();
                work();
                best = best.min(clock.now().since(start).as_secs_f64());
            }
            input.len() as f64 / 1e6 / best
        };
        let ours = mb_per_second(&|| {
            let mut compactor = JsonCompactor::new();
            let mut out = Vec::new();
            for piece in input.chunks(64 * 1024) {
                compactor.push(piece, &mut out).unwrap();
            }
            compactor.finish().unwrap();
        });
        let theirs = mb_per_second(&|| {
            serde_json::from_slice::<IgnoredAny>(&input).unwrap();
        });
        println!(
            "{name}: {ours:.0} MB/s, serde_json {theirs:.0} MB/s, ratio {:.2}",
            ours / theirs
        );
    }
}
