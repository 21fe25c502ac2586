//! Which bucket: a store URL, what the environment adds to it, and the way from both to a [`Bucket`].
//!
//! ```text
//! s3://host[:port]/bucket[/prefix]     insecure=1 | tls= | secure= | scheme=http, path-style=, region=, kms-key-id=
//! aws://bucket[/prefix]                region=, endpoint=, insecure=1, kms-key-id=
//! azure://account/container[/prefix]   endpoint=, sas=
//! ```
//!
//! Secrets come from variables: for `s3://` from `LOCKD_S3_*`, for `aws://` from wherever programs on AWS find theirs, for
//! `azure://` from those that its other tools read. Only a token of Azure may stand in the URL.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use s3::creds::Credentials;
use s3::creds::error::CredentialsError;
use url::Url;

use super::azure::AzureBucket;
use super::bucket::Bucket;
use super::credentials::{KeySource, find_aws_credentials};
use super::http::Http;
use super::s3::{Encryption, S3Address, S3Bucket};
use super::sign_azure::Authority;
use super::{OpenError, Options};

/// Leaves room for the longest record key.
const PREFIX_BYTES_MAX: usize = 256;

/// Where the objects are and who we are there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// `s3://`: any store that is compatible with S3.
    S3(S3Location),
    /// `aws://`: S3 at AWS.
    Aws(AwsLocation),
    /// `azure://`: Azure Blob.
    Azure(AzureLocation),
}

/// A container of Azure Blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzureLocation {
    /// The storage account.
    pub account: String,
    /// The container. It is made if it is missing.
    pub container: String,
    /// What the names of all blobs begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// Another address than that of the account at Azure.
    pub endpoint: Option<String>,
    /// Who we are.
    pub secret: AzureSecret,
}

/// What lets us in at Azure. Its `Debug` keeps it to itself.
#[derive(Clone, PartialEq, Eq)]
pub enum AzureSecret {
    /// The account's key, in Base64.
    AccountKey(String),
    /// A shared access signature: the query of a URL.
    Token(String),
}

impl fmt::Debug for AzureSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AccountKey(_) => "AccountKey(..)",
            Self::Token(_) => "Token(..)",
        })
    }
}

/// What a person may know of it: where it is, and whether there are credentials, but not which.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |prefix: &str| {
            if prefix.is_empty() {
                "(none)".to_owned()
            } else {
                prefix.to_owned()
            }
        };
        match self {
            Self::S3(location) => {
                writeln!(f, "Store: s3://{}\nProvider: s3", location.bucket)?;
                writeln!(
                    f,
                    "Endpoint: {}\nPrefix: {}",
                    location.endpoint,
                    prefix(&location.prefix)
                )?;
                match &location.secrets {
                    Some(secrets) => write!(f, "AccessKey: {} (has_secret: true)", secrets.access_key),
                    None => f.write_str("AccessKey: (none)"),
                }
            }
            Self::Aws(location) => {
                writeln!(
                    f,
                    "Store: aws://{}\nProvider: aws\nRegion: {}",
                    location.bucket, location.region
                )?;
                let endpoint = location
                    .endpoint
                    .clone()
                    .unwrap_or_else(|| aws_endpoint(&location.region));
                writeln!(f, "Endpoint: {endpoint}\nPrefix: {}", prefix(&location.prefix))?;
                match &location.secrets {
                    Some(secrets) => write!(f, "AccessKey: {} (has_secret: true)", secrets.access_key),
                    None => f.write_str("AccessKey: (looked for when the bucket is opened)"),
                }
            }
            Self::Azure(location) => {
                writeln!(
                    f,
                    "Store: azure://{}/{}\nProvider: azure",
                    location.account, location.container
                )?;
                if let Some(endpoint) = &location.endpoint {
                    writeln!(f, "Endpoint: {endpoint}")?;
                }
                writeln!(f, "Prefix: {}", prefix(&location.prefix))?;
                f.write_str(match location.secret {
                    AzureSecret::AccountKey(_) => "Credentials: account key",
                    AzureSecret::Token(_) => "Credentials: token",
                })
            }
        }
    }
}

