//! Tiles in plain Rust, as the manual defines them; what the processor would refuse fails.

use super::super::{BYTES, ROWS, Sizes, Tiles};

/// Eight tiles.
pub(super) struct Twin {
    /// `None`: released.
    sizes: Option<Sizes>,
    tiles: [[[u8; BYTES]; ROWS]; 8],
}

impl Default for Twin {
    fn default() -> Self {
        Self::NEW
    }
}

impl Twin {
    pub(super) const NEW: Self = Self { sizes: None, tiles: [[[0; BYTES]; ROWS]; 8] };

    pub(super) fn is_released(&self) -> bool {
        self.sizes.is_none()
    }

    /// Rows, and bytes of each.
    fn size(&self, tile: usize) -> (usize, usize) {
        let sizes = self.sizes.as_ref().expect("tiles are configured before they are used");
        let (rows, bytes) = (usize::from(sizes.rows[tile]), usize::from(sizes.bytes[tile]));
        assert!(rows > 0, "tile {tile} is not configured");
        (rows, bytes)
    }

    pub(super) fn configure(&mut self, sizes: &Sizes) {
        assert!(sizes.palette == 1 && sizes.start_row == 0 && sizes.reserved == [0; 14]);
        for (tile, (&rows, &bytes)) in sizes.rows.iter().zip(&sizes.bytes).enumerate() {
            assert!((rows == 0) == (bytes == 0) && usize::from(rows) <= ROWS && usize::from(bytes) <= BYTES);
            assert!(tile < 8 || rows == 0);
        }
        *self = Self { sizes: Some(*sizes), ..Self::NEW };
    }

    /// # Safety
    /// The tile's rows must be readable.
    pub(super) unsafe fn load(&mut self, tile: usize, from: *const u8, stride: usize) {
        let (rows, bytes) = self.size(tile);
        self.tiles[tile] = [[0; BYTES]; ROWS];
        for (r, row) in self.tiles[tile][..rows].iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(from.add(r * stride), row.as_mut_ptr(), bytes) };
        }
    }

    /// # Safety
    /// The tile's rows must be writable.
    pub(super) unsafe fn store(&mut self, tile: usize, to: *mut u8, stride: usize) {
        let (rows, bytes) = self.size(tile);
        for (r, row) in self.tiles[tile][..rows].iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), to.add(r * stride), bytes) };
        }
    }

    pub(super) fn multiply(&mut self, to: usize, x: usize, w: usize) {
        assert!(to != x && to != w && x != w, "the processor wants three tiles");
        let ((to_rows, to_bytes), (x_rows, x_bytes), (w_rows, w_bytes)) = (self.size(to), self.size(x), self.size(w));
        assert!(to_rows == x_rows && to_bytes == w_bytes && x_bytes == 4 * w_rows, "shapes that do not fit");
        for m in 0..to_rows {
            for n in 0..to_bytes / 4 {
                let place = &mut self.tiles[to][m][4 * n..4 * n + 4];
                let mut total = i32::from_le_bytes(place.try_into().expect("four bytes"));
                for k in 0..x_bytes {
                    let product = i32::from(self.tiles[x][m][k]) * i32::from(self.tiles[w][k / 4][4 * n + k % 4] as i8);
                    total = total.wrapping_add(product);
                }
                self.tiles[to][m][4 * n..4 * n + 4].copy_from_slice(&total.to_le_bytes());
            }
        }
    }

    pub(super) fn release(&mut self) {
        *self = Self::NEW;
    }
}

// SAFETY: plain Rust but for the callers' memory.
unsafe impl Tiles for Twin {
    unsafe fn configure(&mut self, sizes: &Sizes) {
        self.configure(sizes);
    }

    unsafe fn load<const TILE: u8>(&mut self, from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.load(TILE.into(), from, stride) };
    }

    unsafe fn store<const TILE: u8>(&mut self, to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.store(TILE.into(), to, stride) };
    }

    unsafe fn multiply<const TO: u8, const X: u8, const W: u8>(&mut self) {
        self.multiply(TO.into(), X.into(), W.into());
    }

    unsafe fn release(&mut self) {
        self.release();
    }
}
