use super::*;

/// Hands out its bytes in pieces of these lengths, again and again.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    lengths: Vec<usize>,
    turn: usize,
}

impl Pieces {
    fn new(bytes: &[u8], lengths: &[usize]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            at: 0,
            lengths: lengths.to_vec(),
            turn: 0,
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = self.lengths[self.turn % self.lengths.len()];
        self.turn += 1;
        let count = length.min(out.len()).min(self.bytes.len() - self.at);
        out[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

type Part = (PartHead, Vec<u8>);

fn read_all<R: Read>(parts: &mut Parts<R>) -> Result<Vec<Part>, PartsError> {
    let mut all = Vec::new();
    while let Some(head) = parts.next_part()? {
        let mut body = Vec::new();
        let mut piece = [0; 7];
        loop {
            match parts.read_body(&mut piece)? {
                0 => break,
                count => body.extend_from_slice(&piece[..count]),
            }
        }
        all.push((head, body));
    }
    Ok(all)
}

fn parse(text: &[u8], lengths: &[usize]) -> Result<Vec<Part>, PartsError> {
    read_all(&mut Parts::new(Pieces::new(text, lengths), "B"))
}

fn head(name: &str, content_type: &str, length: Option<u64>) -> PartHead {
    PartHead {
        name: Some(name.to_owned()),
        content_type: content_type.to_owned(),
        length,
    }
}

/// Two deliveries; the payloads are made of what delimiters are made of.
const TWO: &[u8] = b"--B\r\nContent-Disposition: form-data; name=\"meta\"\r\nContent-Type: application/json\r\n\r\n{}\n\
\r\n--B\r\nContent-Disposition: form-data; name=\"payload\"\r\nContent-Length: 9\r\nContent-Type: text/plain\r\n\r\n\r\n--B--\r\n\
\r\n--B \t\r\ncontent-disposition:form-data;filename=\"a;name=x\";name=meta\r\n\r\n\r\n--Bx\r\n--\r\n-\r\n\
\r\n--B\r\nContent-Disposition: form-data; name=\"payload\"\r\nContent-Length: 0\r\n\r\n\
\r\n--B--\r\n";

fn two() -> Vec<Part> {
    vec![
        (head("meta", "application/json", None), b"{}\n".to_vec()),
        (head("payload", "text/plain", Some(9)), b"\r\n--B--\r\n".to_vec()),
        (head("meta", "", None), b"\r\n--Bx\r\n--\r\n-\r\n".to_vec()),
        (head("payload", "", Some(0)), Vec::new()),
    ]
}

#[test]
fn parts_come_out_the_same_however_the_bytes_arrive() {
    for length in 1..TWO.len() {
        assert_eq!(parse(TWO, &[length]).unwrap(), two(), "in pieces of {length}");
    }
    for seed in 0..200 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let lengths: Vec<usize> = (0..30).map(|_| dice.usize(1..40)).collect();
        assert_eq!(parse(TWO, &lengths).unwrap(), two(), "seed {seed}");
    }
}

#[test]
fn a_stream_that_ends_early_is_an_error_wherever_it_ends() {
    // What is behind the second dash of the closing delimiter carries no meaning.
    for length in 0..TWO.len() - 2 {
        match parse(&TWO[..length], &[5]) {
            Err(PartsError::Io(error)) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
            other => panic!("cut after {length} bytes: {other:?}"),
        }
    }
}

/// Fails the test when it is asked for more than it has: a real stream would block here.
struct Stalls(Pieces);

impl Read for Stalls {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self.0.read(out)? {
            0 => Err(io::Error::other("asked for more than was needed")),
            count => Ok(count),
        }
    }
}

/// LQ-29, LQ-30: a message is complete with its last byte, whatever that byte is; nothing waits for the next delimiter.
#[test]
fn a_body_of_known_length_is_there_before_anything_follows_it() {
    let text = b"--B\r\nContent-Disposition: form-data; name=\"payload\"\r\nContent-Length: 3\r\n\r\na\r\r";
    let mut parts = Parts::new(Stalls(Pieces::new(text, &[100])), "B");
    assert_eq!(parts.next_part().unwrap().unwrap().length, Some(3));
    let mut body = [0; 10];
    assert_eq!(parts.read_body(&mut body).unwrap(), 3);
    assert_eq!(&body[..3], b"a\r\r");
    assert_eq!(parts.read_body(&mut body).unwrap(), 0);
}

#[test]
fn what_is_not_read_of_a_part_is_skipped() {
    let mut parts = Parts::new(Pieces::new(TWO, &[11]), "B");
    let mut names = Vec::new();
    while let Some(head) = parts.next_part().unwrap() {
        names.push(head.name.unwrap());
        let _ = parts.read_body(&mut [0; 1]).unwrap();
    }
    assert_eq!(names, ["meta", "payload", "meta", "payload"]);
    assert_eq!(parts.next_part().unwrap(), None, "the end stays the end");
    assert_eq!(parts.read_body(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_stands_before_the_first_delimiter_is_skipped_within_bounds() {
    let preamble = |length: usize| [vec![b'x'; length], b"\r\n--B--\r\n".to_vec()].concat();
    assert_eq!(parse(&preamble(1000), &[333]).unwrap(), []);
    assert!(matches!(
        parse(&preamble(HEAD_BYTES_MAX + 2 * READ_BYTES), &[4096]),
        Err(PartsError::Malformed(_))
    ));
}

#[test]
fn heads_are_bounded_and_checked() {
    let with_head = |lines: &str| format!("--B\r\n{lines}\r\n\r\n\r\n--B--\r\n").into_bytes();
    for bad in [
        "no colon".to_owned(),
        ": no name".to_owned(),
        "two words: x".to_owned(),
        " folded: x".to_owned(),
        "Content-Length: -1".to_owned(),
        "Content-Length: +1".to_owned(),
        "Content-Length: 1\r\nContent-Length: 2".to_owned(),
        "Content-Length: 99999999999999999999".to_owned(),
        "X: y\r\n".repeat(HEADERS_MAX) + "X: y",
        "X: ".to_owned() + &"y".repeat(HEAD_BYTES_MAX),
        // Endless, and never an end of line.
        "y".repeat(4 * HEAD_BYTES_MAX),
    ] {
        let outcome = parse(&with_head(&bad), &[1000]);
        assert!(
            matches!(outcome, Err(PartsError::Malformed(_))),
            "{bad:.40}: {outcome:?}"
        );
    }
    let longest = "X: y\r\n".repeat(HEADERS_MAX - 1) + "X: y";
    assert_eq!(parse(&with_head(&longest), &[1000]).unwrap().len(), 1);
}

#[test]
fn a_part_that_is_longer_than_it_says_is_refused() {
    let text = b"--B\r\nContent-Length: 2\r\n\r\nabc\r\n--B--\r\n";
    assert!(matches!(parse(text, &[100]), Err(PartsError::Malformed(_))));
    let text = b"--B\r\n\r\nabc\r\n--B-x\r\n--B--\r\n";
    assert_eq!(
        parse(text, &[100]).unwrap()[0].1,
        b"abc\r\n--B-x",
        "a boundary that goes on is data"
    );
}

/// Whatever arrives, the parser ends and keeps its bounds.
#[test]
fn noise_ends_in_an_error_or_in_parts_and_never_in_a_hoard() {
    let seeds = match std::env::var("LOCKD_TEST_SEED").map(|text| text.parse()) {
        Ok(Ok(seed)) => seed..seed + 1,
        _ => 0..500_u64,
    };
    for seed in seeds {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut text = TWO.repeat(3);
        for _ in 0..dice.usize(1..20) {
            let at = dice.usize(..text.len());
            match dice.u8(..3) {
                0 => text[at] = dice.u8(..),
                1 => text.truncate(at + 1),
                _ => {
                    text.splice(at..at, TWO[dice.usize(..TWO.len())..].iter().copied().take(30));
                }
            }
        }
        let lengths: Vec<usize> = (0..10).map(|_| dice.usize(1..400)).collect();
        let mut parts = Parts::new(Pieces::new(&text, &lengths), "B");
        let _ = read_all(&mut parts);
        assert!(parts.buffer.len() <= text.len() + READ_BYTES, "LOCKD_TEST_SEED={seed}");
    }
}

#[test]
fn boundaries_are_read_from_multipart_types_only() {
    for (text, expected) in [
        ("multipart/related; boundary=abc", Some("abc")),
        (
            "Multipart/Form-Data;charset=x; Boundary=\"a b\\\"c\"; z=1",
            Some("a b\"c"),
        ),
        ("multipart/related; type=\"a;boundary=no\"; boundary=yes", Some("yes")),
        ("multipart/related", None),
        ("multipart/related; boundary=", None),
        ("multipart/related; boundary=\"open", None),
        ("application/json; boundary=abc", None),
        ("", None),
    ] {
        assert_eq!(boundary(text).as_deref(), expected, "{text}");
    }
    assert_eq!(boundary(&format!("multipart/x; boundary={}", "b".repeat(201))), None);
}
