//! Which texts tokens stand for: the vocabulary of a tokenizer.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use crate::output::{Failure, Result};

/// The texts of tokens.
#[derive(Default)]
pub(super) struct Vocabulary(HashMap<i32, String>);

impl Vocabulary {
    /// Reads `tokenizer.json` or `vocab.json` as Hugging Face writes them, or a JSON list of texts.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let at = |e: &dyn std::fmt::Display| Failure::Message(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| at(&e))?;
        let json: Value = serde_json::from_str(&text).map_err(|e| at(&e))?;
        let pieces = pieces(&json)
            .ok_or_else(|| at(&"not a vocabulary: expected a tokenizer.json, a vocab.json, or a list of texts"))?;
        // A list of texts is taken as it is; pieces of a tokenizer are written in its alphabet.
        if json.is_array() {
            return Ok(Self(pieces.into_iter().collect()));
        }
        let added = added(&json);
        let bytes = pieces.iter().any(|(id, piece)| !added.contains(id) && piece.contains('Ġ'));
        let alphabet = if bytes { alphabet() } else { HashMap::new() };
        let text = |(id, piece): (i32, String)| {
            let text = match added.contains(&id) {
                true => piece,
                false if bytes => from_bytes(&piece, &alphabet),
                false => byte(&piece).unwrap_or_else(|| piece.replace('▁', " ")),
            };
            (id, text)
        };
        Ok(Self(pieces.into_iter().map(text).collect()))
    }

    /// The text of a token; its number in brackets, if it has none.
    pub(super) fn text(&self, token: i32) -> String {
        self.0.get(&token).cloned().unwrap_or_else(|| format!("⟨{token}⟩"))
    }
}

fn pieces(json: &Value) -> Option<Vec<(i32, String)>> {
    let number = |id: &Value| id.as_i64().and_then(|id| i32::try_from(id).ok());
    let numbered = |(i, piece): (usize, &Value)| Some((i32::try_from(i).ok()?, piece.as_str()?.to_owned()));
    if let Value::Array(list) = json {
        return list.iter().enumerate().map(numbered).collect();
    }
    let vocab = match json.get("model") {
        Some(model) => model.get("vocab")?,
        None => json,
    };
    let mut pieces: Vec<(i32, String)> = match vocab {
        Value::Object(map) => {
            map.iter().map(|(piece, id)| Some((number(id)?, piece.clone()))).collect::<Option<_>>()?
        }
        // Unigram: pieces with their scores.
        Value::Array(list) => {
            list.iter().enumerate().map(|(i, pair)| numbered((i, pair.get(0)?))).collect::<Option<_>>()?
        }
        _ => return None,
    };
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        pieces.push((number(token.get("id")?)?, token.get("content")?.as_str()?.to_owned()));
    }
    Some(pieces)
}

/// Tokens that are not of the alphabet.
fn added(json: &Value) -> HashSet<i32> {
    let tokens = json.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    tokens.filter_map(|token| i32::try_from(token.get("id")?.as_i64()?).ok()).collect()
}

/// GPT-2's: which character stands for which byte. Printable ones stand for themselves, the others follow from U+0100 on.
fn alphabet() -> HashMap<char, u8> {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let moved = (0..=255u8).filter(|&byte| !plain(byte)).zip('\u{100}'..);
    let mut alphabet: HashMap<char, u8> =
        (0..=255u8).filter(|&byte| plain(byte)).map(|byte| (byte.into(), byte)).collect();
    alphabet.extend(moved.map(|(byte, character)| (character, byte)));
    alphabet
}

fn from_bytes(piece: &str, alphabet: &HashMap<char, u8>) -> String {
    match piece.chars().map(|c| alphabet.get(&c).copied()).collect::<Option<Vec<u8>>>() {
        Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        None => piece.to_owned(),
    }
}

/// `<0x0A>` as SentencePiece writes bytes that no piece covers.
fn byte(piece: &str) -> Option<String> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let byte = u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)?;
    Some(String::from_utf8_lossy(&[byte]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vocabulary {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Vocabulary::read(file.path()).ok().unwrap()
    }

    #[test]
    fn every_tokenizers_alphabet_is_read() {
        let gpt2 = read(r#"{"Ġthe": 0, "Ċ": 1, "Ã©": 2, "Ã": 3, "<|endoftext|>": 4}"#);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|i| gpt2.text(i)), [" the", "\n", "é", "\u{fffd}", "<|endoftext|>", "⟨5⟩"]);
        let bpe = r#"{"added_tokens": [{"id": 9, "content": "Ġx"}], "model": {"vocab": {"▁a": 0, "<0x0A>": 1, "<0xZZ>": 2}}}"#;
        let sentence_piece = read(bpe);
        assert_eq!([0, 1, 2, 9].map(|i| sentence_piece.text(i)), [" a", "\n", "<0xZZ>", "Ġx"]);
        let unigram = read(r#"{"model": {"vocab": [["<unk>", 0.0], ["▁b", -1.5]]}}"#);
        assert_eq!(unigram.text(1), " b");
        assert_eq!(read(r#"["</script>", "Ġ"]"#).text(1), "Ġ");
        let file = tempfile::NamedTempFile::new().unwrap();
        for broken in ["", "7", r#"{"a": "b"}"#, r#"{"model": {}}"#, "[1]"] {
            std::fs::write(file.path(), broken).unwrap();
            assert!(Vocabulary::read(file.path()).is_err(), "{broken}");
        }
    }
}
