//! The stand-in itself: what it must bring to light, and what lanes of a warp must see of each other.

use std::collections::HashSet;
use std::path::Path;
use std::sync::LazyLock;

use crate::common::stand_in::StandIn;

static FAULTY: LazyLock<StandIn> = LazyLock::new(|| {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_kernels/stand_in.cu");
    StandIn::build("faulty", Some(&source))
});

/// What a kernel leaves in an array of zeros.
fn run(symbol: &str, (blocks, threads): (u32, u32), len: usize, seed: u64) -> Result<Vec<i32>, String> {
    let mut out = vec![0i32; len];
    let params = (out.as_mut_ptr() as u64).to_ne_bytes();
    // SAFETY: the tests' kernels take an array, which is as long as they need.
    unsafe { FAULTY.try_launch(symbol, ([blocks, 1, 1], [threads, 1, 1]), 64, &params, seed)? };
    Ok(out)
}

/// How many different outcomes there are.
fn outcomes(symbol: &str, shape: (u32, u32), len: usize) -> usize {
    (0..20).map(|seed| run(symbol, shape, len, seed).unwrap()).collect::<HashSet<_>>().len()
}

#[test]
fn what_is_right_is_so_in_any_order() {
    assert_eq!(outcomes("sae_barrier", (1, 64), 64), 1);
    assert_eq!(run("sae_barrier", (1, 64), 64, 7).unwrap(), (0..64).rev().collect::<Vec<_>>());
    assert_eq!(outcomes("sae_atomic", (3, 64), 1), 1);
    assert_eq!(run("sae_atomic", (3, 64), 1, 7).unwrap(), [192]);
}

#[test]
fn faults_come_to_light() {
    for (symbol, shape) in [("sae_no_barrier", (1, 64)), ("sae_race", (1, 64)), ("sae_block_race", (8, 32))] {
        assert!(outcomes(symbol, shape, 64) > 5, "{symbol} hardly depends on the order");
    }
    assert!((1..20).all(|seed| run("sae_lost_update", (1, 64), 1, seed).unwrap()[0] < 64));
}

#[test]
fn threads_that_wait_in_vain_are_told() {
    for seed in 0..5 {
        let message = run("sae_deadlock", (1, 64), 1, seed).unwrap_err();
        assert!(message.contains("sae_deadlock") && message.contains("never come"), "{message}");
        let message = run("sae_divergent", (1, 32), 32, seed).unwrap_err();
        assert!(message.contains("different operations"), "{message}");
        assert_eq!(run("sae_barrier", (1, 64), 64, seed).unwrap().len(), 64, "the next launch is unharmed");
    }
    assert!(run("sae_none", (1, 32), 1, 0).unwrap_err().contains("no such kernel"));
    assert!(run("sae_barrier", (1, 33), 64, 0).unwrap_err().contains("not a block"));
}

#[test]
fn lanes_see_each_other() {
    for seed in 0..5 {
        let out = run("sae_lanes", (1, 64), 64 * 6 + 33, seed).unwrap();
        for me in 0..64usize {
            let (lane, warp) = (me % 32, me / 32 * 32);
            let ballot = (0..32).filter(|l| (warp + l) % 3 == 0).fold(0u32, |bits, l| bits | 1 << l);
            let expected = [
                warp + 5,
                warp + (lane ^ 3),
                if lane % 4 < 2 { me + 2 } else { me },
                if lane % 8 > 0 { me - 1 } else { me },
                ballot as usize,
                (0..64).sum(),
            ];
            assert_eq!(out[me * 6..me * 6 + 6], expected.map(|v| v as u32 as i32), "thread {me}");
        }
    }
}

#[test]
fn shared_memory_starts_as_garbage() {
    assert_eq!(run("sae_garbage", (2, 32), 32, 3).unwrap(), [-1; 32]);
}
