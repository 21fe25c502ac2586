//! What store URLs are made of: host, path and parameters, and which names are lawful in them.

use std::collections::BTreeMap;

use super::Lookup;

/// Leaves room for the longest record key.
const PREFIX_BYTES_MAX: usize = 256;

/// A variable that is set and not empty.
pub(super) fn variable(variables: Lookup<'_>, name: &str) -> Option<String> {
    variables(name).filter(|value| !value.trim().is_empty())
}

/// Host, path without its first slash, and query of what follows `scheme://`.
pub(super) fn take_apart(rest: &str) -> Result<(&str, &str, Query), String> {
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let lawful = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if !host.bytes().all(lawful) {
        return Err(format!("{host:?} is no host (secrets do not belong in the URL)"));
    }
    let mut parameters = BTreeMap::new();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if parameters.insert(name.to_string(), value.into_owned()).is_some() {
            return Err(format!("{name}= is there twice"));
        }
    }
    Ok((host, path, Query(parameters)))
}

/// The parameters of a URL that nobody has asked for yet.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    pub(super) fn switch(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.take(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("1" | "t" | "true") => Ok(Some(true)),
            Some("0" | "f" | "false") => Ok(Some(false)),
            Some(_) => Err(format!("{name}= is true or false")),
        }
    }

    pub(super) fn nothing_left(&self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("{name}= is no parameter of this store")),
            None => Ok(()),
        }
    }
}

pub(super) fn checked_bucket(bucket: &str) -> Result<String, String> {
    let lawful = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if bucket.bytes().all(lawful) && !bucket.starts_with('.') {
        return Ok(bucket.to_owned());
    }
    Err(format!("{bucket:?} is no name of a bucket"))
}

/// Object names begin with this, so it must be as harmless as they are.
pub(super) fn checked_prefix(prefix: &str) -> Result<String, String> {
    let prefix = prefix.trim_matches('/');
    let lawful = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    let harmless = |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(lawful);
    if prefix.len() <= PREFIX_BYTES_MAX && (prefix.is_empty() || prefix.split('/').all(harmless)) {
        return Ok(prefix.to_owned());
    }
    Err(format!(
        "the prefix {prefix:?} must be at most {PREFIX_BYTES_MAX} bytes: segments of letters, digits, '.', '_' and '-'"
    ))
}

/// A prefix as the names of objects begin with it.
pub(super) fn slashed(prefix: &str) -> String {
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() {
        String::new()
    } else {
        format!("{prefix}/")
    }
}

/// An endpoint as a URL; one that names no scheme gets it.
pub(super) fn with_scheme(endpoint: &str, insecure: bool) -> String {
    match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("{}://{endpoint}", if insecure { "http" } else { "https" }),
    }
}
