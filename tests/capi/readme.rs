//! The programs in C and C++ of the README and the book compile and run as they are printed.

use std::path::Path;
use std::process::Command;

use crate::toolchain::{build, scratch, succeed};

/// The page's only program in this language; what it prints.
fn run(page: &str, language: &str, compilers: &[&str]) -> (String, String) {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap();
    let programs: Vec<&str> = text.split(&format!("```{language}\n")).skip(1).collect();
    assert_eq!(programs.len(), 1, "{page} has one program in {language}");
    let (program, _) = programs[0].split_once("```").expect("which ends");
    let name = page.replace(['/', '.'], "-");
    let source = scratch("readme").join(format!("{name}.{language}"));
    std::fs::write(&source, program).unwrap();
    let mut said = String::new();
    for compiler in compilers {
        let built = build(compiler, &source, &[], &name);
        let dir = tempfile::tempdir().unwrap();
        said = succeed(Command::new(&built).current_dir(dir.path()));
    }
    (program.to_owned(), said)
}

#[test]
fn the_example_runs() {
    let (program, said) = run("README.md", "cpp", &["g++"]);
    assert!(program.lines().count() <= 30, "it is {} lines, 30 are promised", program.lines().count());
    assert!(said.contains("token 0"), "{said}");
}

#[test]
fn the_books_programs_run() {
    let (_, said) = run("docs/abi.md", "c", &["gcc", "clang"]);
    assert_eq!(said.lines().count(), 4, "{said}");
    let (_, said) = run("docs/steering.md", "cpp", &["g++", "clang++"]);
    assert!(said.contains("token 30 moved by 0.000") && !said.contains("token 0 moved by 0.000"), "{said}");
}
