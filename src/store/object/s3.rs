//! S3 and what is compatible with it: signature version 4 over the HTTP client that the house has anyway.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use hmac::Mac;
use parking_lot::Mutex;
use s3::Region;
use s3::serde_types::{
    CompleteMultipartUploadData, InitiateMultipartUploadResponse, ListBucketResult, ListMultipartUploadsResult, Part,
};
use s3::signing::{self, HmacSha256};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;
use ureq::http::{HeaderMap, Method};
use url::Url;

use super::bucket::{Bucket, Condition, Failure, Object, Opened, Page, Put, Row};
use super::credentials::{KeySource, Keys};
use super::http::{Answer, Http, put_header, unquoted};
use crate::clock::SharedClock;

/// Services take no smaller parts.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// Services list no more at once.
const PAGE_ROWS_MAX: usize = 1000;
const DATETIME: &[time::format_description::BorrowedFormatItem<'static>] =
    format_description!("[year][month][day]T[hour][minute][second]Z");

/// How the store encrypts what it keeps, if it is told to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Encryption {
    /// As the bucket is set up.
    #[default]
    BucketDefault,
    /// With keys that the store manages alone (`AES256`).
    Managed,
    /// With a key of the key management service; the service's own default key if none is named.
    Kms(Option<String>),
}

/// What a bucket is addressed by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct S3Address {
    /// `http` or `https`, host and port.
    pub(super) endpoint: Url,
    pub(super) region: String,
    pub(super) bucket: String,
    /// The bucket is the first part of the path, and not of the host name.
    pub(super) path_style: bool,
}

pub(super) struct S3Bucket {
    address: S3Address,
    /// Ends with a slash.
    base: Url,
    region: Region,
    encryption: Encryption,
    keys: KeySource,
    http: Http,
    clock: SharedClock,
    /// Signing keys are good for a day.
    signing_key: Mutex<Option<SigningKey>>,
    /// Some stores know an etag only without its quotes.
    quote_etags: AtomicBool,
}

struct SigningKey {
    keys: Arc<Keys>,
    day: i64,
    key: Vec<u8>,
}

/// A body as the signature sees it.
enum Payload<'a> {
    None,
    Bytes(&'a [u8]),
}

impl S3Bucket {
    pub(super) fn new(
        address: S3Address,
        encryption: Encryption,
        keys: KeySource,
        http: Http,
        clock: SharedClock,
    ) -> Result<Self, Failure> {
        let mut base = address.endpoint.clone();
        if address.path_style {
            base.set_path(&format!("/{}/", address.bucket));
        } else {
            let host = format!("{}.{}", address.bucket, base.host_str().unwrap_or_default());
            base.set_host(Some(&host))
                .map_err(|cause| Failure::Denied(format!("{host} is no host name: {cause}")))?;
            base.set_path("/");
        }
        let region = Region::Custom {
            region: address.region.clone(),
            endpoint: address.endpoint.to_string(),
        };
        Ok(Self {
            address,
            base,
            region,
            encryption,
            keys,
            http,
            clock,
            signing_key: Mutex::new(None),
            quote_etags: true.into(),
        })
    }

    /// The address of an object. Its name holds nothing that a URL parser would take apart.
    fn object_url(&self, name: &str) -> Result<Url, Failure> {
        self.url(&signing::uri_encode(name, false), "")
    }

    fn url(&self, encoded_path: &str, query: &str) -> Result<Url, Failure> {
        let mark = if query.is_empty() { "" } else { "?" };
        let text = format!("{}{encoded_path}{mark}{query}", self.base);
        Url::parse(&text).map_err(|cause| Failure::Denied(format!("{text} is no address: {cause}")))
    }

    fn send(&self, method: Method, url: &Url, headers: HeaderMap, payload: &Payload<'_>) -> Result<Answer, Failure> {
        let headers = self.signed(&method, url, headers, payload)?;
        match payload {
            Payload::None => self.http.send(method, url.as_str(), headers),
            Payload::Bytes(bytes) => self.http.send_bytes(method, url.as_str(), headers, bytes),
        }
    }

