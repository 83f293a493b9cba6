//! Gives the shared library its name of record, by which programs that are linked to it ask for it: `libsae.so.0.N` while its
//! ABI may change from one version 0.N to the next, and from 1.0 on `libsae.so.N`. And has it stay once it is loaded: graphs of
//! CUDA's that were captured from it call back into it when they are destroyed, and a thread of its own may still be letting go
//! of what they kept.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        let abi = match (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR")) {
            ("0", minor) => format!("0.{minor}"),
            (major, _) => major.to_owned(),
        };
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsae.so.{abi}");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
