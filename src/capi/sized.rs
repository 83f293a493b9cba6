//! Structs that begin with their size, so that fields can be appended: older callers hand in shorter ones, newer callers
//! longer ones, and both are understood.

use std::fmt::Display;
use std::mem::MaybeUninit;

use super::boundary::present;
use crate::error::{Result, fail};

/// Larger than any struct will ever be; a size beyond it is garbage.
const ABSURD: usize = 1 << 12;

/// A struct of the ABI that begins with `struct_size`.
///
/// # Safety
/// It must be `repr(C)` without padding, begin with `struct_size: usize`, and be valid if all its bytes are zero.
pub(super) unsafe trait SizedStruct: Copy {
    /// The size it had when it was first published.
    const FIRST_SIZE: usize;
}

/// `sized!(sae_x: a, b, c)`: declares the fields after `struct_size`; that there is no padding between or after them is
/// checked. `sized!(sae_x: a, b; c)`: `c` and what follows was appended later.
macro_rules! sized {
    ($type:ident: $($field:ident),* $(; $($later:ident),*)?) => {
        // SAFETY: made of numbers, pointers and optional functions alone; padding is checked below.
        unsafe impl $crate::capi::sized::SizedStruct for $type {
            const FIRST_SIZE: usize = size_of::<usize>() $(+ $crate::capi::sized::size_of_field(|s: &$type| &s.$field))*;
        }
        #[cfg(target_pointer_width = "64")]
        const _: () = assert!(
            std::mem::offset_of!($type, struct_size) == 0
                && size_of::<$type>()
                    == <$type as $crate::capi::sized::SizedStruct>::FIRST_SIZE
                        $($(+ $crate::capi::sized::size_of_field(|s: &$type| &s.$later))*)?,
            "padding, or a field that is not declared"
        );
    };
}
pub(super) use sized;

pub(super) const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Reads a struct of the caller's; `None` if it is NULL.
///
/// # Safety
/// A pointer that is neither null nor misaligned must point to as many readable bytes as its `struct_size` says.
pub(super) unsafe fn read<T: SizedStruct>(name: impl Display, pointer: *const T) -> Result<Option<T>> {
    if pointer.is_null() {
        return Ok(None);
    }
    present(&name, pointer)?;
    // SAFETY: a struct begins with its size; the rest is the caller's promise.
    let size = check_size::<T>(&name, unsafe { pointer.cast::<usize>().read() })?;
    let known = size.min(size_of::<T>());
    // SAFETY: all the caller's struct, which is `size` bytes.
    let tail = unsafe { std::slice::from_raw_parts(pointer.cast::<u8>().add(known), size - known) };
    if let Some(i) = tail.iter().position(|&byte| byte != 0) {
        return fail!(
            InvalidArgument,
            "{name}: byte {} of {size} is set, but this library knows the first {known} alone",
            known + i
        );
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable and fit a `T`, which is valid with zeros for the rest.
    unsafe {
        std::ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast::<u8>(), known);
        Ok(Some(value.assume_init()))
    }
}

/// Reads a struct of the caller's that must be there.
///
/// # Safety
/// As [`read`].
pub(super) unsafe fn require<T: SizedStruct>(name: impl Display, pointer: *const T) -> Result<T> {
    present(&name, pointer)?;
    // SAFETY: the caller's promise.
    Ok(unsafe { read(name, pointer)? }.expect("it is not null, as just checked"))
}

/// A struct of the caller's to be filled: checked before the work, written after it.
pub(super) struct Output<T> {
    place: *mut T,
    size: usize,
}

impl<T: SizedStruct> Output<T> {
    /// # Safety
    /// A pointer that is neither null nor misaligned must point to as many writable bytes as its `struct_size` says, until
    /// [`Self::write`].
    pub(super) unsafe fn new(name: impl Display, place: *mut T) -> Result<Self> {
        present(&name, place)?;
        // SAFETY: a struct begins with its size; the rest is the caller's promise.
        let size = check_size::<T>(&name, unsafe { place.cast::<usize>().read() })?;
        Ok(Self { place, size })
    }

    /// Fills the struct as far as the caller knows it; what this library does not know becomes zero.
    pub(super) fn write(self, value: &T) {
        let (start, known) = (size_of::<usize>(), self.size.min(size_of::<T>()));
        // SAFETY: `size` bytes are writable by the promise made to `new`; `struct_size` itself stays the caller's.
        unsafe {
            let to = self.place.cast::<u8>();
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(value).cast::<u8>().add(start),
                to.add(start),
                known - start,
            );
            std::ptr::write_bytes(to.add(known), 0, self.size - known);
        }
    }
}

fn check_size<T: SizedStruct>(name: impl Display, size: usize) -> Result<usize> {
    if size < T::FIRST_SIZE || size > ABSURD {
        return fail!(
            InvalidArgument,
            "{name}.struct_size: {size} is not the size of any version of this struct, the first had {}; make it with its \
             SAE_…_INIT macro",
            T::FIRST_SIZE
        );
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct options {
        struct_size: usize,
        a: u64,
        b: u64,
    }
    sized!(options: a; b);

    #[test]
    fn every_version_is_understood() {
        let given = |bytes: [u64; 5]| {
            // SAFETY: an array larger than every size tried that is not refused.
            unsafe { read("options", bytes.as_ptr().cast::<options>()) }
        };
        assert_eq!(given([16, 5, 6, 0, 0]).unwrap(), Some(options { struct_size: 16, a: 5, b: 0 }));
        assert_eq!(given([24, 5, 6, 7, 0]).unwrap(), Some(options { struct_size: 24, a: 5, b: 6 }));
        assert_eq!(given([40, 5, 6, 0, 0]).unwrap(), Some(options { struct_size: 40, a: 5, b: 6 }));
        for (bad, named) in [
            ([0, 0, 0, 0, 0], "struct_size: 0"),
            ([15, 0, 0, 0, 0], "15"),
            ([u64::MAX, 0, 0, 0, 0], "struct_size"),
            ([40, 0, 0, 0, 256], "byte 33 of 40"),
        ] {
            let error = given(bad).unwrap_err();
            assert_eq!(error.status(), Status::InvalidArgument);
            assert!(error.message().contains(named), "{error}");
        }
        // SAFETY: null is nothing.
        assert_eq!(unsafe { read::<options>("options", std::ptr::null()) }.unwrap(), None);
        // SAFETY: refused before it is read.
        assert!(unsafe { read("options", std::ptr::without_provenance::<options>(4)) }.is_err());
    }

    #[test]
    fn outputs_are_filled_as_far_as_they_go() {
        let filled = |size: u64| {
            let mut bytes = [size, 9, 9, 9, 9];
            // SAFETY: an array larger than the sizes below.
            let output = unsafe { Output::new("out", bytes.as_mut_ptr().cast::<options>()) }.unwrap();
            output.write(&options { struct_size: 0, a: 1, b: 2 });
            bytes
        };
        assert_eq!(filled(16), [16, 1, 9, 9, 9]);
        assert_eq!(filled(24), [24, 1, 2, 9, 9]);
        assert_eq!(filled(32), [32, 1, 2, 0, 9]);
    }
}