/// A bucket at AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsLocation {
    /// Its region.
    pub region: String,
    /// The bucket. It must exist.
    pub bucket: String,
    /// What the names of all objects begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// Another address than that of the region: a private endpoint, or a double for tests.
    pub endpoint: Option<String>,
    /// How the store encrypts.
    pub encryption: Encryption,
    /// Who we are, if the environment says so; else it is looked for in all the usual places when the bucket is opened.
    pub secrets: Option<S3Secrets>,
    /// Section of the credentials file to look into.
    pub profile: Option<String>,
}

/// A bucket of a store that is compatible with S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Location {
    /// `https` or `http`, host and port: `https://127.0.0.1:9000`.
    pub endpoint: String,
    /// The region that requests are signed for. Most stores but AWS do not care.
    pub region: String,
    /// The bucket. It must exist.
    pub bucket: String,
    /// What the names of all objects begin with, without a slash at either end; may be empty.
    pub prefix: String,
    /// The bucket is the first part of the path (usual), and not of the host name.
    pub path_style: bool,
    /// How the store encrypts.
    pub encryption: Encryption,
    /// Who we are; `None` for a bucket that lets strangers in.
    pub secrets: Option<S3Secrets>,
}

/// Keys of an S3-compatible store. Their `Debug` keeps them to itself.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Secrets {
    /// Access key id.
    pub access_key: String,
    /// Secret key.
    pub secret_key: String,
    /// Token of temporary keys.
    pub session_token: Option<String>,
}

impl fmt::Debug for S3Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Secrets(..)")
    }
}

/// Looks up a variable of the environment, or an option that is named like one.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Location {
    /// Reads a store URL, with the variables that belong to it. `None`: the scheme is none of an object store. An error
    /// says what is wrong and repeats no secret.
    pub fn parse(url: &str, variables: Lookup<'_>) -> Option<Result<Self, String>> {
        let (scheme, rest) = url.trim().split_once("://")?;
        match scheme {
            "s3" => Some(S3Location::parse(rest, variables).map(Self::S3)),
            "aws" => Some(AwsLocation::parse(rest, variables).map(Self::Aws)),
            "azure" => Some(AzureLocation::parse(rest, variables).map(Self::Azure)),
            _ => None,
        }
    }

    /// The bucket behind this location, not looked at yet, and the prefix in it.
    pub(super) fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
        match self {
            Self::S3(location) => location.connect(options),
            Self::Aws(location) => location.connect(options),
            Self::Azure(location) => location.connect(options),
        }
    }
}

impl S3Location {
    fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
        const FORM: &str = "expected s3://host[:port]/bucket[/prefix]";
        let (host, path, mut query) = take_apart(rest)?;
        let (bucket, prefix) = path.split_once('/').unwrap_or((path, ""));
        if host.is_empty() || bucket.is_empty() {
            return Err(FORM.to_owned());
        }
        let mut secure = true;
        for (name, means_secure) in [("tls", true), ("secure", true), ("insecure", false)] {
            if let Some(is_so) = query.switch(name)? {
                secure = is_so == means_secure;
            }
        }
        match query.take("scheme").as_deref() {
            None => {}
            Some("http") => secure = false,
            Some("https") => secure = true,
            Some(_) => return Err("scheme= is http or https".to_owned()),
        }
        let path_style = query.switch("path-style")?.unwrap_or(true);
        let region = query.take("region").unwrap_or_else(|| "us-east-1".to_owned());
        let kms_key_id = query
            .take("kms-key-id")
            .or_else(|| variable(variables, "LOCKD_S3_KMS_KEY_ID"));
        query.nothing_left()?;
        Ok(Self {
            endpoint: format!("{}://{host}", if secure { "https" } else { "http" }),
            region,
            bucket: checked_bucket(bucket)?,
            prefix: checked_prefix(prefix)?,
            path_style,
            encryption: encryption(kms_key_id, variables)?,
            secrets: s3_secrets(variables)?,
        })
    }

    fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
        let credentials = match &self.secrets {
            Some(secrets) => secrets.credentials(),
            None => Credentials::anonymous(),
        };
        let credentials = credentials.map_err(|cause| OpenError::Credentials(cause.to_string()))?;
        let keys = KeySource::new(credentials, Arc::clone(&options.clock), Arc::clone(&options.logger));
        let address = Address {
            endpoint: &self.endpoint,
            region: &self.region,
            bucket: &self.bucket,
            path_style: self.path_style,
        };
        Ok((address.connect(keys, &self.encryption, options)?, slashed(&self.prefix)))
    }
}

