//! Azure Blob: the same engine over another dialect.
//!
//! What differs from S3: an object that is there already is told by 409 and not by 412; uploads are blocks that a list makes
//! a blob, and blocks that no list names go by themselves after a week; a listing goes on from a marker of the service's own,
//! never from a name. So the markers of recent pages are remembered, and whoever goes on from elsewhere pays with pages from
//! the beginning.

use std::collections::VecDeque;
use std::time::UNIX_EPOCH;

use data_encoding::BASE64URL;
use parking_lot::Mutex;
use s3::signing::uri_encode;
use serde::Deserialize;
use ureq::http::{HeaderMap, Method};
use url::Url;

use super::bucket::{Bucket, Condition, Failure, Object, Opened, Page, Put, Row};
use super::http::{Answer, Http, Refusal, put_header, unquoted};
use super::sign_azure::Authority;
use crate::clock::SharedClock;

const PART_BYTES: usize = 4 * 1024 * 1024;
/// The service lists no more at once.
const PAGE_ROWS_MAX: usize = 5000;
/// Markers of so many pages are remembered.
const MARKERS_MAX: usize = 64;

pub(super) struct AzureBucket {
    /// Address of the container, without a slash at its end.
    container: Url,
    authority: Authority,
    http: Http,
    clock: SharedClock,
    markers: Mutex<VecDeque<Marker>>,
}

/// Where the page behind a name begins.
struct Marker {
    prefix: String,
    after: String,
    marker: String,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(rename = "Blobs")]
    blobs: Blobs,
    #[serde(rename = "NextMarker", default)]
    next_marker: Option<String>,
}

#[derive(Deserialize)]
struct Blobs {
    #[serde(rename = "Blob", default)]
    blobs: Vec<Blob>,
}

#[derive(Deserialize)]
struct Blob {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Properties")]
    properties: Properties,
}

#[derive(Deserialize)]
struct Properties {
    #[serde(rename = "Etag")]
    etag: String,
    #[serde(rename = "Content-Length")]
    content_bytes: u64,
    #[serde(rename = "Last-Modified")]
    last_modified: String,
}

impl AzureBucket {
    pub(super) fn new(container: Url, authority: Authority, http: Http, clock: SharedClock) -> Self {
        Self {
            container,
            authority,
            http,
            clock,
            markers: Mutex::default(),
        }
    }

    /// The address of a blob, or of the container for an empty name.
    fn url(&self, name: &str, query: &str) -> Result<Url, Failure> {
        let slash = if name.is_empty() { "" } else { "/" };
        let mark = if query.is_empty() { "" } else { "?" };
        let text = format!("{}{slash}{}{mark}{query}", self.container, uri_encode(name, false));
        Url::parse(&text).map_err(|cause| Failure::Denied(format!("{text} is no address: {cause}")))
    }

    fn ask(&self, method: Method, mut url: Url, mut headers: HeaderMap) -> Result<Answer, Failure> {
        (self.authority).sign(&method, &mut url, &mut headers, 0, self.clock.wall_ms())?;
        self.http.send(method, url.as_str(), headers)
    }

    fn tell(&self, mut url: Url, mut headers: HeaderMap, bytes: &[u8]) -> Result<Answer, Failure> {
        put_header(&mut headers, "content-type", "application/octet-stream")?;
        (self.authority).sign(&Method::PUT, &mut url, &mut headers, bytes.len(), self.clock.wall_ms())?;
        self.http.send_bytes(Method::PUT, url.as_str(), headers, bytes)
    }

