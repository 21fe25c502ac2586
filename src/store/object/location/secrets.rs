//! Keys of S3.

use std::fmt;

use s3::creds::Credentials;
use s3::creds::error::CredentialsError;

use super::Lookup;
use super::parts::variable;

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

impl S3Secrets {
    pub(super) fn credentials(&self) -> Result<Credentials, CredentialsError> {
        Credentials::new(
            Some(&self.access_key),
            Some(&self.secret_key),
            None,
            self.session_token.as_deref(),
            None,
        )
    }
}

/// The first pair of keys that the environment has for `s3://`, if any.
pub(super) fn s3_secrets(variables: Lookup<'_>) -> Result<Option<S3Secrets>, String> {
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

#[cfg(test)]
mod tests {
    use super::super::tests::{parse, s3};

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
}
