//! Loops over equal blocks of arrays, shared out among threads. Blocks do not depend on the number of threads, and each
//! is written by one of them, so neither do results.

use std::marker::PhantomData;

use crate::backend::Pool;
use crate::sae::int8::{Int8Rows, PANEL, PanelMut};

/// Runs `body(i, part)` for each block of `parts`, which it takes so that no other loop has them meanwhile.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn for_each<P: Parts>(pool: &Pool, parts: P, body: impl Fn(usize, P::Part) + Sync) {
    pool.run(parts.count(), &|i| {
        // SAFETY: the pool runs each number once, and it is below the count.
        body(i, unsafe { parts.part(i) });
    });
}

/// Arrays cut into as many blocks each.
///
/// # Safety
/// Parts with different numbers must not share memory.
pub(super) unsafe trait Parts: Sync {
    /// One block.
    type Part;

    /// How many blocks.
    fn count(&self) -> usize;

    /// # Safety
    /// `i` must be below the count, and the part of the same number not in use.
    unsafe fn part(&self, i: usize) -> Self::Part;
}

/// A slice cut into blocks of `size`, the last one maybe shorter.
pub(super) struct Blocks<'a, T> {
    data: *mut T,
    len: usize,
    size: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for `&mut [T]`, whose parts go to one thread each.
unsafe impl<T: Send> Sync for Blocks<'_, T> {}

/// Cuts a slice into blocks of `size`.
pub(super) fn blocks<T>(data: &mut [T], size: usize) -> Blocks<'_, T> {
    assert!(size > 0);
    Blocks { data: data.as_mut_ptr(), len: data.len(), size, borrow: PhantomData }
}

// SAFETY: blocks are disjoint ranges of one slice.
unsafe impl<'a, T: Send> Parts for Blocks<'a, T> {
    type Part = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.size)
    }

    unsafe fn part(&self, i: usize) -> &'a mut [T] {
        let start = i * self.size;
        let len = self.size.min(self.len - start);
        // SAFETY: within the slice borrowed for 'a, as `i` is below the count; not in use by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(start), len) }
    }
}

/// The panels of rows kept as bytes.
pub(super) struct Panels<'a>(Blocks<'a, i8>, [Blocks<'a, f32>; 3], Blocks<'a, i32>);

/// Cuts rows of bytes into their panels.
pub(super) fn panels(rows: &mut Int8Rows) -> Panels<'_> {
    let size = PANEL * rows.padded();
    let PanelMut { q, scale, lost, norm, sum } = rows.all_mut();
    Panels(blocks(q, size), [scale, lost, norm].map(|facts| blocks(facts, PANEL)), blocks(sum, PANEL))
}

// SAFETY: each array's parts are disjoint.
unsafe impl<'a> Parts for Panels<'a> {
    type Part = PanelMut<'a>;

    fn count(&self) -> usize {
        self.0.count()
    }

    unsafe fn part(&self, i: usize) -> PanelMut<'a> {
        let Self(q, [scale, lost, norm], sum) = self;
        // SAFETY: the caller's promise, handed on; the arrays have as many parts.
        unsafe {
            PanelMut { q: q.part(i), scale: scale.part(i), lost: lost.part(i), norm: norm.part(i), sum: sum.part(i) }
        }
    }
}

/// Blocks of an array that there may not be.
pub(super) struct Optional<P> {
    parts: Option<P>,
    count: usize,
}

/// As many parts as the array has, or `count` times none.
pub(super) fn optional<P>(parts: Option<P>, count: usize) -> Optional<P> {
    Optional { parts, count }
}

// SAFETY: parts are those of the array.
unsafe impl<P: Parts> Parts for Optional<P> {
    type Part = Option<P::Part>;

    fn count(&self) -> usize {
        self.parts.as_ref().map_or(self.count, Parts::count)
    }

    unsafe fn part(&self, i: usize) -> Self::Part {
        // SAFETY: the caller's promise, handed on.
        self.parts.as_ref().map(|parts| unsafe { parts.part(i) })
    }
}

macro_rules! zip_parts {
    ($($name:ident $index:tt),*) => {
        // SAFETY: each member's parts are disjoint.
        unsafe impl<$($name: Parts),*> Parts for ($($name,)*) {
            type Part = ($($name::Part,)*);

            fn count(&self) -> usize {
                let count = self.0.count();
                $(assert_eq!(self.$index.count(), count, "arrays are cut into as many blocks each");)*
                count
            }

            unsafe fn part(&self, i: usize) -> Self::Part {
                // SAFETY: the caller's promise, handed on; counts are equal.
                unsafe { ($(self.$index.part(i),)*) }
            }
        }
    };
}
zip_parts!(A 0, B 1);
zip_parts!(A 0, B 1, C 2);
zip_parts!(A 0, B 1, C 2, D 3);
zip_parts!(A 0, B 1, C 2, D 3, E 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_in_one_block() {
        let (mut a, mut b) = (vec![0u32; 103], vec![0u64; 11]);
        for pool in [Pool::serial(), Pool::new(3).unwrap()] {
            for_each(&pool, (blocks(&mut a, 10), blocks(&mut b, 1)), |i, (a, b)| {
                a.iter_mut().for_each(|v| *v += i as u32);
                b[0] += a.len() as u64;
            });
        }
        assert!(a.iter().enumerate().all(|(j, &v)| v == 2 * (j as u32 / 10)));
        assert_eq!((b.iter().sum::<u64>(), b[10]), (206, 6));
    }
}
