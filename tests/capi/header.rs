//! `include/sae.h` says what the sources say. `SAE_BLESS=1 cargo test --test capi header::` rewrites it.

use std::fs;
use std::path::Path;

/// The header, made anew: each `@name@` of the template becomes what cbindgen makes of `src/capi/name.rs`.
fn generate() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let template = fs::read_to_string(root.join("src/capi/sae.h.in")).unwrap();
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let section = |line: &str| {
        let name = line.strip_prefix('@')?.strip_suffix('@')?;
        let source = root.join("src/capi").join(name).with_extension("rs");
        let bindings = cbindgen::Builder::new().with_config(config.clone()).with_src(source).generate().unwrap();
        let mut text = Vec::new();
        bindings.write(&mut text);
        Some(tidy(String::from_utf8(text).unwrap().trim()))
    };
    let lines = template.lines().map(|line| section(line).unwrap_or_else(|| line.to_owned()) + "\n");
    lines.collect()
}

/// Takes what cbindgen has no setting for: `struct` where the name alone will do, and blank lines inside a family of
/// constants (`SAE_LOG_ERROR`, `SAE_LOG_WARNING`).
fn tidy(text: &str) -> String {
    let family = |text: &str, at: usize| {
        let name = text[at..].strip_prefix("#define ")?;
        let words = name.split(' ').next()?.match_indices('_').nth(1).map_or(name.len(), |(end, _)| end);
        Some(name[..words].to_owned())
    };
    let mut out = String::new();
    let mut last = None;
    for paragraph in text.split("\n\n") {
        let define = paragraph.find("#define ");
        let this = define.and_then(|at| family(paragraph, at));
        out += if out.is_empty() {
            ""
        } else if this.is_some() && this == last {
            "\n"
        } else {
            "\n\n"
        };
        for (i, line) in paragraph.lines().enumerate() {
            out += if i > 0 { "\n" } else { "" };
            out +=
                &if line.starts_with("typedef struct") { line.to_owned() } else { line.replace("struct sae_", "sae_") };
        }
        last = this;
    }
    out
}

#[test]
fn the_header_is_what_the_sources_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/sae.h");
    let generated = generate();
    if std::env::var_os("SAE_BLESS").is_some() {
        fs::write(&path, &generated).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    if let Some((i, _)) = generated.lines().zip(found.lines()).enumerate().find(|(_, (a, b))| a != b) {
        let (a, b) = (generated.lines().nth(i).unwrap(), found.lines().nth(i).unwrap());
        panic!("include/sae.h, line {}: expected {a:?}, found {b:?}; `make header` rewrites it", i + 1);
    }
    assert_eq!(generated.len(), found.len(), "include/sae.h is cut off or longer; `make header` rewrites it");
}