    /// Adds what makes the request ours. Conditions are signed too, so that nobody can take them off on the way.
    fn signed(
        &self,
        method: &Method,
        url: &Url,
        mut headers: HeaderMap,
        payload: &Payload<'_>,
    ) -> Result<HeaderMap, Failure> {
        let Some(keys) = self.keys.keys()? else {
            return Ok(headers);
        };
        let now_seconds = self.clock.wall_seconds();
        let now = OffsetDateTime::from_unix_timestamp(now_seconds).map_err(unsignable)?;
        let host = match (url.host_str(), url.port()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (host, _) => host.unwrap_or_default().to_owned(),
        };
        let hash = match payload {
            Payload::None => hex(&Sha256::digest(b"")),
            // TLS protects a large body on its way, so its hash would be wasted work.
            Payload::Bytes(bytes) if url.scheme() == "https" && PART_BYTES <= bytes.len() => {
                "UNSIGNED-PAYLOAD".to_owned()
            }
            Payload::Bytes(bytes) => hex(&Sha256::digest(bytes)),
        };
        put_header(&mut headers, "host", &host)?;
        put_header(&mut headers, "x-amz-content-sha256", &hash)?;
        put_header(&mut headers, "x-amz-date", &now.format(DATETIME).map_err(unsignable)?)?;
        if let Some(token) = &keys.session_token {
            put_header(&mut headers, "x-amz-security-token", token)?;
        }
        let canonical = signing::canonical_request(method.as_str(), url, &headers, &hash).map_err(unsignable)?;
        let to_sign = signing::string_to_sign(&now, &self.region, &canonical).map_err(unsignable)?;
        let key = self.signing_key(&keys, &now, now_seconds.div_euclid(24 * 3600))?;
        let mut mac = HmacSha256::new_from_slice(&key).map_err(unsignable)?;
        mac.update(to_sign.as_bytes());
        let signature = hex(&mac.finalize().into_bytes());
        let names = signing::signed_header_string(&headers);
        let authorization = signing::authorization_header(&keys.access_key, &now, &self.region, &names, &signature);
        put_header(&mut headers, "authorization", &authorization.map_err(unsignable)?)?;
        Ok(headers)
    }

    fn signing_key(&self, keys: &Arc<Keys>, now: &OffsetDateTime, day: i64) -> Result<Vec<u8>, Failure> {
        let mut cached = self.signing_key.lock();
        if let Some(known) = &*cached
            && known.day == day
            && Arc::ptr_eq(&known.keys, keys)
        {
            return Ok(known.key.clone());
        }
        let key = signing::signing_key(now, &keys.secret_key, &self.region, "s3").map_err(unsignable)?;
        *cached = Some(SigningKey {
            keys: Arc::clone(keys),
            day,
            key: key.clone(),
        });
        Ok(key)
    }

    fn encryption_headers(&self, headers: &mut HeaderMap) -> Result<(), Failure> {
        const ALGORITHM: &str = "x-amz-server-side-encryption";
        match &self.encryption {
            Encryption::BucketDefault => Ok(()),
            Encryption::Managed => put_header(headers, ALGORITHM, "AES256"),
            Encryption::Kms(key_id) => {
                put_header(headers, ALGORITHM, "aws:kms")?;
                match key_id {
                    Some(key_id) => put_header(headers, "x-amz-server-side-encryption-aws-kms-key-id", key_id),
                    None => Ok(()),
                }
            }
        }
    }

    fn etag_header(&self, etag: &str) -> String {
        if self.quote_etags.load(Ordering::Relaxed) {
            format!("\"{etag}\"")
        } else {
            etag.to_owned()
        }
    }
}

