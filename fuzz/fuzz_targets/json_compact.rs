//! The JSON compactor against itself in other pieces, against its own output, and against serde_json.
//!
//! The first two bytes of the input choose the sizes of the pieces, the rest is the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use lockd::json::{JsonCompactor, JsonError, compact};
use serde::de::IgnoredAny;

fuzz_target!(|data: &[u8]| {
    let Some((&[first, second], text)) = data.split_first_chunk::<2>() else {
        return;
    };
    let whole = compact(text);
    assert_eq!(
        whole,
        compact_in_pieces(text, 1 + usize::from(first), 1 + usize::from(second))
    );

    // Ignoring values, serde_json looks at the grammar alone, like we do: not at UTF-8, surrogates or sizes. The limit of
    // nesting is ours, and out of reach here.
    let theirs = serde_json::from_slice::<IgnoredAny>(text);
    assert_eq!(whole.is_ok(), theirs.is_ok(), "{whole:?} {theirs:?}");

    match whole {
        Ok(out) => {
            // Once is enough, and only white space is missing.
            assert_eq!(compact(&out).as_ref(), Ok(&out));
            assert_eq!(without_white_space(text), without_white_space(&out));
            if let Ok(value) = serde_json::from_slice::<serde_json::Value>(text) {
                assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), value);
            }
        }
        // The error points into the text or at its end, and what comes before is not at fault.
        Err(error) => {
            let offset = error.offset as usize;
            assert_eq!(error.found, text.get(offset).copied());
            if let Err(before) = compact(&text[..offset]) {
                assert_eq!(before.found, None, "{error} but {before}");
            }
        }
    }
});

fn compact_in_pieces(text: &[u8], first: usize, second: usize) -> Result<Vec<u8>, JsonError> {
    let mut compactor = JsonCompactor::new();
    let mut out = Vec::new();
    let mut rest = text;
    for size in [first, second].into_iter().cycle() {
        let (piece, later) = rest.split_at(size.min(rest.len()));
        compactor.push(piece, &mut out)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    compactor.finish()?;
    Ok(out)
}

fn without_white_space(text: &[u8]) -> Vec<u8> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    text.iter().filter(|byte| !is_space(byte)).copied().collect()
}