impl AwsLocation {
    fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
        let (bucket, prefix, mut query) = take_apart(rest)?;
        if bucket.is_empty() {
            return Err("expected aws://bucket[/prefix]".to_owned());
        }
        let first_of = |names: &[&str]| names.iter().find_map(|name| variable(variables, name));
        let region = (query.take("region"))
            .or_else(|| first_of(&["LOCKD_AWS_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"]))
            .ok_or("the region is missing: set AWS_REGION, --aws-region or region= in the URL")?;
        let insecure = query.switch("insecure")?.unwrap_or(false);
        let endpoint = (query.take("endpoint"))
            .or_else(|| first_of(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]))
            .map(|endpoint| with_scheme(&endpoint, insecure));
        let kms_key_id = (query.take("kms-key-id"))
            .or_else(|| first_of(&["LOCKD_AWS_KMS_KEY_ID", "AWS_KMS_KEY_ID", "LOCKD_S3_KMS_KEY_ID"]));
        query.nothing_left()?;
        let secrets = match (
            variable(variables, "AWS_ACCESS_KEY_ID"),
            variable(variables, "AWS_SECRET_ACCESS_KEY"),
        ) {
            (Some(access_key), Some(secret_key)) => Some(S3Secrets {
                access_key,
                secret_key,
                session_token: variable(variables, "AWS_SESSION_TOKEN"),
            }),
            (None, None) => None,
            (Some(_), None) => return Err("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".to_owned()),
            (None, Some(_)) => return Err("AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".to_owned()),
        };
        Ok(Self {
            region: checked_region(&region)?,
            bucket: checked_bucket(bucket)?,
            prefix: checked_prefix(prefix)?,
            endpoint,
            encryption: encryption(kms_key_id, variables)?,
            secrets,
            profile: variable(variables, "AWS_PROFILE"),
        })
    }

    /// The rights that are needed, as a policy.
    pub fn policy(&self) -> String {
        let objects = match &*self.prefix {
            "" => format!("arn:aws:s3:::{}/*", self.bucket),
            prefix => format!("arn:aws:s3:::{}/{prefix}/*", self.bucket),
        };
        format!(
            r#"{{
  "Version": "2012-10-17",
  "Statement": [
    {{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:ListBucketMultipartUploads"], "Resource": "arn:aws:s3:::{}"}},
    {{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
     "Resource": "{objects}"}}
  ]
}}"#,
            self.bucket
        )
    }

    fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
        let credentials = match &self.secrets {
            Some(secrets) => secrets
                .credentials()
                .map_err(|cause| OpenError::Credentials(cause.to_string()))?,
            None => find_aws_credentials(self.profile.as_deref()).map_err(OpenError::Credentials)?,
        };
        let keys = KeySource::new(credentials, Arc::clone(&options.clock), Arc::clone(&options.logger));
        let endpoint = match &self.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => aws_endpoint(&self.region),
        };
        let address = Address {
            endpoint: &endpoint,
            region: &self.region,
            bucket: &self.bucket,
            // Certificates are for one level of names, so a bucket with dots cannot be part of the host.
            path_style: self.endpoint.is_some() || self.bucket.contains('.'),
        };
        Ok((address.connect(keys, &self.encryption, options)?, slashed(&self.prefix)))
    }
}

