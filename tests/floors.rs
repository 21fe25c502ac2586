//! The order of the house: a file uses its own floor and what is below it, never what is above.
//!
//! The floors are listed here once, and every path of `src/` and of the wire types is held against the list, test code
//! included. A new module must be given a floor before it compiles into a green build. What a file reaches through
//! another one (a re-export, a trait object) is not seen; that is for reviews.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which floor each module of the library stands on. The rules files have one of their own, see [`RULES`].
const FLOORS: [&[&str]; 6] = [
    &[
        "clock",
        "drain_plan",
        "ids",
        "json",
        "keys",
        "logging",
        "metrics",
        "net",
        "record",
        "threads",
    ],
    &[],
    &["store"],
    &[
        "dispatch",
        "error",
        "lease",
        "namespace",
        "news",
        "queue",
        "state",
        "sweeper",
        "txn",
    ],
    &["http"],
    &["cli", "exporter", "main", "server", "settings", "testing"],
];

/// The floor of the rules: pure functions from a record, a request and the time to a new record or a refusal.
const RULES_FLOOR: usize = 1;
const RULES: [&str; 3] = ["lease::rules", "queue::rules", "txn::rules"];
/// All that rules may know of the rest of the house.
const KNOWN_TO_RULES: [&str; 3] = ["ids", "keys", "record"];
/// What a pure function has no use for.
const UNKNOWN_TO_RULES: [&str; 5] = ["std::fs", "std::io", "std::net", "std::thread", "std::time"];

