//! `azure://`: Azure Blob.

use std::fmt;
use std::sync::Arc;

use url::Url;

use super::Lookup;
use super::parts::{checked_bucket, checked_prefix, slashed, take_apart, variable, with_scheme};
use crate::store::object::azure::AzureBucket;
use crate::store::object::bucket::Bucket;
use crate::store::object::http::Http;
use crate::store::object::sign_azure::Authority;
use crate::store::object::{OpenError, Options};

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

impl AzureLocation {
    pub(super) fn parse(rest: &str, variables: Lookup<'_>) -> Result<Self, String> {
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

    pub(super) fn connect(&self, options: &Options) -> Result<(Arc<dyn Bucket>, String), OpenError> {
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

#[cfg(test)]
mod tests {
    use super::super::Location;
    use super::super::tests::parse;
    use super::*;

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
}