impl AzureLocation {
    fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
        let (host, path, mut query) = take_apart(rest)?;
        let (container, prefix) = path.split_once('/').unwrap_or((path, ""));
        let first_of = |names: &[&str]| names.iter().find_map(|name| variable(variables, name));
        let account = Some(host.to_owned()).filter(|host| !host.is_empty()).or_else(|| {
            first_of(&[
                "AZURE_STORAGE_ACCOUNT",
                "AZURE_STORAGE_ACCOUNT_NAME",
                "AZURE_ACCOUNT_NAME",
            ])
        });
        let Some(account) = account.filter(|_| !container.is_empty()) else {
            return Err("expected azure://account/container[/prefix]".to_owned());
        };
        let token = (query.take("sas"))
            .or_else(|| first_of(&["LOCKD_AZURE_SAS_TOKEN", "AZURE_STORAGE_SAS_TOKEN", "AZURE_SAS_TOKEN"]));
        let key = || {
            first_of(&[
                "LOCKD_AZURE_KEY",
                "LOCKD_AZURE_ACCOUNT_KEY",
                "AZURE_STORAGE_ACCOUNT_KEY",
                "AZURE_ACCOUNT_KEY",
                "AZURE_STORAGE_KEY",
            ])
        };
        let secret = match token {
            Some(token) => AzureSecret::Token(token.trim().trim_start_matches('?').to_owned()),
            None => AzureSecret::AccountKey(
                key().ok_or("no credentials for the account: set LOCKD_AZURE_ACCOUNT_KEY or LOCKD_AZURE_SAS_TOKEN")?,
            ),
        };
        let endpoint = query
            .take("endpoint")
            .or_else(|| variable(variables, "LOCKD_AZURE_ENDPOINT"));
        query.nothing_left()?;
        let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        if !account.bytes().all(lawful) {
            return Err(format!("{account:?} is no name of a storage account"));
        }
        Ok(Self {
            account,
            container: checked_bucket(container)?,
            prefix: checked_prefix(prefix)?,
            endpoint: endpoint.map(|endpoint| with_scheme(&endpoint, false)),
            secret,
        })
    }

    fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
        let authority = match &self.secret {
            AzureSecret::AccountKey(key) => {
                Authority::shared_key(&self.account, key).map_err(OpenError::Credentials)?
            }
            AzureSecret::Token(token) => Authority::Token(token.clone()),
        };
        let base = match &self.endpoint {
            Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
            None => format!("https://{}.blob.core.windows.net", self.account),
        };
        let container = format!("{base}/{}", self.container);
        let container = Url::parse(&container).map_err(|cause| OpenError::Unusable {
            store: format!("container {container}"),
            detail: cause.to_string(),
        })?;
        let http = Http::new(options.timeouts, container.scheme() == "https");
        let bucket = AzureBucket::new(container, authority, http, Arc::clone(&options.clock));
        Ok((Arc::new(bucket), slashed(&self.prefix)))
    }
}

impl S3Secrets {
    fn credentials(&self) -> Result<Credentials, CredentialsError> {
        Credentials::new(
            Some(&self.access_key),
            Some(&self.secret_key),
            None,
            self.session_token.as_deref(),
            None,
        )
    }
}

/// What both kinds of locations come down to.
struct Address<'a> {
    endpoint: &'a str,
    region: &'a str,
    bucket: &'a str,
    path_style: bool,
}

impl Address<'_> {
    fn connect(
        self,
        keys: KeySource,
        encryption: &Encryption,
        options: &Options,
    ) -> Result<Arc<dyn Bucket>, OpenError> {
        let unusable = |detail: String| OpenError::Unusable {
            store: format!("bucket {} at {}", self.bucket, self.endpoint),
            detail,
        };
        let endpoint = Url::parse(self.endpoint).map_err(|cause| unusable(cause.to_string()))?;
        let http = Http::new(options.timeouts, endpoint.scheme() == "https");
        let address = S3Address {
            endpoint,
            region: self.region.to_owned(),
            bucket: self.bucket.to_owned(),
            path_style: self.path_style,
        };
        let bucket = S3Bucket::new(address, encryption.clone(), keys, http, Arc::clone(&options.clock));
        Ok(Arc::new(bucket.map_err(|failure| unusable(failure.to_string()))?))
    }
}