#[test]
fn every_file_uses_its_own_floor_and_those_below() {
    let mut complaints = Vec::new();
    for file in sources("src") {
        let Some(module) = file.module.first() else { continue };
        let Some(floor) = floor_of(&file.module) else {
            complaints.push(format!("{}: module {module} has no floor yet", file.path.display()));
            continue;
        };
        for used in file.paths_into_the_crate() {
            match floor_of(&used) {
                Some(other) if other <= floor => {}
                Some(other) => complaints.push(format!(
                    "{} (floor {floor}) uses crate::{} (floor {other})",
                    file.path.display(),
                    used.join("::")
                )),
                None => complaints.push(format!(
                    "{} uses crate::{}, which has no floor yet",
                    file.path.display(),
                    used.join("::")
                )),
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn rules_are_pure_and_know_records_alone() {
    let rules: Vec<Source> = sources("src")
        .into_iter()
        .filter(|file| floor_of(&file.module) == Some(RULES_FLOOR))
        .collect();
    assert!(
        2 <= rules.len(),
        "the rules of leases and of transactions are files of their own"
    );
    let mut complaints = Vec::new();
    for file in rules {
        for used in file.paths_into_the_crate() {
            if !KNOWN_TO_RULES.contains(&used[0].as_str()) && floor_of(&used) != Some(RULES_FLOOR) {
                complaints.push(format!("{} uses crate::{}", file.path.display(), used.join("::")));
            }
        }
        for path in paths_after(&file.text, "std::") {
            let path = format!("std::{}", path[0]);
            if UNKNOWN_TO_RULES.contains(&path.as_str()) {
                complaints.push(format!("{} uses {path}", file.path.display()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_wire_types_stand_alone() {
    let mut complaints = Vec::new();
    for file in sources("client/src")
        .iter()
        .filter(|file| file.module[..] != [] as [String; 0])
    {
        if file.module[0] != "wire" {
            continue;
        }
        for used in file.paths_into_the_crate().iter().filter(|used| used[0] != "wire") {
            complaints.push(format!("{} uses crate::{}", file.path.display(), used.join("::")));
        }
        for other in ["lockd::", "log::", "ureq::"] {
            if !paths_after(&file.text, other).is_empty() {
                complaints.push(format!("{} uses {other}", file.path.display()));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn only_the_top_floor_knows_more_of_the_client_than_the_wire_types() {
    let mut complaints = Vec::new();
    for file in sources("src") {
        if floor_of(&file.module) == Some(FLOORS.len() - 1) {
            continue;
        }
        for used in paths_after(&file.text, "lockd_client::") {
            if used[0] != "wire" {
                complaints.push(format!(
                    "{} uses lockd_client::{}",
                    file.path.display(),
                    used.join("::")
                ));
            }
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn only_the_http_floor_knows_the_http_library() {
    let strangers: Vec<PathBuf> = sources("src")
        .into_iter()
        .filter(|file| file.module.first().is_some_and(|module| module != "http"))
        .filter(|file| !paths_after(&file.text, "tiny_http::").is_empty())
        .map(|file| file.path)
        .collect();
    assert_eq!(strangers, [] as [PathBuf; 0]);
}

#[test]
fn only_the_exporter_knows_how_metrics_are_written_down() {
    let strangers: Vec<PathBuf> = sources("src")
        .into_iter()
        .filter(|file| file.module.first().is_some_and(|module| module != "exporter"))
        .filter(|file| !paths_after(&file.text, "prometheus_client::").is_empty())
        .map(|file| file.path)
        .collect();
    assert_eq!(strangers, [] as [PathBuf; 0]);
}

#[test]
fn paths_are_found_in_every_form_they_are_written_in() {
    let text = "use crate::a::b;\nuse crate::{\n    c::{d, e},\n    f,\n};\nlet g = crate::g::h();\nnot_a_crate::i();";
    let found: Vec<String> = paths_after(text, "crate::")
        .iter()
        .map(|path| path.join("::"))
        .collect();
    assert_eq!(found, ["a::b", "c::d", "c::e", "f", "g::h"]);

    let file = Source {
        path: PathBuf::new(),
        module: vec!["lease".to_owned(), "rules".to_owned()],
        text: "use super::table;\nuse super::super::store::Store;\nmod tests {\n    use super::super::table;\n}\n"
            .to_owned(),
    };
    let found: BTreeSet<String> = file.paths_into_the_crate().iter().map(|path| path.join("::")).collect();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["lease::table", "store::Store"]);
}

/// A file of source text.
struct Source {
    path: PathBuf,
    /// Its place in the crate; empty for the root.
    module: Vec<String>,
    /// Its text without comment lines.
    text: String,
}

impl Source {
    /// The paths into the crate that this file writes down, seen from the crate's root.
    fn paths_into_the_crate(&self) -> Vec<Vec<String>> {
        let mut found = paths_after(&self.text, "crate::");
        for line in self.text.lines() {
            // One level of modules inside a file is what there is: `mod tests`.
            let inline_depth = usize::from(line.starts_with(' '));
            for path in paths_after(line, "super::") {
                let ups = 1 + path.iter().take_while(|part| *part == "super").count();
                let below: Vec<String> = path[ups - 1..].to_vec();
                let Some(kept) = (self.module.len() + inline_depth).checked_sub(ups) else {
                    panic!("{}: {line}", self.path.display());
                };
                if kept <= self.module.len() && !below.is_empty() {
                    found.push([&self.module[..kept], &below].concat());
                }
            }
        }
        found
    }
}

/// The floor of a path: rules have their own, everything else stands where its module stands.
fn floor_of(path: &[String]) -> Option<usize> {
    let module = path.first()?;
    let is_rules = path
        .get(1)
        .is_some_and(|file| RULES.contains(&format!("{module}::{}", file.trim_end_matches("_tests")).as_str()));
    if is_rules {
        return Some(RULES_FLOOR);
    }
    FLOORS.iter().position(|floor| floor.contains(&module.as_str()))
}

/// What follows each `prefix` in a text, as the parts of a path; groups in braces give a path each.
fn paths_after(text: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        read_tree(&text[at + prefix.len()..], &[], &mut found);
    }
    found
}

/// Reads one tree of a `use` and returns what comes behind it.
fn read_tree<'a>(text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start().trim_start_matches(',').trim_start();
            if let Some(behind) = rest.strip_prefix('}') {
                return behind;
            }
            if rest.is_empty() {
                return rest;
            }
            rest = read_tree(rest, above, found);
            // A new name (`as x`) is of no interest.
            rest = rest.trim_start_matches(|c| c != ',' && c != '}');
        }
    }
    let end = text
        .find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        // A glob stands for what is above it.
        if !above.is_empty() {
            found.push(above.to_vec());
        }
        return rest
            .strip_prefix('*')
            .unwrap_or_else(|| rest.get(1..).unwrap_or_default());
    }
    let path = [above, &[name.to_owned()]].concat();
    match rest.strip_prefix("::") {
        Some(rest) => read_tree(rest, &path, found),
        None => {
            found.push(path);
            rest
        }
    }
}

/// All source files below a directory of the project.
fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    assert!(!found.is_empty(), "no sources below {directory}");
    found
}

fn collect(root: &Path, directory: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inside = path.strip_prefix(root).unwrap().with_extension("");
            let mut module: Vec<String> = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            module.pop_if(|last| last == "mod" || last == "lib");
            let text = fs::read_to_string(&path).unwrap();
            let code: Vec<&str> = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .collect();
            found.push(Source {
                path: path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_owned(),
                module,
                text: code.join("\n"),
            });
        }
    }
}
