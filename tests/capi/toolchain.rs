//! Compilers and checkers. One that is missing is a failure, not a reason to skip.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

/// The shared library that these tests were built with.
pub(crate) fn library() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.with_file_name(format!("{}sae{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX))
}

/// A directory with the library under the names that programs link and load it by.
pub(crate) fn library_dir() -> &'static Path {
    static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
        let dir = scratch("lib");
        for name in ["libsae.so", concat!("libsae.so.0.", env!("CARGO_PKG_VERSION_MINOR"))] {
            std::fs::remove_file(dir.join(name)).ok();
            std::fs::hard_link(library(), dir.join(name)).unwrap();
        }
        dir
    });
    &DIR
}

/// A directory to build and run in.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

pub(crate) fn run(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(e) => panic!("{:?} could not be run ({e}); .ci/run shows what to install", command.get_program()),
    }
}

/// Runs what must succeed without a word on the error stream; its output.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    succeed(Command::new(program).args(args))
}

pub(crate) fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{complained}", output.status);
    said.into_owned()
}

/// The compilers a program is tried with, for its language.
pub(crate) fn compilers(source: &Path) -> [&'static str; 2] {
    if source.extension().is_some_and(|e| e == "c") { ["gcc", "clang"] } else { ["g++", "clang++"] }
}

/// Flags that hold for every compilation: the standard, and every warning an error.
pub(crate) fn strict(source: &Path) -> Vec<&'static str> {
    let mut flags = vec!["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1"];
    if source.extension().is_some_and(|e| e == "c") {
        flags.extend(["-std=c11", "-Wstrict-prototypes"]);
    } else {
        flags.extend(["-std=c++17", "-Wshadow"]);
    }
    flags
}

/// Compiles a program against the header and the shared library.
pub(crate) fn build(compiler: &str, source: &Path, flags: &[&str], name: &str) -> PathBuf {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let program = scratch("programs").join(format!("{name}-{compiler}"));
    succeed(
        Command::new(compiler)
            .args(strict(source))
            .args(flags)
            .arg("-I")
            .arg(include)
            .arg(source)
            .arg("-o")
            .arg(&program)
            .arg("-L")
            .arg(library_dir())
            .arg(format!("-Wl,-rpath,{}", library_dir().display()))
            .args(["-lsae", "-lm"]),
    );
    program
}