    fn page_at(&self, prefix: &str, marker: &str, limit: usize) -> Result<Listing, Failure> {
        let mut query = format!(
            "restype=container&comp=list&maxresults={}&prefix={}",
            limit.clamp(1, PAGE_ROWS_MAX),
            uri_encode(prefix, true)
        );
        if !marker.is_empty() {
            query.push_str(&format!("&marker={}", uri_encode(marker, true)));
        }
        let answer = self.ask(Method::GET, self.url("", &query)?, HeaderMap::new())?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure(&format!("listing {prefix}")));
        }
        let text = answer.text()?;
        // Real answers begin with a mark of their encoding.
        quick_xml::de::from_str(text.trim_start_matches('\u{feff}'))
            .map_err(|cause| Failure::Lost(format!("the answer to a listing cannot be read: {cause}")))
    }

    fn known_marker(&self, prefix: &str, after: &str) -> Option<String> {
        let markers = self.markers.lock();
        let known = markers
            .iter()
            .find(|known| known.prefix == prefix && known.after == after);
        known.map(|known| known.marker.clone())
    }

    fn note_marker(&self, prefix: &str, after: &str, marker: &str) {
        let mut markers = self.markers.lock();
        markers.retain(|known| known.prefix != prefix || known.after != after);
        if MARKERS_MAX <= markers.len() {
            markers.pop_front();
        }
        markers.push_back(Marker {
            prefix: prefix.to_owned(),
            after: after.to_owned(),
            marker: marker.to_owned(),
        });
    }

    fn forget_markers(&self, prefix: &str) {
        self.markers.lock().retain(|known| known.prefix != prefix);
    }
}

impl Bucket for AzureBucket {
    fn get(&self, name: &str) -> Result<Option<Object>, Failure> {
        let answer = self.ask(Method::GET, self.url(name, "")?, HeaderMap::new())?;
        if !answer.is_success() {
            return absent_or_failure(answer, name);
        }
        let etag = answer.etag()?;
        Ok(Some(Object {
            bytes: answer.bytes()?,
            etag,
        }))
    }

    fn open(&self, name: &str, from: u64, etag: Option<&str>) -> Result<Option<Opened>, Failure> {
        let mut headers = HeaderMap::new();
        if 0 < from {
            put_header(&mut headers, "x-ms-range", &format!("bytes={from}-"))?;
        }
        if let Some(etag) = etag {
            put_header(&mut headers, "if-match", &format!("\"{etag}\""))?;
        }
        let answer = self.ask(Method::GET, self.url(name, "")?, headers)?;
        if !answer.is_success() {
            return absent_or_failure(answer, name);
        }
        let etag = answer.etag()?;
        let (bytes_left, reader) = answer.into_reader();
        Ok(Some(Opened {
            etag,
            bytes_left,
            reader,
        }))
    }

    fn put(&self, name: &str, bytes: &[u8], condition: &Condition) -> Result<Put, Failure> {
        let mut headers = HeaderMap::new();
        put_header(&mut headers, "x-ms-blob-type", "BlockBlob")?;
        match condition {
            Condition::None => {}
            Condition::Absent => put_header(&mut headers, "if-none-match", "*")?,
            Condition::Matches(etag) => put_header(&mut headers, "if-match", &format!("\"{etag}\""))?,
        }
        let answer = self.tell(self.url(name, "")?, headers, bytes)?;
        if answer.is_success() {
            let etag = answer.etag()?;
            answer.drain();
            return Ok(Put::Done(etag));
        }
        let refusal = answer.refusal();
        match (refusal.status, &*refusal.code, condition) {
            (412, _, _)
            | (409, "BlobAlreadyExists", Condition::Absent)
            | (404, "BlobNotFound", Condition::Matches(_)) => Ok(Put::Refused),
            _ => Err(refusal.into_failure(&format!("putting {name}"))),
        }
    }

    fn delete_if(&self, name: &str, etag: &str) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        put_header(&mut headers, "if-match", &format!("\"{etag}\""))?;
        self.ask(Method::DELETE, self.url(name, "")?, headers)?.drain();
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        let answer = self.ask(Method::DELETE, self.url(name, "")?, HeaderMap::new())?;
        if answer.is_success() {
            answer.drain();
            return Ok(());
        }
        let refusal = answer.refusal();
        if is_absent(&refusal) {
            return Ok(());
        }
        Err(refusal.into_failure(&format!("deleting {name}")))
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, Failure> {
        let after = after.unwrap_or_default();
        let known = self.known_marker(prefix, after).filter(|_| !after.is_empty());
        let mut marker = known.unwrap_or_default();
        // From the beginning the whole way has to be gone, in steps as large as they come.
        let step = if marker.is_empty() && !after.is_empty() {
            PAGE_ROWS_MAX
        } else {
            limit
        };
        loop {
            let listing = match self.page_at(prefix, &marker, step) {
                // A marker that the service has forgotten.
                Err(Failure::Denied(_)) if !marker.is_empty() => {
                    self.forget_markers(prefix);
                    marker.clear();
                    continue;
                }
                answer => answer?,
            };
            marker = listing.next_marker.unwrap_or_default();
            let last_name = listing.blobs.blobs.last().map(|blob| blob.name.clone());
            if let Some(last_name) = last_name.filter(|_| !marker.is_empty()) {
                self.note_marker(prefix, &last_name, &marker);
            }
            let behind = listing.blobs.blobs.into_iter().filter(|blob| after < &*blob.name);
            let mut rows: Vec<Row> = behind.map(Row::from).collect();
            let more = !marker.is_empty() || limit < rows.len();
            rows.truncate(limit);
            if !rows.is_empty() || !more {
                return Ok(Page { rows, more });
            }
        }
    }