/// Where S3 of a region is.
fn aws_endpoint(region: &str) -> String {
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://s3.{region}.{domain}")
}

fn with_scheme(endpoint: &str, insecure: bool) -> String {
    match endpoint.contains("://") {
        true => endpoint.to_owned(),
        false => format!("{}://{endpoint}", if insecure { "http" } else { "https" }),
    }
}

fn checked_region(region: &str) -> Result<String, String> {
    let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let region = region.trim();
    if !region.is_empty() && region.bytes().all(lawful) {
        return Ok(region.to_owned());
    }
    Err(format!("{region:?} is no region"))
}

fn s3_secrets(variables: Lookup<'_>) -> Result<Option<S3Secrets>, String> {
    for (name, secret) in [
        ("LOCKD_S3_ACCESS_KEY_ID", "LOCKD_S3_SECRET_ACCESS_KEY"),
        ("LOCKD_S3_ROOT_USER", "LOCKD_S3_ROOT_PASSWORD"),
    ] {
        match (variable(variables, name), variable(variables, secret)) {
            (Some(access_key), Some(secret_key)) => {
                return Ok(Some(S3Secrets {
                    access_key,
                    secret_key,
                    session_token: variable(variables, "LOCKD_S3_SESSION_TOKEN"),
                }));
            }
            (None, None) => {}
            (Some(_), None) => return Err(format!("{name} is set, but {secret} is not")),
            (None, Some(_)) => return Err(format!("{secret} is set, but {name} is not")),
        }
    }
    Ok(None)
}

fn encryption(kms_key_id: Option<String>, variables: Lookup<'_>) -> Result<Encryption, String> {
    match (
        variable(variables, "LOCKD_S3_SSE").as_deref().map(str::trim),
        kms_key_id,
    ) {
        (None | Some("aws:kms"), Some(key_id)) => Ok(Encryption::Kms(Some(key_id))),
        (Some("aws:kms"), None) => Ok(Encryption::Kms(None)),
        (Some("AES256"), None) => Ok(Encryption::Managed),
        (Some("AES256"), Some(_)) => Err("s3-sse is AES256, which takes no KMS key".to_owned()),
        (Some(_), _) => Err("s3-sse is AES256 or aws:kms".to_owned()),
        (None, None) => Ok(Encryption::BucketDefault),
    }
}

/// A variable that is set and not empty.
fn variable(variables: Lookup<'_>, name: &str) -> Option<String> {
    variables(name).filter(|value| !value.trim().is_empty())
}

/// Host, path without its first slash, and query of what follows `scheme://`.
fn take_apart(rest: &str) -> Result<(&str, &str, Query), String> {
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
struct Query(BTreeMap<String, String>);

impl Query {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name).filter(|value| !value.is_empty())
    }

    fn switch(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.take(name).map(|value| value.to_ascii_lowercase()).as_deref() {
            None => Ok(None),
            Some("1" | "t" | "true") => Ok(Some(true)),
            Some("0" | "f" | "false") => Ok(Some(false)),
            Some(_) => Err(format!("{name}= is true or false")),
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("{name}= is no parameter of this store")),
            None => Ok(()),
        }
    }
}

fn checked_bucket(bucket: &str) -> Result<String, String> {
    let lawful = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if bucket.bytes().all(lawful) && !bucket.starts_with('.') {
        return Ok(bucket.to_owned());
    }
    Err(format!("{bucket:?} is no name of a bucket"))
}

