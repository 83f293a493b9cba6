//! Products of bytes by AMX: 32 tokens with 32 latents in tiles of 16 by 64 bytes. Four columns of sixteen latents, as
//! panels hold them, are a row of a tile.
//!
//! The loop is written over what tiles can do, so that it is tested on machines that have none.

#[cfg(target_arch = "x86_64")]
mod instructions;

#[cfg(target_arch = "x86_64")]
pub(in super::super) use instructions::{product, supported};

use super::Product;
use crate::sae::int8::PANEL;

/// The most rows of a tile.
const ROWS: usize = 16;
/// Bytes of each row of the tiles used here.
const BYTES: usize = 64;

/// Eight tiles, named by their numbers.
///
/// # Safety
/// The machine must have them. Tiles are used between [`Self::configure`] and [`Self::release`] alone, and memory must hold
/// as many rows as the tile, of [`BYTES`] each.
unsafe trait Tiles {
    /// Gives every tile its size, and zeros.
    unsafe fn configure(&mut self, sizes: &Sizes);
    /// Fills a tile with rows that lie `stride` bytes apart.
    unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: usize);
    /// Writes a tile's rows, `stride` bytes apart.
    unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: usize);
    /// Adds the products of X's unsigned with W's signed bytes, four at a time, to the 32-bit numbers of TO.
    unsafe fn multiply<const TO: u8, const X: u8, const W: u8>(&mut self);
    /// No tile holds anything any more: the thread is as light to suspend as before.
    unsafe fn release(&mut self);
}

/// The tiles' sizes as the processor reads them.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Sizes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Sizes {
    /// For up to 32 tokens: totals in tiles 0 to 3, tokens in 4 and 5, latents in 6 and 7.
    fn of(tokens: usize) -> Self {
        let (upper, lower) = (tokens.min(ROWS) as u8, tokens.saturating_sub(ROWS) as u8);
        let mut sizes: Self = bytemuck::Zeroable::zeroed();
        sizes.palette = 1;
        for (tile, rows) in [upper, upper, lower, lower, upper, lower, ROWS as u8, ROWS as u8].into_iter().enumerate() {
            (sizes.rows[tile], sizes.bytes[tile]) = (rows, if rows > 0 { BYTES as u16 } else { 0 });
        }
        sizes
    }
}

/// # Safety
/// The machine must have the tiles; the shapes must fit.
#[inline(always)]
unsafe fn multiply<T: Tiles>(tiles: &mut T, product: &Product<'_>, out: &mut [i32]) {
    let Product { x, w, sums, padded } = *product;
    for out in out.chunks_exact_mut(sums.len()) {
        // Bytes of x are 128 too large.
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = -128 * sum);
    }
    let parts = x.chunks(2 * ROWS * padded).zip(out.chunks_mut(2 * ROWS * sums.len()));
    let mut configured = 0;
    for (x, out) in parts {
        let tokens = x.len() / padded;
        // SAFETY: the caller's promise; tiles have as many rows as there are tokens.
        unsafe {
            if tokens != configured {
                tiles.configure(&Sizes::of(tokens));
                configured = tokens;
            }
            match (tokens > ROWS, sums.len() > PANEL) {
                (false, false) => block::<T, 1, 1>(tiles, x, w, padded, out),
                (false, true) => block::<T, 1, 2>(tiles, x, w, padded, out),
                (true, false) => block::<T, 2, 1>(tiles, x, w, padded, out),
                (true, true) => block::<T, 2, 2>(tiles, x, w, padded, out),
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { tiles.release() };
}

/// Adds the products of `R` tiles of tokens with `C` panels to what is in `out`.
///
/// # Safety
/// As [`multiply`]; the tiles must have the tokens' sizes.
#[inline(always)]
unsafe fn block<T: Tiles, const R: usize, const C: usize>(
    tiles: &mut T,
    x: &[u8],
    w: &[i8],
    padded: usize,
    out: &mut [i32],
) {
    let (x, w, out, stride) = (x.as_ptr(), w.as_ptr().cast::<u8>(), out.as_mut_ptr().cast::<u8>(), C * BYTES);
    // SAFETY: the caller's promise; a second tile is touched only where there are tokens or a panel for it.
    unsafe {
        tiles.load::<0>(out, stride);
        if C == 2 {
            tiles.load::<1>(out.add(BYTES), stride);
        }
        if R == 2 {
            tiles.load::<2>(out.add(ROWS * stride), stride);
        }
        if R == 2 && C == 2 {
            tiles.load::<3>(out.add(ROWS * stride + BYTES), stride);
        }
        for j in (0..padded).step_by(BYTES) {
            // Four columns of a panel take a row.
            let w = w.add(j * PANEL);
            tiles.load::<4>(x.add(j), padded);
            tiles.load::<6>(w, BYTES);
            tiles.multiply::<0, 4, 6>();
            if R == 2 {
                tiles.load::<5>(x.add(ROWS * padded + j), padded);
                tiles.multiply::<2, 5, 6>();
            }
            if C == 2 {
                tiles.load::<7>(w.add(padded * PANEL), BYTES);
                tiles.multiply::<1, 4, 7>();
            }
            if R == 2 && C == 2 {
                tiles.multiply::<3, 5, 7>();
            }
        }
        tiles.store::<0>(out, stride);
        if C == 2 {
            tiles.store::<1>(out.add(BYTES), stride);
        }
        if R == 2 {
            tiles.store::<2>(out.add(ROWS * stride), stride);
        }
        if R == 2 && C == 2 {
            tiles.store::<3>(out.add(ROWS * stride + BYTES), stride);
        }
    }
}

#[cfg(test)]
mod tests;