impl Bucket for S3Bucket {
    fn get(&self, name: &str) -> Result<Option<Object>, Failure> {
        let answer = self.send(Method::GET, &self.object_url(name)?, HeaderMap::new(), &Payload::None)?;
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
            put_header(&mut headers, "range", &format!("bytes={from}-"))?;
        }
        if let Some(etag) = etag {
            put_header(&mut headers, "if-match", &self.etag_header(etag))?;
        }
        let answer = self.send(Method::GET, &self.object_url(name)?, headers, &Payload::None)?;
        if !answer.is_success() {
            return absent_or_failure(answer, name);
        }
        if 0 < from && answer.status != 206 {
            answer.drain();
            return Err(Failure::Denied(
                "the store does not serve parts of an object".to_owned(),
            ));
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
        match condition {
            Condition::None => {}
            Condition::Absent => put_header(&mut headers, "if-none-match", "*")?,
            Condition::Matches(etag) => put_header(&mut headers, "if-match", &self.etag_header(etag))?,
        }
        self.encryption_headers(&mut headers)?;
        let answer = self.send(Method::PUT, &self.object_url(name)?, headers, &Payload::Bytes(bytes))?;
        if answer.is_success() {
            let etag = answer.etag()?;
            answer.drain();
            return Ok(Put::Done(etag));
        }
        let refusal = answer.refusal();
        match (refusal.status, condition) {
            (412, _) => Ok(Put::Refused),
            (404, Condition::Matches(_)) if refusal.code != "NoSuchBucket" => Ok(Put::Refused),
            _ => Err(refusal.into_failure(&format!("putting {name}"))),
        }
    }

    fn delete_if(&self, name: &str, etag: &str) -> Result<(), Failure> {
        let mut headers = HeaderMap::new();
        put_header(&mut headers, "if-match", &self.etag_header(etag))?;
        let answer = self.send(Method::DELETE, &self.object_url(name)?, headers, &Payload::None)?;
        answer.drain();
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<(), Failure> {
        let answer = self.send(
            Method::DELETE,
            &self.object_url(name)?,
            HeaderMap::new(),
            &Payload::None,
        )?;
        if answer.is_success() {
            answer.drain();
            return Ok(());
        }
        let refusal = answer.refusal();
        match refusal.status {
            404 if refusal.code != "NoSuchBucket" => Ok(()),
            _ => Err(refusal.into_failure(&format!("deleting {name}"))),
        }
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Page, Failure> {
        let mut query = format!(
            "list-type=2&max-keys={}&prefix={}",
            limit.clamp(1, PAGE_ROWS_MAX),
            signing::uri_encode(prefix, true)
        );
        if let Some(after) = after {
            query.push_str("&start-after=");
            query.push_str(&signing::uri_encode(after, true));
        }
        let answer = self.send(Method::GET, &self.url("", &query)?, HeaderMap::new(), &Payload::None)?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure(&format!("listing {prefix:?}")));
        }
        let listed: ListBucketResult = parse(&answer.text()?, "listing")?;
        let rows = listed.contents.into_iter().map(|object| Row {
            etag: unquoted(object.e_tag.as_deref().unwrap_or_default()).to_owned(),
            name: object.key,
            bytes: object.size,
            modified_ms: rfc3339_ms(&object.last_modified),
        });
        Ok(Page {
            rows: rows.collect(),
            more: listed.is_truncated,
        })
    }

