//! `aws://`: S3 at AWS.

use std::sync::Arc;

use super::address::{Address, encryption};
use super::parts::{checked_bucket, checked_prefix, slashed, take_apart, variable, with_scheme};
use super::{Lookup, S3Secrets};
use crate::store::object::bucket::Bucket;
use crate::store::object::credentials::{KeySource, find_aws_credentials};
use crate::store::object::s3::Encryption;
use crate::store::object::{OpenError, Options};

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

impl AwsLocation {
    pub(super) fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
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

    pub(super) fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
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

/// Where S3 of a region is.
pub(super) fn aws_endpoint(region: &str) -> String {
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    format!("https://s3.{region}.{domain}")
}

fn checked_region(region: &str) -> Result<String, String> {
    let lawful = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let region = region.trim();
    if !region.is_empty() && region.bytes().all(lawful) {
        return Ok(region.to_owned());
    }
    Err(format!("{region:?} is no region"))
}

#[cfg(test)]
mod tests {
    use super::super::Location;
    use super::super::tests::parse;
    use super::*;

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
}
