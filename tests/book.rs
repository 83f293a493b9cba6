//! The book says what the library does: its table of hook points is the library's. (Its programs are run by `capi::readme` and as
//! documentation tests.)

use std::fmt::Write;
use std::path::Path;

use sae::sae::{Family, HookPoint};

#[test]
fn the_table_of_hook_points_is_up_to_date() {
    const MARK: &str = "<!-- from here on made by the tests: SAE_BLESS=1 cargo test --test book -->\n";
    let families = [
        ("Llama, Mistral, SmolLM", Family::Llama),
        ("Qwen", Family::Qwen),
        ("Gemma", Family::Gemma),
        ("Gemma 2", Family::Gemma2),
        ("Gemma 3", Family::Gemma3),
        ("GPT-2", Family::Gpt2),
        ("GPT-NeoX, Pythia", Family::NeoX),
    ];
    let places = [
        "hook_resid_pre",
        "hook_resid_mid",
        "hook_resid_post",
        "attn.hook_in",
        "attn.hook_z",
        "hook_attn_out",
        "mlp.hook_in",
        "mlp.hook_post",
        "hook_mlp_out",
    ];
    let code = |name: Option<String>| name.map_or(String::new(), |name| format!("`{name}`"));
    let mut table = String::new();
    for (title, family) in families {
        writeln!(table, "\n### {title}\n\n| TransformerLens | Hugging Face module | llama.cpp (ggml) |\n|---|---|---|")
            .unwrap();
        for place in places {
            let names = HookPoint::parse(&format!("blocks.8.{place}")).names(family);
            let (lens, module, ggml) = (code(names.transformer_lens), code(names.hugging_face), code(names.ggml));
            writeln!(table, "| {lens} | {module} | {ggml} |").unwrap();
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hooks.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (text, _) = page.split_once(MARK).expect("the mark is there");
    let wanted = format!("{text}{MARK}{table}");
    if std::env::var_os("SAE_BLESS").is_some() {
        std::fs::write(path, wanted).unwrap();
    } else {
        assert!(page == wanted, "docs/hooks.md is out of date: SAE_BLESS=1 cargo test --test book");
    }
}
