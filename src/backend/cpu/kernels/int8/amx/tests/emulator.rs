//! Carries out the tile instructions of a processor that refuses them: read from their bytes as the manual has them, done
//! on a [`Twin`] of the thread's own.

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Once;

use super::twin::Twin;

thread_local! {
    static TILES: RefCell<Twin> = const { RefCell::new(Twin::NEW) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// From here on, refused instructions of this process are carried out if they are of tiles; tells how many were in this
/// thread so far.
pub(super) fn install() -> u64 {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // SAFETY: the handler has the form that SA_SIGINFO asks for, and an empty mask is zeros.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = refused as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    COUNT.get()
}

/// The registers in the order of their numbers in instructions.
const GENERAL: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn refused(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands the thread's registers in; the instruction pointer points at instructions, of which even
    // short ones are followed by others.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = libc::REG_RIP as usize;
        let bytes = &*(registers[rip] as *const [u8; 12]);
        let Some((instruction, length)) = decode(bytes, |number| registers[GENERAL[number] as usize] as usize) else {
            // Not one of ours: it comes again, and ends the process as it would have.
            libc::signal(signal, libc::SIG_DFL);
            return;
        };
        TILES.with_borrow_mut(|tiles| match instruction {
            Instruction::Configure { at } => tiles.configure(&*(at as *const _)),
            Instruction::Load { tile, start, stride } => tiles.load(tile, start as *const u8, stride),
            Instruction::Store { tile, start, stride } => tiles.store(tile, start as *mut u8, stride),
            Instruction::Multiply { to, x, w } => tiles.multiply(to, x, w),
            Instruction::Release => tiles.release(),
        });
        COUNT.set(COUNT.get() + 1);
        registers[rip] += length as i64;
    }
}

#[derive(Debug, PartialEq)]
enum Instruction {
    Configure { at: usize },
    Load { tile: usize, start: usize, stride: usize },
    Store { tile: usize, start: usize, stride: usize },
    Multiply { to: usize, x: usize, w: usize },
    Release,
}

/// Reads an instruction in the three-byte VEX form; tells its length too.
fn decode(bytes: &[u8; 12], register: impl Fn(usize) -> usize) -> Option<(Instruction, usize)> {
    let [0xc4, extensions, vex, opcode, modrm, ..] = *bytes else { return None };
    // Map 0F38, W0, 128 bits; the registers' fourth bits and vvvv are inverted. There are but eight tiles.
    let (map, wide, long) = (extensions & 31, vex & 0x80, vex & 4);
    if (map, wide, long) != (2, 0, 0) || extensions & 0x80 == 0 {
        return None;
    }
    let (index_high, base_high) = (usize::from(!extensions >> 6 & 1) << 3, usize::from(!extensions >> 5 & 1) << 3);
    let (vvvv, prefix) = (usize::from(!vex >> 3 & 15), vex & 3);
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let memory = || {
        // A scaled index, or none: number 4 stands for it.
        let sib = (rm == 4).then_some(bytes[5]);
        let base = sib.map_or(rm, |sib| usize::from(sib & 7));
        if mode == 0 && base == 5 {
            return None;
        }
        let index = sib.map_or(4, |sib| usize::from(sib >> 3 & 7) | index_high);
        let stride = if index == 4 { 0 } else { register(index) << (sib.unwrap_or(0) >> 6) };
        let at = if sib.is_some() { 6 } else { 5 };
        let (displacement, size) = match mode {
            0 => (0, 0),
            1 => (isize::from(bytes[at] as i8), 1),
            _ => (i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as isize, 4),
        };
        Some((register(base | base_high).wrapping_add_signed(displacement), stride, at + size))
    };
    const NONE: u8 = 0;
    const P66: u8 = 1;
    const F3: u8 = 2;
    const F2: u8 = 3;
    match (opcode, prefix, mode) {
        (0x49, NONE, 3) if modrm == 0xc0 && vvvv == 0 => Some((Instruction::Release, 5)),
        (0x49, NONE, 0..=2) if reg == 0 && vvvv == 0 => {
            let (start, offset, length) = memory()?;
            Some((Instruction::Configure { at: start.wrapping_add(offset) }, length))
        }
        (0x4b, F2, 0..=2) if rm == 4 && vvvv == 0 => {
            let (start, stride, length) = memory()?;
            Some((Instruction::Load { tile: reg, start, stride }, length))
        }
        (0x4b, F3, 0..=2) if rm == 4 && vvvv == 0 => {
            let (start, stride, length) = memory()?;
            Some((Instruction::Store { tile: reg, start, stride }, length))
        }
        // Unsigned bytes are in the tile of the last three bits, signed ones in that of vvvv.
        (0x5e, P66, 3) if vvvv < 8 && base_high == 0 => Some((Instruction::Multiply { to: reg, x: rm, w: vvvv }, 5)),
        _ => None,
    }
}

/// As GNU `as` makes them, from registers that hold a thousand times their numbers.
#[test]
fn instructions_are_read_as_assemblers_write_them() {
    for (hex, expected) in [
        // ldtilecfg (%rdi)
        ("c4e2784907", Some(Instruction::Configure { at: 7000 })),
        // ldtilecfg 0x40(%r12,%rbx,2)
        ("c4c27849445c40", Some(Instruction::Configure { at: 12000 + 2 * 3000 + 0x40 })),
        // tileloadd (%rsi,%rdx,1),%tmm4
        ("c4e27b4b2416", Some(Instruction::Load { tile: 4, start: 6000, stride: 2000 })),
        // tileloadd 0x7f(%r13,%r15,1),%tmm7
        ("c4827b4b7c3d7f", Some(Instruction::Load { tile: 7, start: 13000 + 0x7f, stride: 15000 })),
        // tileloadd (%r8,%r9,4),%tmm0
        ("c4827b4b0488", Some(Instruction::Load { tile: 0, start: 8000, stride: 4 * 9000 })),
        // tilestored %tmm1,0x12345(%r10,%r11,1)
        ("c4827a4b8c1a45230100", Some(Instruction::Store { tile: 1, start: 10000 + 0x12345, stride: 11000 })),
        // tdpbusd %tmm6,%tmm4,%tmm0
        ("c4e2495ec4", Some(Instruction::Multiply { to: 0, x: 4, w: 6 })),
        // tdpbusd %tmm7,%tmm5,%tmm3
        ("c4e2415edd", Some(Instruction::Multiply { to: 3, x: 5, w: 7 })),
        // tilerelease
        ("c4e27849c0", Some(Instruction::Release)),
        // tdpbssd %tmm6,%tmm4,%tmm0, and ud2
        ("c4e24b5ec4", None),
        ("0f0b", None),
    ] {
        let mut bytes = [0x90; 12];
        for (i, byte) in bytes.iter_mut().enumerate().take(hex.len() / 2) {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
        }
        let expected = expected.map(|instruction| (instruction, hex.len() / 2));
        assert_eq!(decode(&bytes, |number| 1000 * number), expected, "{hex}");
    }
}
