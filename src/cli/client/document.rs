//! A JSON state as people read and write it: raw, indented JSON, YAML.
//!
//! JSON is never turned into values, so numbers of any length, duplicate members and their order survive. YAML is: what
//! it makes of a number beyond 64 bits is a floating-point number.

use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::CliError;
use crate::json;

/// What `--type` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TypeFlag {
    /// By the file's extension, else JSON
    #[default]
    Auto,
    /// The bytes as they are
    Raw,
    /// JSON; indented on output
    Json,
    /// YAML
    #[value(alias = "yml")]
    Yaml,
}

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Raw,
    Json,
    Yaml,
}

impl TypeFlag {
    /// The form of a document in this file, or in none.
    pub(crate) fn form(self, file: Option<&Path>) -> Form {
        match self {
            TypeFlag::Raw => Form::Raw,
            TypeFlag::Json => Form::Json,
            TypeFlag::Yaml => Form::Yaml,
            TypeFlag::Auto => {
                let extension = file
                    .and_then(Path::extension)
                    .map(|extension| extension.to_ascii_lowercase());
                match extension.as_deref().and_then(|extension| extension.to_str()) {
                    Some("yaml" | "yml") => Form::Yaml,
                    _ => Form::Json,
                }
            }
        }
    }
}

impl Form {
    /// A state as text. No state is `null`, or nothing at all when raw.
    pub(crate) fn show(self, state: Option<&[u8]>) -> Result<Vec<u8>, CliError> {
        let not_json = |error: &dyn std::fmt::Display| CliError::new(format!("the state is not JSON: {error}"));
        match self {
            Form::Raw => Ok(state.unwrap_or_default().to_vec()),
            Form::Json => indented(state.unwrap_or(b"null")).map_err(|error| not_json(&error)),
            Form::Yaml => {
                let value: Value = serde_json::from_slice(state.unwrap_or(b"null")).map_err(|e| not_json(&e))?;
                let mut text = serde_saphyr::to_string(&value).map_err(|error| CliError::new(error.to_string()))?;
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                Ok(text.into_bytes())
            }
        }
    }

    /// The JSON to send for this text. Nothing but white space means `null`.
    pub(crate) fn read(self, text: Vec<u8>) -> Result<Vec<u8>, CliError> {
        if text.trim_ascii().is_empty() {
            return Ok(b"null".to_vec());
        }
        match self {
            Form::Raw => Ok(text),
            Form::Json => {
                json::compact(&text).map_err(|error| CliError::new(format!("the input is not JSON: {error}")))
            }
            Form::Yaml => {
                let not_yaml = |error: &dyn std::fmt::Display| CliError::new(format!("the input is not YAML: {error}"));
                let text = String::from_utf8(text).map_err(|error| not_yaml(&error))?;
                let value: Value = serde_saphyr::from_str(&text).map_err(|error| not_yaml(&error))?;
                Ok(value.to_string().into_bytes())
            }
        }
    }
}

