//! Programs in C11 and C++17 against the header and the shared library: with the sanitizers, and under valgrind.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain::{build, compilers, library, output, run, scratch, strict, succeed};

const SANITIZERS: [&str; 3] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
/// "Possible" leaks are not counted: counted references and tagged pointers point into their blocks, not at their start.
const VALGRIND: [&str; 5] = [
    "--quiet",
    "--error-exitcode=9",
    "--leak-check=full",
    "--show-leak-kinds=definite,indirect",
    "--errors-for-leak-kinds=definite,indirect",
];

pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/capi/programs").join(name)
}

/// The programs, and flags of their own.
const PROGRAMS: [(&str, &[&str]); 4] = [
    ("consumer.c", &[]),
    ("buffer.c", &["-pthread"]),
    ("consumer.cpp", &[]),
    ("no_exceptions.cpp", &["-fno-exceptions"]),
];

#[test]
fn the_headers_stand_alone_in_both_languages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let alone = |name: &str, header: &str, flags: &[&str]| {
        let source = scratch("headers").join(name);
        let twice = format!("#include \"{header}\"\n#include \"{header}\"\nint sae_unused(void);\n");
        std::fs::write(&source, twice).unwrap();
        for compiler in compilers(&source) {
            let out = source.with_extension(format!("{compiler}.o"));
            let mut command = Command::new(compiler);
            command.args(strict(&source)).args(flags).arg("-I").arg(root.join("include")).arg("-c").arg(&source);
            succeed(command.arg("-o").arg(out));
        }
    };
    alone("c.c", "sae.h", &["-Wmissing-prototypes"]);
    alone("cpp.cpp", "sae.h", &[]);
    alone("hpp.cpp", "sae.hpp", &["-Wconversion"]);
    alone("hpp_no_exceptions.cpp", "sae.hpp", &["-fno-exceptions"]);
    alone("hpp_20.cpp", "sae.hpp", &["-std=c++20"]);
}

#[test]
fn programs_run_clean_with_the_sanitizers() {
    let faults = source("faults.c");
    for compiler in compilers(&faults) {
        // First, that the checkers see what they are there for.
        let program = build(compiler, &faults, &SANITIZERS, "faults-sanitized");
        for (fault, said) in
            [("overflow", "AddressSanitizer"), ("leak", "LeakSanitizer"), ("signed", "runtime error: signed integer")]
        {
            let output = run(Command::new(&program).arg(fault));
            let complained = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && complained.contains(said), "{compiler}, {fault}: {complained}");
        }
    }
    for (name, flags) in PROGRAMS {
        for compiler in compilers(&source(name)) {
            let program = build(compiler, &source(name), &[&SANITIZERS, flags].concat(), &format!("{name}-sanitized"));
            let symbols = output("nm", &[program.to_str().unwrap()]);
            for symbol in ["__asan_init", "__ubsan_handle"] {
                assert!(symbols.contains(symbol), "{compiler}: {symbol} is not in {}", program.display());
            }
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new(&program);
            succeed(
                command
                    .arg(dir.path())
                    .env("ASAN_OPTIONS", "detect_leaks=1")
                    .env("UBSAN_OPTIONS", "print_stacktrace=1"),
            );
        }
    }
}

#[test]
fn programs_run_clean_under_valgrind() {
    let faults = build("gcc", &source("faults.c"), &[], "faults");
    for fault in ["overflow", "leak"] {
        let output = run(Command::new("valgrind").args(VALGRIND).arg(&faults).arg(fault));
        assert_eq!(output.status.code(), Some(9), "valgrind sees {fault}");
    }
    for (name, flags) in PROGRAMS {
        let compiler = compilers(&source(name))[0];
        let program = build(compiler, &source(name), flags, name);
        let dir = tempfile::tempdir().unwrap();
        succeed(Command::new("valgrind").args(VALGRIND).arg(&program).arg(dir.path()));
    }
}

#[test]
fn a_program_links_the_static_library() {
    let archive = library().with_file_name("libsae.a");
    let program = scratch("programs").join("consumer-static");
    let source = source("consumer.c");
    let mut command = Command::new("gcc");
    command.args(strict(&source)).arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include")).arg(&source);
    succeed(command.arg("-o").arg(&program).arg(archive).args(["-lpthread", "-ldl", "-lm", "-lgcc_s"]));
    let dir = tempfile::tempdir().unwrap();
    succeed(Command::new(&program).arg(dir.path()));
}

#[test]
fn the_examples_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for (name, out) in [("c/encode.c", "example-c"), ("cpp/train_and_steer.cpp", "example-cpp")] {
        let source = root.join(name);
        for compiler in compilers(&source) {
            let program = build(compiler, &source, &[], out);
            let dir = tempfile::tempdir().unwrap();
            succeed(Command::new(&program).arg(dir.path()));
        }
    }
}