/// Object names begin with this, so it must be as harmless as they are.
fn checked_prefix(prefix: &str) -> Result<String, String> {
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
fn slashed(prefix: &str) -> String {
    let prefix = prefix.trim_matches('/');
    if prefix.is_empty() {
        String::new()
    } else {
        format!("{prefix}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str, variables: &[(&str, &str)]) -> Result<Location, String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Location::parse(url, &lookup).expect("an object store")
    }

    fn s3(url: &str, variables: &[(&str, &str)]) -> S3Location {
        match parse(url, variables).unwrap() {
            Location::S3(location) => location,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_s3_url_names_host_bucket_and_prefix_and_speaks_tls() {
        let location = s3("s3://minio.lan:9000/lockd/a/b/", &[]);
        assert_eq!(
            location,
            S3Location {
                endpoint: "https://minio.lan:9000".to_owned(),
                region: "us-east-1".to_owned(),
                bucket: "lockd".to_owned(),
                prefix: "a/b".to_owned(),
                path_style: true,
                encryption: Encryption::BucketDefault,
                secrets: None,
            }
        );
        for plain in ["insecure=1", "tls=false", "secure=0", "scheme=http"] {
            assert_eq!(s3(&format!("s3://h/b?{plain}"), &[]).endpoint, "http://h", "{plain}");
        }
        assert!(!s3("s3://h/b?path-style=false", &[]).path_style);
    }

    #[test]
    fn an_aws_url_names_a_bucket_and_finds_the_rest() {
        let aws = |url, variables: &[(&str, &str)]| match parse(url, variables).unwrap() {
            Location::Aws(location) => location,
            other => panic!("{other:?}"),
        };
        let location = aws(
            "aws://bucket/a/b",
            &[("AWS_REGION", "eu-north-1"), ("AWS_PROFILE", "p")],
        );
        assert_eq!((&*location.bucket, &*location.prefix), ("bucket", "a/b"));
        assert_eq!(location.profile.as_deref(), Some("p"));
        assert_eq!(aws_endpoint(&location.region), "https://s3.eu-north-1.amazonaws.com");
        let regions = [
            ("LOCKD_AWS_REGION", "a"),
            ("AWS_REGION", "b"),
            ("AWS_DEFAULT_REGION", "c"),
        ];
        assert_eq!(aws("aws://bucket?region=d", &regions).region, "d");
        for (from, expected) in [(0, "a"), (1, "b"), (2, "c")] {
            assert_eq!(aws("aws://bucket", &regions[from..]).region, expected);
        }
        assert!(parse("aws://bucket", &[]).unwrap_err().contains("region"));
        let double = [("AWS_REGION", "r"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000")];
        assert_eq!(
            aws("aws://bucket", &double).endpoint.as_deref(),
            Some("http://127.0.0.1:5000")
        );
        let other = aws("aws://bucket?endpoint=h:1&insecure=1", &double);
        assert_eq!(other.endpoint.as_deref(), Some("http://h:1"));
        let keys = [
            ("AWS_REGION", "r"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
        ];
        assert_eq!(aws("aws://bucket", &keys).secrets.unwrap().access_key, "k");
        assert!(parse("aws://bucket", &keys[..2]).is_err());
        let kms = [
            ("AWS_REGION", "r"),
            ("LOCKD_S3_KMS_KEY_ID", "s"),
            ("AWS_KMS_KEY_ID", "a"),
        ];
        assert_eq!(
            aws("aws://bucket", &kms).encryption,
            Encryption::Kms(Some("a".to_owned()))
        );
    }

    #[test]
    fn an_azure_url_names_account_and_container() {
        let azure = |url, variables: &[(&str, &str)]| match parse(url, variables).unwrap() {
            Location::Azure(location) => location,
            other => panic!("{other:?}"),
        };
        let key = ("AZURE_STORAGE_KEY", "a2V5");
        let location = azure("azure://acct/box/a/b", &[key]);
        assert_eq!(
            (&*location.account, &*location.container, &*location.prefix),
            ("acct", "box", "a/b")
        );
        assert_eq!(location.secret, AzureSecret::AccountKey("a2V5".to_owned()));
        // The token wins, and the one in the URL first of all.
        let token = ("LOCKD_AZURE_SAS_TOKEN", "?sv=1&sig=x");
        let location = azure(
            "azure:///box?endpoint=http%3A%2F%2Fh%3A1%2Facct",
            &[key, token, ("AZURE_ACCOUNT_NAME", "acct")],
        );
        assert_eq!(location.secret, AzureSecret::Token("sv=1&sig=x".to_owned()));
        assert_eq!(
            (&*location.account, location.endpoint.as_deref()),
            ("acct", Some("http://h:1/acct"))
        );
        assert!(!format!("{location:?}").contains("sig"));
        let location = azure("azure://acct/box?sas=sv%3D2%26sig%3Dy", &[key, token]);
        assert_eq!(location.secret, AzureSecret::Token("sv=2&sig=y".to_owned()));
        for bad in [
            "azure://acct",
            "azure:///box",
            "azure://ac-ct/box",
            "azure://acct/box/../x",
        ] {
            assert!(parse(bad, &[key]).is_err(), "{bad}");
        }
        assert!(parse("azure://acct/box", &[]).unwrap_err().contains("credentials"));
    }

    #[test]
    fn malformed_urls_are_refused() {
        for bad in [
            "s3://",
            "s3://host",
            "s3://host/",
            "s3:///bucket",
            "s3://user:secret@host/bucket",
            "s3://host/bucket/../other",
            "s3://host/bucket/a//b",
            "s3://host/..",
            "s3://host/bucket?insecure=maybe",
            "s3://host/bucket?insecure=1&insecure=0",
            "s3://host/bucket?password=x",
        ] {
            assert!(parse(bad, &[]).is_err(), "{bad}");
        }
        assert!(Location::parse("disk:///a", &|_| None).is_none());
    }

    #[test]
    fn keys_come_in_pairs_and_the_first_pair_wins() {
        let access = [("LOCKD_S3_ACCESS_KEY_ID", "a"), ("LOCKD_S3_SECRET_ACCESS_KEY", "b")];
        let root = [("LOCKD_S3_ROOT_USER", "c"), ("LOCKD_S3_ROOT_PASSWORD", "d")];
        let token = [("LOCKD_S3_SESSION_TOKEN", "e")];
        let secrets = s3("s3://h/b", &[&root[..], &token, &access].concat()).secrets.unwrap();
        assert_eq!((&*secrets.access_key, &*secrets.secret_key), ("a", "b"));
        assert_eq!(secrets.session_token.as_deref(), Some("e"));
        assert_eq!(s3("s3://h/b", &root).secrets.unwrap().access_key, "c");
        assert!(!format!("{secrets:?}").contains('b'), "{secrets:?}");
        for half in [access[0], access[1], root[0], root[1]] {
            assert!(parse("s3://h/b", &[half]).unwrap_err().contains("is not"), "{half:?}");
        }
    }

    #[test]
    fn encryption_is_what_the_settings_say() {
        let encryption = |variables| s3("s3://h/b", variables).encryption;
        assert_eq!(encryption(&[("LOCKD_S3_SSE", "AES256")]), Encryption::Managed);
        assert_eq!(encryption(&[("LOCKD_S3_SSE", "aws:kms")]), Encryption::Kms(None));
        let named = Encryption::Kms(Some("k".to_owned()));
        assert_eq!(encryption(&[("LOCKD_S3_KMS_KEY_ID", "k")]), named);
        assert_eq!(
            s3("s3://h/b?kms-key-id=k", &[("LOCKD_S3_KMS_KEY_ID", "other")]).encryption,
            named
        );
        assert!(parse("s3://h/b?kms-key-id=k", &[("LOCKD_S3_SSE", "AES256")]).is_err());
        assert!(parse("s3://h/b", &[("LOCKD_S3_SSE", "rot13")]).is_err());
    }
}