/// The same JSON with one member or element per line, indented by two spaces, and a line break at the end.
fn indented(state: &[u8]) -> Result<Vec<u8>, json::JsonError> {
    let compact = json::compact(state)?;
    let mut out = Vec::with_capacity(compact.len() * 2);
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut bytes = compact.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if in_string {
            out.push(byte);
            match byte {
                b'\\' => out.extend(bytes.next()),
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                // An empty one stays together.
                if let Some(close) = bytes.next_if(|next| matches!(next, b'}' | b']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    new_line(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            _ => {
                in_string = byte == b'"';
                out.push(byte);
            }
        }
    }
    out.push(b'\n');
    Ok(out)
}

/// A document nested deeper than this is not indented any further: its lines would be longer than the document.
const INDENT_MAX: usize = 64;

fn new_line(out: &mut Vec<u8>, depth: usize) {
    out.push(b'\n');
    out.extend(std::iter::repeat_n(b' ', 2 * depth.min(INDENT_MAX)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(form: Form, state: &str) -> String {
        String::from_utf8(form.show(Some(state.as_bytes())).unwrap()).unwrap()
    }

    fn read(form: Form, text: &str) -> String {
        String::from_utf8(form.read(text.as_bytes().to_vec()).unwrap()).unwrap()
    }

    #[test]
    fn indented_json_looks_like_that_of_serde_json() {
        let state = r#"{"a":[1,[],{},{"b":"x,{}[]:\"\\"}],"c":null,"d":"","e":[[true]]}"#;
        let value: Value = serde_json::from_str(state).unwrap();
        assert_eq!(
            show(Form::Json, state),
            serde_json::to_string_pretty(&value).unwrap() + "\n"
        );
    }

    #[test]
    fn numbers_order_and_duplicates_survive_in_json() {
        let state = r#"{"b":12345678901234567890123,"a":1.0,"a":1e400}"#;
        let shown = show(Form::Json, state);
        assert_eq!(
            shown,
            "{\n  \"b\": 12345678901234567890123,\n  \"a\": 1.0,\n  \"a\": 1e400\n}\n"
        );
        assert_eq!(read(Form::Json, &shown), state);
    }

    #[test]
    fn a_deep_document_is_shown_without_drowning_in_indentation() {
        let deep = "[".repeat(10_000) + "1" + &"]".repeat(10_000);
        let shown = show(Form::Json, &deep);
        assert!(shown.len() < 20_000 * (2 * INDENT_MAX + 3), "{} bytes", shown.len());
        assert_eq!(read(Form::Json, &shown), deep);
    }

    #[test]
    fn no_state_is_null_and_no_input_is_null() {
        assert_eq!(Form::Json.show(None).unwrap(), b"null\n");
        assert_eq!(Form::Yaml.show(None).unwrap(), b"null\n");
        assert_eq!(Form::Raw.show(None).unwrap(), b"");
        for form in [Form::Raw, Form::Json, Form::Yaml] {
            assert_eq!(read(form, " \n"), "null");
        }
    }

    #[test]
    fn yaml_goes_out_and_comes_back() {
        let state = r#"{"list":[1,2.5,"3","yes","null",""],"nested":{"a":null,"b":true,"c":"x: y # z"},"empty":{}}"#;
        let shown = show(Form::Yaml, state);
        let back: Value = serde_json::from_str(&read(Form::Yaml, &shown)).unwrap();
        assert_eq!(back, serde_json::from_str::<Value>(state).unwrap(), "{shown}");
        assert_eq!(read(Form::Yaml, "a: 1\nb: [x, true]\n"), r#"{"a":1,"b":["x",true]}"#);
    }

    #[test]
    fn the_form_follows_flag_then_extension() {
        let form = |flag: TypeFlag, file: &str| flag.form(Some(Path::new(file)));
        assert_eq!(form(TypeFlag::Auto, "state.yaml"), Form::Yaml);
        assert_eq!(form(TypeFlag::Auto, "state.YML"), Form::Yaml);
        assert_eq!(form(TypeFlag::Auto, "state.json"), Form::Json);
        assert_eq!(form(TypeFlag::Auto, "state.txt"), Form::Json);
        assert_eq!(form(TypeFlag::Json, "state.yaml"), Form::Json);
        assert_eq!(TypeFlag::Auto.form(None), Form::Json);
    }

    #[test]
    fn input_that_is_not_what_it_should_be_is_refused() {
        let refused = |form: Form, text: &str| form.read(text.as_bytes().to_vec()).unwrap_err().to_string();
        assert!(refused(Form::Json, "{a: 1}").contains("not JSON"));
        assert!(refused(Form::Yaml, "a: [1").contains("not YAML"));
        assert_eq!(read(Form::Raw, "{a: 1}"), "{a: 1}", "raw is the server's business");
    }
}
