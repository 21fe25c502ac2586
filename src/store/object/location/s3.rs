//! `s3://`: any store that is compatible with S3.

use std::sync::Arc;

use s3::creds::Credentials;

use super::address::{Address, encryption};
use super::parts::{checked_bucket, checked_prefix, slashed, take_apart, variable};
use super::secrets::s3_secrets;
use super::{Lookup, S3Secrets};
use crate::store::object::bucket::Bucket;
use crate::store::object::credentials::KeySource;
use crate::store::object::s3::Encryption;
use crate::store::object::{OpenError, Options};

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

impl S3Location {
    pub(super) fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
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

    pub(super) fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::s3;
    use super::*;

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
}
