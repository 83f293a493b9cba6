//! What was released stays: each release's header and a program compiled against it are kept in tests/abi/VERSION, and hold
//! for today's library as long as programs of that release are to run with it: within one 0.N, and from 1.0 on within one N.
//! Between those a break is allowed, and stands in CHANGELOG.md.
//!
//! `SAE_RELEASE=1 cargo test --test capi releases::` keeps what is here as the release of the version in Cargo.toml.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::source;
use crate::toolchain::{library, library_dir, output, run, scratch, strict, succeed};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The kept releases: their versions and folders.
fn releases() -> Vec<(String, PathBuf)> {
    let folders = fs::read_dir(root().join("tests/abi")).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        folders.filter(|f| f.is_dir()).map(|f| (f.file_name().unwrap().to_str().unwrap().to_owned(), f)).collect();
    found.sort();
    found
}

/// What a version's programs ask for: `libsae.so.` and this.
fn abi(version: &str) -> &str {
    let numbers = if version.starts_with("0.") { 2 } else { 1 };
    version.match_indices('.').nth(numbers - 1).map_or(version, |(end, _)| &version[..end])
}

/// A header as the compiler sees it, cut into declarations without line breaks.
fn declarations(header: &Path) -> Vec<String> {
    let text = output("gcc", &["-E", "-P", "-x", "c", header.to_str().unwrap()]);
    let (mut depth, mut found, mut current) = (0, Vec::new(), String::new());
    for c in text.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ';' && depth == 0 {
            found.push(current.split_whitespace().collect::<Vec<_>>().join(" "));
            current.clear();
        } else {
            current.push(c);
        }
    }
    found
}

fn functions(header: &Path) -> Vec<String> {
    let is_function = |d: &String| d.contains("sae_") && d.ends_with(')') && !d.starts_with("typedef");
    declarations(header).into_iter().filter(is_function).collect()
}

/// Names for types, and the callbacks.
fn names(header: &Path) -> BTreeSet<String> {
    let is_name = |d: &String| d.starts_with("typedef ") && d.contains("sae_") && !d.contains('{');
    declarations(header).into_iter().filter(is_name).collect()
}

/// A shared library that has a header's functions, empty, and its types as debugging information.
fn skeleton(header: &Path, name: &str) -> PathBuf {
    let dir = scratch("abi");
    let (source, out) = (dir.join(format!("{name}.c")), dir.join(format!("{name}.so")));
    let mut text = format!("#include \"{}\"\n", header.display());
    functions(header).iter().for_each(|function| text += &format!("{function} {{ for (;;); }}\n"));
    fs::write(&source, text).unwrap();
    let flags = ["-g", "-shared", "-fPIC", "-Wno-return-type", "-o"];
    succeed(Command::new("gcc").args(flags).arg(&out).arg(&source));
    out
}

/// Every member of every struct: its declaration, and where it lies.
fn members(header: &Path, name: &str) -> BTreeSet<String> {
    let dir = scratch("abi");
    let (source, program) = (dir.join(format!("{name}-members.c")), dir.join(format!("{name}-members")));
    let mut text = format!("#include \"{}\"\n#include <stdio.h>\nint main(void) {{\n", header.display());
    for declaration in declarations(header) {
        let Some((head, body)) = declaration.strip_prefix("typedef struct ").and_then(|rest| rest.split_once(" {"))
        else {
            continue;
        };
        let body = body.rsplit_once('}').unwrap().0;
        for member in body.split(';').map(str::trim).filter(|member| !member.is_empty()) {
            let bare = member.split('[').next().unwrap();
            let field = bare.rsplit([' ', '*']).next().unwrap();
            text += &format!("printf(\"{head}: %zu: {member}\\n\", offsetof({head}, {field}));\n");
        }
        // Only structs that say their size may grow.
        if !body.trim_start().starts_with("size_t struct_size") {
            text += &format!("printf(\"{head}: %zu bytes\\n\", sizeof({head}));\n");
        }
    }
    fs::write(&source, text + "return 0;\n}\n").unwrap();
    succeed(Command::new("gcc").arg(&source).arg("-o").arg(&program));
    output(program.to_str().unwrap(), &[]).lines().map(str::to_owned).collect()
}

/// The structs that say their size.
fn sized(header: &Path) -> Vec<String> {
    let name = |d: String| {
        let (name, body) = d.strip_prefix("typedef struct ")?.split_once(" {")?;
        body.trim_start().starts_with("size_t struct_size").then(|| name.to_owned())
    };
    declarations(header).into_iter().filter_map(name).collect()
}

/// Every constant with its value.
fn constants(header: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(header).unwrap();
    let is_number = |line: &&str| {
        let value = line.strip_prefix("#define SAE_").and_then(|rest| rest.split_once(' ')).map(|(_, value)| value);
        value.is_some_and(|value| value.parse::<i64>().is_ok())
    };
    text.lines().filter(is_number).map(str::to_owned).collect()
}

/// What programs of the first header would miss in the second, or take for something else.
fn breaks(old: &Path, new: &Path, name: &str) -> Vec<String> {
    let lost = |old: BTreeSet<String>, new: BTreeSet<String>| old.difference(&new).cloned().collect::<Vec<_>>();
    let mut found = lost(constants(old), constants(new));
    found.extend(lost(names(old), names(new)));
    found.extend(lost(members(old, &format!("{name}-old")), members(new, &format!("{name}-new"))));
    // That structs grow at their end is no break where they say their size; all else in them was compared above.
    let suppressions = scratch("abi").join(format!("{name}.ini"));
    let names = sized(old).join("|");
    fs::write(&suppressions, format!("[suppress_type]\ntype_kind = struct\nname_regexp = ^({names})$\n")).unwrap();
    let compared = run(Command::new("abidiff")
        .args(["--no-added-syms", "--suppressions"])
        .arg(suppressions)
        .arg(skeleton(old, &format!("{name}-old")))
        .arg(skeleton(new, &format!("{name}-new"))));
    if !compared.status.success() {
        found.push(String::from_utf8_lossy(&compared.stdout).into_owned());
        found.push(String::from_utf8_lossy(&compared.stderr).into_owned());
    }
    found
}

