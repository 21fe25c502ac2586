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
//!
//! | part | what |
//! |---|---|
//! | `s3`, `aws`, `azure` | one scheme each: what may stand in its URL and in the environment, and the way there |
//! | `address` | what `s3://` and `aws://` have in common: where requests go and how the store encrypts |
//! | `secrets` | keys of S3 from the environment |
//! | `parts` | what URLs are made of, and which names are lawful |

mod address;
mod aws;
mod azure;
mod parts;
mod s3;
mod secrets;

use std::fmt;
use std::sync::Arc;

pub use aws::AwsLocation;
pub use azure::{AzureLocation, AzureSecret};
pub use s3::S3Location;
pub use secrets::S3Secrets;

use super::bucket::Bucket;
use super::{OpenError, Options};
use aws::aws_endpoint;

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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse(url: &str, variables: &[(&str, &str)]) -> Result<Location, String> {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Location::parse(url, &lookup).expect("an object store")
    }

    pub(super) fn s3(url: &str, variables: &[(&str, &str)]) -> S3Location {
        match parse(url, variables).unwrap() {
            Location::S3(location) => location,
            other => panic!("{other:?}"),
        }
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
}
