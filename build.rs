//! Gives the shared library its name of record: programs linked to ABI 0 ask for `libsae.so.0`. And has it stay once it is
//! loaded: graphs of CUDA's that were captured from it call back into it when they are destroyed, and a thread of its own may
//! still be letting go of what they kept.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsae.so.0");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