/// Compiles the program that is kept of a release: small, and looking for the library wherever it is told to.
fn compile(out: &Path) {
    let source = source("consumer.c");
    let flags = ["-Os", "-g0", "-s", "-Wl,--build-id=none"];
    succeed(
        Command::new("gcc")
            .args(strict(&source))
            .args(flags)
            .arg("-I")
            .arg(root().join("include"))
            .arg(&source)
            .arg("-L")
            .arg(library_dir())
            .args(["-lsae", "-lm", "-o"])
            .arg(out),
    );
}

#[test]
fn programs_of_earlier_releases_find_all_they_were_compiled_against() {
    let header = root().join("include/sae.h");
    if std::env::var_os("SAE_RELEASE").is_some() {
        let folder = root().join("tests/abi").join(VERSION);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(&header, folder.join("sae.h")).unwrap();
        compile(&folder.join("consumer-x86_64-linux"));
    }
    let exported = output("nm", &["-D", "--defined-only", library().to_str().unwrap()]);
    let releases = releases();
    assert!(!releases.is_empty());
    for (version, folder) in releases.iter().filter(|(version, _)| abi(version) == abi(VERSION)) {
        let old = folder.join("sae.h");
        let found = breaks(&old, &header, version);
        assert!(
            found.is_empty(),
            "include/sae.h breaks programs compiled against {version}, which ask for libsae.so.{}: {found:#?}\n\
             Mend it; or, before 1.0, raise the second number of the version and say in CHANGELOG.md what broke; or, if {version} \
             was never published, keep it anew: SAE_RELEASE=1 cargo test --test capi releases::",
            abi(version),
        );
        for function in functions(&old) {
            let name = function.split('(').next().unwrap().rsplit([' ', '*']).next().unwrap();
            assert!(exported.lines().any(|line| line.ends_with(&format!(" {name}"))), "{version} had {name}");
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn programs_of_earlier_releases_run_with_today_s_library() {
    for (_, folder) in releases().iter().filter(|(version, _)| abi(version) == abi(VERSION)) {
        let dir = tempfile::tempdir().unwrap();
        let mut program = Command::new(folder.join("consumer-x86_64-linux"));
        succeed(program.arg(dir.path()).env("LD_LIBRARY_PATH", library_dir()));
    }
}

#[test]
fn breaks_are_in_the_changelog() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let section = |version: &str| {
        let start = changelog.find(&format!("\n## {version}"))? + 1;
        let text = &changelog[start..];
        Some(&text[..text[3..].find("\n## ").map_or(text.len(), |end| end + 3)])
    };
    assert!(section(VERSION).is_some(), "CHANGELOG.md has no section \"## {VERSION}\"");
    let releases = releases();
    for pair in releases.windows(2) {
        let ((before, old), (version, new)) = (&pair[0], &pair[1]);
        let broke = !breaks(&old.join("sae.h"), &new.join("sae.h"), &format!("{before}-{version}")).is_empty();
        let said = section(version).is_some_and(|text| text.contains("### Broken"));
        assert_eq!(broke, said, "whether {version} breaks programs of {before}, and \"### Broken\" in CHANGELOG.md");
    }
}

/// That the guard sees what it is there for: each change to the header, and whether it is a break.
#[test]
fn the_guard_sees_breaks_and_allows_growth() {
    let old = root().join("include/sae.h");
    let text = fs::read_to_string(&old).unwrap();
    for (what, from, to, breaking) in [
        ("grown", "  size_t workspace_size;\n", "  size_t workspace_size;\n  int64_t more;\n", false),
        ("function-added", "void sae_session_free(", "void sae_more(void);\nvoid sae_session_free(", false),
        ("constant-added", "#define SAE_OK 0\n", "#define SAE_OK 0\n#define SAE_MORE 99\n", false),
        ("function-gone", "void sae_session_free(sae_session *session);", "", true),
        ("result", "int32_t sae_pool_threads(", "int64_t sae_pool_threads(", true),
        (
            "argument",
            "sae_status sae_pool_create(int32_t threads,",
            "sae_status sae_pool_create(int64_t threads,",
            true,
        ),
        ("inserted", "  void *workspace;\n", "  int64_t more;\n  void *workspace;\n", true),
        ("widened", "  int32_t stream_kind;\n", "  int64_t stream_kind;\n", true),
        ("retyped", "  int32_t stream_kind;\n", "  uint32_t stream_kind;\n", true),
        ("not-sized", "  uint32_t reserved[3];\n", "  uint32_t reserved[4];\n", true),
        ("callback", "typedef void (*sae_release)(void *context)", "typedef int (*sae_release)(void *context)", true),
        ("status", "typedef int32_t sae_status;", "typedef int64_t sae_status;", true),
        ("constant", "#define SAE_RUN_ORDER_INDEX 2\n", "#define SAE_RUN_ORDER_INDEX 8\n", true),
    ] {
        assert!(text.contains(from), "{what}: {from:?} is no longer in sae.h");
        let new = scratch("abi").join(format!("{what}.h"));
        fs::write(&new, text.replacen(from, to, 1)).unwrap();
        let found = breaks(&old, &new, what);
        assert_eq!(!found.is_empty(), breaking, "{what}: {found:#?}");
    }
}
