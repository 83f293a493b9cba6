//! Loops in plain Rust, compiled for each instruction set. Every set gives the same bits here too: Rust neither reorders
//! floating-point operations nor fuses them, so the compiler may only do several elements at once.

use super::Kernels;

/// What loops are compiled for.
#[derive(Clone, Copy)]
pub(super) enum Set {
    /// What every machine of this kind has.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A loop and what it works on.
pub(crate) trait Loop {
    type Output;

    /// To be marked `#[inline(always)]`, with all that it calls: only then is it compiled for the set.
    fn run(self) -> Self::Output;
}

impl Kernels {
    /// Runs a loop as compiled for this set.
    #[inline]
    pub(crate) fn run<L: Loop>(self, body: L) -> L::Output {
        match self.set {
            Set::Baseline => body.run(),
            // SAFETY: a set is only handed out where the machine runs it.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { avx2(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { avx512(body) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<L: Loop>(body: L) -> L::Output {
    body.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn avx512<L: Loop>(body: L) -> L::Output {
    body.run()
}