    fn begin_upload(&self, _: &str) -> Result<String, Failure> {
        // Blocks belong to the name that they are put under.
        Ok(String::new())
    }

    fn put_part(&self, name: &str, _: &str, number: u32, bytes: &[u8]) -> Result<String, Failure> {
        // All ids of a blob must have one length.
        let id = BASE64URL.encode(format!("{number:09}").as_bytes());
        let url = self.url(name, &format!("comp=block&blockid={}", uri_encode(&id, true)))?;
        let answer = self.tell(url, HeaderMap::new(), bytes)?;
        if !answer.is_success() {
            return Err(answer
                .refusal()
                .into_failure(&format!("putting part {number} of {name}")));
        }
        answer.drain();
        Ok(id)
    }

    fn finish_upload(&self, name: &str, _: &str, parts: &[String]) -> Result<(), Failure> {
        let ids: String = parts.iter().map(|id| format!("<Latest>{id}</Latest>")).collect();
        let body = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{ids}</BlockList>");
        let answer = self.tell(self.url(name, "comp=blocklist")?, HeaderMap::new(), body.as_bytes())?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure(&format!("finishing {name}")));
        }
        answer.drain();
        Ok(())
    }

    fn abort_upload(&self, _: &str, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    fn part_bytes(&self) -> usize {
        PART_BYTES
    }

    fn describe(&self) -> String {
        format!("container {}", self.container)
    }

    fn check_bucket(&self) -> Result<(), Failure> {
        let answer = self.ask(Method::GET, self.url("", "restype=container")?, HeaderMap::new())?;
        if answer.is_success() {
            answer.drain();
            return Ok(());
        }
        let refusal = answer.refusal();
        match (refusal.status, &self.authority) {
            (404, _) => {}
            // A token may allow what lies in the container and not a look at the container itself.
            (403, Authority::Token(_)) => return Ok(()),
            _ => return Err(refusal.into_failure("looking for the container")),
        }
        let answer = self.tell(self.url("", "restype=container")?, HeaderMap::new(), b"")?;
        if answer.is_success() {
            answer.drain();
            return Ok(());
        }
        let refusal = answer.refusal();
        match &*refusal.code {
            "ContainerAlreadyExists" => Ok(()),
            _ => Err(refusal.into_failure("making the container")),
        }
    }
}

impl From<Blob> for Row {
    fn from(blob: Blob) -> Self {
        let Properties {
            etag,
            content_bytes,
            last_modified,
        } = blob.properties;
        // What cannot be read counts as this moment's: nothing is removed for its age then.
        let modified = httpdate::parse_http_date(&last_modified).ok();
        let since_epoch = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self {
            name: blob.name,
            etag: unquoted(&etag).to_owned(),
            bytes: content_bytes,
            modified_ms: since_epoch.map_or(i64::MAX, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

fn is_absent(refusal: &Refusal) -> bool {
    refusal.status == 404 && refusal.code != "ContainerNotFound"
}

fn absent_or_failure<T>(answer: Answer, name: &str) -> Result<Option<T>, Failure> {
    let refusal = answer.refusal();
    if is_absent(&refusal) {
        return Ok(None);
    }
    Err(refusal.into_failure(&format!("reading {name}")))
}
