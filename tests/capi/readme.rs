//! The README's example compiles and runs as it is printed.

use std::path::Path;
use std::process::Command;

use crate::toolchain::{build, scratch, succeed};

#[test]
fn the_example_runs() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```cpp\n").expect("the README has a C++ example");
    let (example, _) = rest.split_once("```").expect("which ends");
    assert!(example.lines().count() <= 30, "it is {} lines, 30 are promised", example.lines().count());
    let source = scratch("readme").join("example.cpp");
    std::fs::write(&source, example).unwrap();
    let program = build("g++", &source, &[], "readme");
    let dir = tempfile::tempdir().unwrap();
    let said = succeed(Command::new(&program).current_dir(dir.path()));
    assert!(said.contains("token 0"), "{said}");
}