    fn begin_upload(&self, name: &str) -> Result<String, Failure> {
        let mut headers = HeaderMap::new();
        self.encryption_headers(&mut headers)?;
        let url = self.url(&signing::uri_encode(name, false), "uploads=")?;
        let answer = self.send(Method::POST, &url, headers, &Payload::Bytes(b""))?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure(&format!("beginning to put {name}")));
        }
        let begun: InitiateMultipartUploadResponse = parse(&answer.text()?, "beginning of an upload")?;
        Ok(begun.upload_id)
    }

    fn put_part(&self, name: &str, upload: &str, number: u32, bytes: &[u8]) -> Result<String, Failure> {
        let query = format!("partNumber={number}&uploadId={}", signing::uri_encode(upload, true));
        let url = self.url(&signing::uri_encode(name, false), &query)?;
        let answer = self.send(Method::PUT, &url, HeaderMap::new(), &Payload::Bytes(bytes))?;
        if !answer.is_success() {
            return Err(answer
                .refusal()
                .into_failure(&format!("putting part {number} of {name}")));
        }
        let etag = answer.etag()?;
        answer.drain();
        Ok(etag)
    }

    fn finish_upload(&self, name: &str, upload: &str, parts: &[String]) -> Result<(), Failure> {
        let parts = parts.iter().zip(1..).map(|(etag, part_number)| Part {
            part_number,
            etag: format!("\"{etag}\""),
        });
        let body = CompleteMultipartUploadData { parts: parts.collect() }.to_string();
        let query = format!("uploadId={}", signing::uri_encode(upload, true));
        let url = self.url(&signing::uri_encode(name, false), &query)?;
        let answer = self.send(Method::POST, &url, HeaderMap::new(), &Payload::Bytes(body.as_bytes()))?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure(&format!("finishing {name}")));
        }
        // The service answers before it has done the work, so a good status may still come with an error.
        match answer.text()? {
            text if text.contains("<Error>") => Err(Failure::Lost(format!("finishing {name}: {text}"))),
            _ => Ok(()),
        }
    }

    fn abort_upload(&self, name: &str, upload: &str) -> Result<(), Failure> {
        let query = format!("uploadId={}", signing::uri_encode(upload, true));
        let url = self.url(&signing::uri_encode(name, false), &query)?;
        let answer = self.send(Method::DELETE, &url, HeaderMap::new(), &Payload::None)?;
        answer.drain();
        Ok(())
    }

    fn abort_uploads_before(&self, prefix: &str, time_ms: i64) -> Result<(), Failure> {
        let query = format!("prefix={}&uploads=", signing::uri_encode(prefix, true));
        let answer = self.send(Method::GET, &self.url("", &query)?, HeaderMap::new(), &Payload::None)?;
        if !answer.is_success() {
            return Err(answer.refusal().into_failure("listing uploads"));
        }
        // What does not fit into one answer is for the next time.
        let listed: ListMultipartUploadsResult = parse(&answer.text()?, "listing of uploads")?;
        for upload in &listed.uploads {
            if upload.key.starts_with(prefix) && rfc3339_ms(&upload.initiated) < time_ms {
                self.abort_upload(&upload.key, &upload.id)?;
            }
        }
        Ok(())
    }

    fn part_bytes(&self) -> usize {
        PART_BYTES
    }

    fn describe(&self) -> String {
        format!("bucket {} at {}", self.address.bucket, self.address.endpoint)
    }

    fn use_plain_etags(&self) {
        self.quote_etags.store(false, Ordering::Relaxed);
    }

    fn check_bucket(&self) -> Result<(), Failure> {
        let answer = self.send(Method::HEAD, &self.url("", "")?, HeaderMap::new(), &Payload::None)?;
        let bucket = &self.address.bucket;
        let region = answer.header("x-amz-bucket-region").map(str::to_owned);
        match answer.status {
            200..=299 => Ok(()),
            404 => Err(Failure::Denied(format!(
                "there is no bucket {bucket}, it must be made first"
            ))),
            301 | 307 | 400 if region.as_ref().is_some_and(|region| *region != self.address.region) => {
                Err(Failure::Denied(format!(
                    "bucket {bucket} is in region {}, not in {}",
                    region.unwrap_or_default(),
                    self.address.region
                )))
            }
            // A HEAD has no body that could say more, a listing has.
            403 => self.list("", None, 1).map(drop),
            _ => Err(answer.refusal().into_failure(&format!("looking for bucket {bucket}"))),
        }
    }
}

fn absent_or_failure<T>(answer: Answer, name: &str) -> Result<Option<T>, Failure> {
    let refusal = answer.refusal();
    match refusal.status {
        404 if refusal.code != "NoSuchBucket" => Ok(None),
        _ => Err(refusal.into_failure(&format!("reading {name}"))),
    }
}

fn parse<'de, T: serde::Deserialize<'de>>(xml: &'de str, what: &str) -> Result<T, Failure> {
    quick_xml::de::from_str(xml)
        .map_err(|cause| Failure::Lost(format!("the answer to a {what} cannot be read: {cause}")))
}

fn unsignable(cause: impl fmt::Display) -> Failure {
    Failure::Denied(format!("the request cannot be signed: {cause}"))
}

/// A time as listings write it. What cannot be read counts as this moment's: nothing is removed for its age then.
fn rfc3339_ms(text: &str) -> i64 {
    let since_epoch = humantime::parse_rfc3339_weak(text)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_epoch.map_or(i64::MAX, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
