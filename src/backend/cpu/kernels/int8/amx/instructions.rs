//! The processor's own tiles, and whether it may use them.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::super::x86::vnni;
use super::{Product, Sizes, Tiles};

/// With fewer tokens setting tiles up takes longer than multiplying without them.
const FEW: usize = 4;

/// # Safety
/// The machine must have AMX, and AVX-512 with VNNI; the shapes must fit.
pub(in super::super::super) unsafe fn product(product: &Product<'_>, out: &mut [i32]) {
    // SAFETY: the caller's promise.
    unsafe { if product.rows() < FEW { vnni(product, out) } else { super::multiply(&mut Instructions, product, out) } }
}

/// Whether this process may use tiles: some virtual machines show them and refuse them. Asked for once.
pub(in super::super::super) fn supported() -> bool {
    static SUPPORTED: OnceLock<bool> = OnceLock::new();
    *SUPPORTED.get_or_init(|| shown() && permitted())
}

/// Whether the processor shows AMX-TILE and AMX-INT8, and the system saves tiles.
fn shown() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILE_AND_INT8: u32 = 1 << 24 | 1 << 25;
    const TILES_SAVED: u64 = 1 << 17 | 1 << 18;
    // Calling it needs no promise since Rust 1.94.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has CPUID; XGETBV is there if OSXSAVE says so.
    unsafe {
        __cpuid(0).eax >= 7
            && __cpuid(1).ecx & OSXSAVE != 0
            && __cpuid_count(7, 0).edx & TILE_AND_INT8 == TILE_AND_INT8
            && _xgetbv(0) & TILES_SAVED == TILES_SAVED
    }
}

/// Linux lends tiles to processes that ask, for good.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory; kernels that do not know it return an error.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Tiles 0 to 7 of the thread.
pub(super) struct Instructions;

// SAFETY: each is one instruction, which does what the trait says. The compiler itself uses no tiles.
unsafe impl Tiles for Instructions {
    #[inline(always)]
    unsafe fn configure(&mut self, sizes: &Sizes) {
        // SAFETY: the caller's promise.
        unsafe { asm!("ldtilecfg [{}]", in(reg) sizes, options(nostack, preserves_flags, readonly)) };
    }

    #[inline(always)]
    unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{from} + {stride}]",
                tile = const TILE,
                from = in(reg) from,
                stride = in(reg) stride,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}], tmm{tile}",
                tile = const TILE,
                to = in(reg) to,
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn multiply<const TO: u8, const X: u8, const W: u8>(&mut self) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!(
                "tdpbusd tmm{to}, tmm{x}, tmm{w}",
                to = const TO,
                x = const X,
                w = const W,
                options(nostack, preserves_flags, nomem),
            );
        }
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}
