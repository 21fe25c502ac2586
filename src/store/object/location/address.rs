//! What `s3://` and `aws://` have in common.

use std::sync::Arc;

use url::Url;

use super::Lookup;
use super::parts::variable;
use crate::store::object::bucket::Bucket;
use crate::store::object::credentials::KeySource;
use crate::store::object::http::Http;
use crate::store::object::s3::{Encryption, S3Address, S3Bucket};
use crate::store::object::{OpenError, Options};

/// What both kinds of locations come down to.
pub(super) struct Address<'a> {
    pub(super) endpoint: &'a str,
    pub(super) region: &'a str,
    pub(super) bucket: &'a str,
    pub(super) path_style: bool,
}

impl Address<'_> {
    pub(super) fn connect(
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

/// How the store shall encrypt, by the environment and the key that the URL names.
pub(super) fn encryption(kms_key_id: Option<String>, variables: Lookup<'_>) -> Result<Encryption, String> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, s3};
    use super::*;

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
