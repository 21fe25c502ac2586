//! Who we are to Azure: a signature with the account's key in each request, or a token in each URL.

use std::time::{Duration, UNIX_EPOCH};

use data_encoding::BASE64;
use hmac::Mac;
use s3::signing::HmacSha256;
use ureq::http::{HeaderMap, Method};
use url::Url;

use super::bucket::Failure;
use super::http::put_header;

/// The version of the protocol that is spoken.
const VERSION: &str = "2021-12-02";

/// How requests are authorised.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Authority {
    /// With the account's key.
    SharedKey { account: String, key: Vec<u8> },
    /// With a token that says by itself what it allows (a shared access signature): the query of a URL, without its mark.
    Token(String),
}

impl Authority {
    /// Takes the key as the portal shows it.
    pub(super) fn shared_key(account: &str, key: &str) -> Result<Self, String> {
        let key = BASE64
            .decode(key.trim().as_bytes())
            .map_err(|_| "the account key is not in Base64".to_owned())?;
        let account = account.to_owned();
        Ok(Self::SharedKey { account, key })
    }

    /// Adds what makes the request ours. `content_bytes` is the length of the body.
    pub(super) fn sign(
        &self,
        method: &Method,
        url: &mut Url,
        headers: &mut HeaderMap,
        content_bytes: usize,
        now_ms: i64,
    ) -> Result<(), Failure> {
        let since_epoch = Duration::from_millis(u64::try_from(now_ms).unwrap_or(0));
        put_header(headers, "x-ms-date", &httpdate::fmt_http_date(UNIX_EPOCH + since_epoch))?;
        put_header(headers, "x-ms-version", VERSION)?;
        match self {
            Self::Token(token) => {
                let query = match url.query() {
                    Some(query) => format!("{query}&{token}"),
                    None => token.clone(),
                };
                url.set_query(Some(&query));
                Ok(())
            }
            Self::SharedKey { account, key } => {
                let text = string_to_sign(account, method, url, headers, content_bytes);
                let unsignable = |_| Failure::Denied("the request cannot be signed".to_owned());
                let mut mac = HmacSha256::new_from_slice(key).map_err(unsignable)?;
                mac.update(text.as_bytes());
                let signature = BASE64.encode(&mac.finalize().into_bytes());
                put_header(headers, "authorization", &format!("SharedKey {account}:{signature}"))
            }
        }
    }
}

fn string_to_sign(account: &str, method: &Method, url: &Url, headers: &HeaderMap, content_bytes: usize) -> String {
    let value = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    // No length at all is meant by a length of nothing.
    let length = if content_bytes == 0 {
        String::new()
    } else {
        content_bytes.to_string()
    };
    let mut text = format!("{method}\n");
    for field in [
        value("content-encoding"),
        value("content-language"),
        &length,
        value("content-md5"),
        value("content-type"),
        // The date is in a header of their own.
        "",
        value("if-modified-since"),
        value("if-match"),
        value("if-none-match"),
        value("if-unmodified-since"),
        value("range"),
    ] {
        text.push_str(field);
        text.push('\n');
    }
    let own = headers.iter().filter(|(name, _)| name.as_str().starts_with("x-ms-"));
    let mut own: Vec<String> = own
        .map(|(name, value)| format!("{name}:{}\n", value.to_str().unwrap_or_default().trim()))
        .collect();
    own.sort_unstable();
    text.push_str(&own.concat());
    // Where the account is the first part of the path, as in the double, it is there twice.
    text.push_str(&format!("/{account}{}", url.path()));
    let mut parameters: Vec<(String, String)> = (url.query_pairs())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.into_owned()))
        .collect();
    parameters.sort_unstable();
    for (name, value) in parameters {
        text.push_str(&format!("\n{name}:{value}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_to_sign_is_that_of_the_documentation() {
        let url =
            Url::parse("https://myaccount.blob.core.windows.net/mycontainer?restype=container&comp=list&prefix=a%2F")
                .unwrap();
        let mut headers = HeaderMap::new();
        put_header(&mut headers, "x-ms-version", VERSION).unwrap();
        put_header(&mut headers, "x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT").unwrap();
        put_header(&mut headers, "if-none-match", "*").unwrap();
        let expected = format!(
            "GET\n\n\n\n\n\n\n\n\n*\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\nx-ms-version:{VERSION}\n\
             /myaccount/mycontainer\ncomp:list\nprefix:a/\nrestype:container"
        );
        assert_eq!(string_to_sign("myaccount", &Method::GET, &url, &headers, 0), expected);
        assert!(string_to_sign("myaccount", &Method::PUT, &url, &headers, 7).starts_with("PUT\n\n\n7\n"));
    }

    #[test]
    fn a_token_goes_into_the_query_and_nothing_is_signed() {
        let mut url = Url::parse("https://h/c/b?comp=block").unwrap();
        let mut headers = HeaderMap::new();
        let authority = Authority::Token("sv=1&sig=a%2Bb".to_owned());
        authority.sign(&Method::PUT, &mut url, &mut headers, 1, 0).unwrap();
        assert_eq!(url.query(), Some("comp=block&sv=1&sig=a%2Bb"));
        assert!(!headers.contains_key("authorization"));
        assert!(Authority::shared_key("a", "not base64").is_err());
    }
}
