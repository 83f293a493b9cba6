//! The CUDA kernels, run on the processor by a stand-in for the GPU's execution model, against the oracle, bit for bit. Nothing here
//! says how they fare on a GPU.
#![allow(clippy::unwrap_used, unreachable_pub, unsafe_code)]

#[path = "../common/mod.rs"]
mod common;
mod decode;
mod dense;
mod encode;
mod layouts;
mod merge;
mod rig;
mod stand_in;
mod steer;
mod training;

/// So many cases, and nothing remembered between runs.
fn config(cases: u32) -> proptest::prelude::ProptestConfig {
    proptest::prelude::ProptestConfig {
        failure_persistence: None,
        ..proptest::prelude::ProptestConfig::with_cases(cases)
    }
}
