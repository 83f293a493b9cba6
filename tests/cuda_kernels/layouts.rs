//! C++ and Rust see the same structures and kernels.

use std::fmt::Write;
use std::process::Command;

use crate::common::stand_in::{StandIn, kernel_sources};
use sae::backend::cuda::params::{Kernel, LAYOUTS};

#[test]
fn structures_lie_alike() {
    let mut source = "#include \"params.cuh\"\n#include <cstddef>\n#include <cstdio>\nint main() {\n".to_owned();
    for (name, _, fields) in LAYOUTS {
        writeln!(source, "std::printf(\"{name} %zu\\n\", sizeof({name}));").unwrap();
        for (field, _) in *fields {
            writeln!(source, "std::printf(\"{name}.{field} %zu\\n\", offsetof({name}, {field}));").unwrap();
        }
    }
    source.push_str("}\n");
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (file, program) = (folder.join("layouts.cpp"), folder.join("layouts"));
    std::fs::write(&file, source).unwrap();
    let made = Command::new("g++")
        .arg("-std=c++17")
        .arg("-I")
        .arg(kernel_sources())
        .arg(&file)
        .arg("-o")
        .arg(&program)
        .status();
    assert!(made.unwrap().success());
    let printed = String::from_utf8(Command::new(&program).output().unwrap().stdout).unwrap();
    let ours = LAYOUTS.iter().flat_map(|(name, size, fields)| {
        let fields = fields.iter().map(move |(field, offset)| format!("{name}.{field} {offset}"));
        std::iter::once(format!("{name} {size}")).chain(fields)
    });
    assert_eq!(printed.lines().collect::<Vec<_>>(), ours.collect::<Vec<_>>());
}

#[test]
fn kernels_have_the_same_names() {
    assert_eq!(StandIn::kernels().symbols(), Kernel::ALL.iter().map(|kernel| kernel.symbol()).collect::<Vec<_>>());
}

#[test]
fn sizes_agree() {
    let text = std::fs::read_to_string(kernel_sources().join("params.cuh")).unwrap();
    use sae::backend::cuda::params as p;
    for (name, value) in [
        ("SCORE_LATENTS", p::SCORE_LATENTS),
        ("SCORE_TOKENS", p::SCORE_TOKENS),
        ("WINNOW_LATENTS", p::WINNOW_LATENTS),
        ("SCREEN_LATENTS", p::SCREEN_LATENTS),
        ("SCREEN_TOKENS", p::SCREEN_TOKENS),
        ("SCREEN_SHARED", p::SCREEN_SHARED as usize),
        ("EXACT_TOKENS", p::EXACT_TOKENS),
        ("EXACT_KEYS", p::EXACT_KEYS),
        ("DECODE_COLUMNS", p::DECODE_COLUMNS),
    ] {
        assert!(text.contains(&format!("{name} = {value}")), "{name} is not {value} in params.cuh");
    }
}
