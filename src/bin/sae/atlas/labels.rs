//! What people, or their models, call features.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::output::{Failure, Result};

/// The most that packed labels may come to.
const MOST: u64 = 1 << 30;

/// Reads labels: an object of latents and texts, or explanations as Neuronpedia exports them: a list, or lines, of objects with `index`
/// and `description`; each as it is or packed by gzip. Of several of a latent the first is taken.
pub(super) fn read(path: &Path) -> Result<BTreeMap<usize, String>> {
    let at = |e: &dyn std::fmt::Display| Failure::Message(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(|e| at(&e))?;
    let text = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => {
            let mut text = String::new();
            let mut unpacked = MultiGzDecoder::new(&bytes[..]).take(MOST + 1);
            unpacked.read_to_string(&mut text).map_err(|e| at(&e))?;
            if text.len() as u64 > MOST {
                return Err(at(&format_args!("unpacks to more than {MOST} bytes; give less of it")));
            }
            text
        }
        false => String::from_utf8(bytes).map_err(|e| at(&e))?,
    };
    parse(&text).map_err(|e| at(&e))
}

fn parse(text: &str) -> std::result::Result<BTreeMap<usize, String>, String> {
    let mut labels = BTreeMap::new();
    let mut add = |latent: usize, label: &str| {
        if !label.trim().is_empty() {
            labels.entry(latent).or_insert_with(|| label.trim().to_owned());
        }
    };
    for (i, value) in serde_json::Deserializer::from_str(text).into_iter::<Value>().enumerate() {
        let value = value.map_err(|e| e.to_string())?;
        let entries = match value {
            Value::Array(list) => list,
            Value::Object(map) if map.iter().all(|(key, text)| key.parse::<usize>().is_ok() && text.is_string()) => {
                for (latent, label) in &map {
                    add(latent.parse().map_err(|_| latent.clone())?, label.as_str().unwrap_or_default());
                }
                continue;
            }
            other => vec![other],
        };
        for (j, entry) in entries.iter().enumerate() {
            let Some((latent, label)) = explanation(entry) else {
                return Err(format!("entry {} is no explanation: expected index and description", i + j + 1));
            };
            add(latent, label);
        }
    }
    Ok(labels)
}

fn explanation(entry: &Value) -> Option<(usize, &str)> {
    let first = |names: &[&str]| names.iter().find_map(|name| entry.get(name));
    let latent = first(&["index", "feature", "feature_index", "latent"])?;
    let latent = latent.as_u64().or_else(|| latent.as_str()?.parse().ok())?;
    let label = first(&["description", "explanation", "label"])?;
    Some((usize::try_from(latent).ok()?, label.as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_every_form_are_read() {
        let lines = "{\"modelId\":\"gpt2-small\",\"layer\":\"6-res\",\"index\":\"3\",\"description\":\" dates \"}\n{\"index\":5,\"description\":\"\"}\n";
        assert_eq!(parse(lines).unwrap(), BTreeMap::from([(3, "dates".to_owned())]));
        let list = r#"[{"index": "1", "description": "a"}, {"index": "1", "description": "b"}]"#;
        assert_eq!(parse(list).unwrap(), BTreeMap::from([(1, "a".to_owned())]));
        assert_eq!(parse(r#"{"7": "<b>x</b>"}"#).unwrap(), BTreeMap::from([(7, "<b>x</b>".to_owned())]));
        assert!(parse("").unwrap().is_empty());
        for (broken, named) in
            [("{\"index\": 1}", "entry 1"), ("[3]", "entry 1"), ("{\"a\": \"b\"}", "entry"), ("[", "EOF")]
        {
            let error = parse(broken).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
