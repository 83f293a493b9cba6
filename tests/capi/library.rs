//! What the shared library shows: its symbols, its name, its version.

use std::collections::BTreeSet;
use std::path::Path;

use crate::toolchain::{library, output};

/// Every function of the ABI. Lines are only ever added.
const SYMBOLS: &str = include_str!("symbols.txt");

#[test]
fn exactly_the_functions_of_the_header_are_exported() {
    let listed = output("nm", &["-D", "--defined-only", library().to_str().unwrap()]);
    let exported: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let golden: BTreeSet<&str> = SYMBOLS.lines().collect();
    assert_eq!(exported, golden, "tests/capi/symbols.txt says otherwise");

    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/sae.h");
    let header = std::fs::read_to_string(header).unwrap();
    for symbol in golden {
        assert!(header.contains(&format!("{symbol}(")), "{symbol} is not in sae.h");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_name_of_record_is_that_of_the_abi() {
    let dynamic = output("readelf", &["-d", library().to_str().unwrap()]);
    let name = match sae::capi::SAE_ABI_VERSION {
        0 => format!("[libsae.so.0.{}]", env!("CARGO_PKG_VERSION_MINOR")),
        abi => format!("[libsae.so.{abi}]"),
    };
    assert_eq!(sae::capi::SAE_ABI_VERSION.to_string(), env!("CARGO_PKG_VERSION_MAJOR"));
    assert!(dynamic.lines().any(|line| line.contains("SONAME") && line.contains(&name)), "{dynamic}");
}

#[cfg(target_os = "linux")]
#[test]
fn it_stays_when_it_is_closed() {
    let dynamic = output("readelf", &["-d", library().to_str().unwrap()]);
    assert!(dynamic.lines().any(|line| line.contains("FLAGS_1") && line.contains("NODELETE")), "{dynamic}");
}

#[test]
fn versions() {
    assert_eq!(sae::capi::sae_abi_version(), sae::capi::SAE_ABI_VERSION);
    let version = unsafe { std::ffi::CStr::from_ptr(sae::capi::sae_version()) };
    assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_function_is_reached_from_cpp() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/sae.hpp");
    let header = std::fs::read_to_string(header).unwrap();
    let words: BTreeSet<&str> = header.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<&str> = SYMBOLS.lines().filter(|symbol| !words.contains(symbol)).collect();
    assert!(missing.is_empty(), "sae.hpp does not use {missing:?}");
}
