//! Reads a page of metrics, in either text format, and takes nothing that the format does not allow.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Far beyond what anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An answer of the listener.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// Asks with this method and these further header lines, and reads until the connection ends.
pub(crate) fn ask(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(connection, "{method} {path} HTTP/1.1\r\nHost: test\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer {
        status,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

/// The figures of a page by name and labels, as they are written there.
#[derive(Debug)]
pub(crate) struct Page {
    figures: BTreeMap<String, f64>,
    kinds: BTreeMap<String, String>,
}

impl Page {
    /// What the listener tells now, in the older format.
    pub(crate) fn scrape(address: SocketAddr) -> Self {
        let answer = ask(address, "GET", "/metrics", "");
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(
            answer
                .head
                .contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8")
        );
        Self::read(&answer.body, false)
    }

    /// The same in OpenMetrics.
    pub(crate) fn scrape_open(address: SocketAddr) -> Self {
        let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5\r\n";
        let answer = ask(address, "GET", "/metrics", accept);
        assert_eq!(answer.status, 200, "{}", answer.head);
        assert!(
            answer
                .head
                .contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0")
        );
        Self::read(&answer.body, true)
    }

    fn read(text: &str, is_open: bool) -> Self {
        let mut page = Page {
            figures: BTreeMap::new(),
            kinds: BTreeMap::new(),
        };
        let text = match text.strip_suffix("# EOF\n") {
            Some(text) if is_open => text,
            Some(_) => panic!("the older format has no end mark"),
            None if is_open => panic!("OpenMetrics has an end mark"),
            None => text,
        };
        assert!(text.ends_with('\n'), "the last line is cut");
        // Name and kind of the family that is being told.
        let mut family: Option<(String, String)> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(is_name(name) && !help.is_empty(), "{line}");
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter" && !is_open, name.ends_with("_total"), "{line}");
                let known = page.kinds.insert(name.to_owned(), kind.to_owned());
                assert_eq!(known, None, "{name} is told in two places");
                family = Some((name.to_owned(), kind.to_owned()));
                continue;
            }
            let (figure, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            let (name, labels) = match figure.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"))),
                None => (figure, ""),
            };
            check_labels(labels);
            let (of, kind) = family.as_ref().expect("a type comes before its figures");
            let suffixes: &[&str] = match kind.as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                "counter" if is_open => &["_total"],
                _ => &[""],
            };
            let is_of_family = suffixes.iter().any(|suffix| name == format!("{of}{suffix}"));
            assert!(is_name(name) && is_of_family, "{line} does not belong to {of}");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(kind == "gauge" || 0.0 <= value, "{line}");
            let known = page.figures.insert(figure.to_owned(), value);
            assert_eq!(known, None, "{figure} is told twice");
        }
        page.check_histograms();
        page
    }

    /// One figure, zero when it is not told.
    pub(crate) fn get(&self, figure: &str) -> f64 {
        self.figures.get(figure).copied().unwrap_or(0.0)
    }

    /// The figures of this name, whatever their labels, together.
    pub(crate) fn sum(&self, name: &str) -> f64 {
        let of_name = |figure: &str| figure.split('{').next() == Some(name);
        let found = self.figures.iter().filter(|(figure, _)| of_name(figure));
        found.map(|(_, value)| value).sum()
    }

    /// The names that are told.
    pub(crate) fn names(&self) -> BTreeSet<&str> {
        self.kinds.keys().map(String::as_str).collect()
    }

    /// Buckets rise to the count, in the order of their bounds.
    fn check_histograms(&self) {
        for (name, _) in self.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
            let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (figure, value) in &self.figures {
                let Some(labels) = figure.strip_prefix(&format!("{name}_bucket{{")) else {
                    continue;
                };
                let (before, rest) = labels.split_once("le=\"").unwrap();
                let (bound, after) = rest.split_once('"').unwrap();
                let bound = if bound == "+Inf" {
                    f64::INFINITY
                } else {
                    bound.parse().unwrap()
                };
                let labels = format!("{before}{after}").trim_matches([',', '}']).to_owned();
                series.entry(labels).or_default().push((bound, *value));
            }
            for (labels, mut buckets) in series {
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                assert!(
                    buckets.is_sorted_by(|one, other| one.1 <= other.1),
                    "{name} {labels}: {buckets:?}"
                );
                let in_braces = if labels.is_empty() {
                    labels
                } else {
                    format!("{{{labels}}}")
                };
                let (last, count) = *buckets.last().unwrap();
                assert_eq!(last, f64::INFINITY, "{name}{in_braces}");
                assert_eq!(
                    count,
                    self.figures[&format!("{name}_count{in_braces}")],
                    "{name}{in_braces}"
                );
                assert!(
                    self.figures.contains_key(&format!("{name}_sum{in_braces}")),
                    "{name}{in_braces}"
                );
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn check_labels(labels: &str) {
    let mut rest = labels;
    while !rest.is_empty() {
        let (name, behind) = rest.split_once("=\"").unwrap_or_else(|| panic!("{labels}"));
        assert!(is_name(name), "{labels}");
        // No value here has a quotation mark in it.
        let (_, behind) = behind.split_once('"').unwrap_or_else(|| panic!("{labels}"));
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
}
