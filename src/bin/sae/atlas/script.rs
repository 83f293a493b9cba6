//! Files of data that pages load as scripts, since a page from the disk may load nothing else.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::output::{Failure, Result};

/// JSON that is sound as JavaScript, and as a part of any markup.
fn text(value: &impl Serialize) -> Result<String> {
    let json = serde_json::to_string(value).map_err(|e| Failure::Message(format!("a page cannot be made: {e}")))?;
    // These occur in strings alone.
    let json = json.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    Ok(json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

/// Writes a file that calls a function with these arguments.
pub(super) fn write(path: &Path, function: &str, arguments: &[&dyn Argument]) -> Result<()> {
    let arguments = arguments.iter().map(|argument| argument.text()).collect::<Result<Vec<_>>>()?.join(",");
    write_file(path, format!("{function}({arguments});\n").as_bytes())
}

/// Writes a file.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|e| Failure::Message(format!("{}: {e}", path.display())))
}

/// Makes a folder.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Failure::Message(format!("{}: {e}", path.display())))
}

/// What a function is called with.
pub(super) trait Argument {
    fn text(&self) -> Result<String>;
}

impl<T: Serialize> Argument for T {
    fn text(&self) -> Result<String> {
        text(self)
    }
}

/// Bytes as base64 (RFC 4648).
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let word = part.iter().chain(&[0, 0]).take(3).fold(0, |word, &byte| word << 8 | u32::from(byte));
        let digits = (0..4).map(|i| DIGITS[(word >> (18 - 6 * i)) as usize & 63] as char);
        text.extend(digits.take(part.len() + 1));
        text.extend(std::iter::repeat_n('=', 3 - part.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_standard() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn nothing_ends_a_script() {
        let made = text(&"</script><!--\u{2028}&\"\\").ok().unwrap();
        assert_eq!(made, "\"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026\\\"\\\\\"");
    }
}
