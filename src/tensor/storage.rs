//! The bytes behind weights: owned and 64-byte aligned, mapped from a file, or borrowed from the host.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::fs::File;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::error::{Error, Result, Status, fail};

/// A zeroed, 64-byte aligned block: a cache line, and the widest vector register. Large blocks lie in large pages where
/// the system has them: else rows picked from all over a matrix wait for the addresses of their pages.
pub struct AlignedBytes {
    data: NonNull<u8>,
    len: usize,
}

/// Where a block of no bytes would be.
#[repr(align(64))]
struct Aligned;

// SAFETY: the block is owned by this value alone and holds plain bytes.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// The alignment of every block.
    pub const ALIGN: usize = 64;
    /// What most processors call a large page. Blocks of two or more begin with one.
    const LARGE_PAGE: usize = 2 << 20;

    /// `len` zeroed bytes, or [`Status::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self> {
        let out_of_memory = || Error::new(Status::OutOfMemory, format!("{len} bytes could not be allocated"));
        if len == 0 {
            return Ok(Self { data: NonNull::<Aligned>::dangling().cast(), len });
        }
        let layout = Self::layout(len).ok_or_else(out_of_memory)?;
        if layout.align() == Self::ALIGN {
            // SAFETY: the layout's size is not zero.
            let data = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(out_of_memory)?;
            return Ok(Self { data, len });
        }
        // SAFETY: as above.
        let data = NonNull::new(unsafe { alloc(layout) }).ok_or_else(out_of_memory)?;
        // Pages come when they are first written, so large ones are asked for before.
        prefer_large_pages(data, len);
        // SAFETY: `len` bytes were allocated.
        unsafe { data.write_bytes(0, len) };
        Ok(Self { data, len })
    }

    fn layout(len: usize) -> Option<Layout> {
        let align = if len >= 2 * Self::LARGE_PAGE { Self::LARGE_PAGE } else { Self::ALIGN };
        Layout::from_size_align(len, align).ok()
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `data` points to `len` initialised bytes owned by `self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The bytes, to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: `data` points to `len` initialised bytes owned by `self`, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: allocated in `zeroed` with this very layout, which was valid there.
            unsafe { dealloc(self.data.as_ptr(), Self::layout(self.len).unwrap_unchecked()) };
        }
    }
}

/// Asks for large pages behind whole pages of memory. Everything works without them too.
fn prefer_large_pages(data: NonNull<u8>, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: advice on whole pages of our own changes nothing that they hold.
    unsafe {
        libc::madvise(data.as_ptr().cast(), len - len % AlignedBytes::LARGE_PAGE, libc::MADV_HUGEPAGE);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (data, len);
}

/// Immutable bytes, cheap to clone, whoever owns them.
#[derive(Clone)]
pub struct Storage(Kind);

#[derive(Clone)]
enum Kind {
    Owned(Arc<AlignedBytes>),
    Mapped { map: Arc<memmap2::Mmap>, start: usize, len: usize },
    Borrowed(Arc<Borrowed>),
}

/// Host memory, and what to call when the last user is gone.
struct Borrowed {
    data: *const u8,
    len: usize,
    release: Option<Box<dyn FnOnce() + Send + Sync>>,
}

// SAFETY: whoever made it promised that the bytes may be read from any thread until `release` is called.
unsafe impl Send for Borrowed {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Borrowed {}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release();
        }
    }
}

impl Storage {
    /// A block of our own.
    pub fn owned(bytes: AlignedBytes) -> Self {
        Self(Kind::Owned(Arc::new(bytes)))
    }

    /// A copy of `values` in a block of our own.
    pub fn copy_of<T: bytemuck::NoUninit>(values: &[T]) -> Result<Self> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut block = AlignedBytes::zeroed(bytes.len())?;
        block.as_mut_slice().copy_from_slice(bytes);
        Ok(Self::owned(block))
    }

    /// Maps a whole file read-only. The file must not be changed while it is mapped: as with every mapping, a host that
    /// truncates it is killed by the system when the lost pages are read.
    pub fn map(file: &File) -> Result<Self> {
        // SAFETY: read-only and private; the file's constancy is the documented duty of the one who asks for mapping.
        let map = unsafe { memmap2::Mmap::map(file)? };
        let len = map.len();
        Ok(Self(Kind::Mapped { map: Arc::new(map), start: 0, len }))
    }

    /// Bytes of the host; `release` runs when the last user is gone.
    ///
    /// # Safety
    /// `data` must point to `len` bytes that stay readable, unchanged and from any thread, until `release` is called.
    pub unsafe fn borrowed(data: *const u8, len: usize, release: Option<Box<dyn FnOnce() + Send + Sync>>) -> Self {
        Self(Kind::Borrowed(Arc::new(Borrowed { data, len, release })))
    }

    /// A part of a mapping, sharing it; other kinds of storage are copied from their start only by their makers.
    pub fn slice(&self, start: usize, len: usize) -> Result<Self> {
        match &self.0 {
            Kind::Mapped { map, start: base, len: whole } => {
                if start.checked_add(len).is_none_or(|end| end > *whole) {
                    return fail!(Format, "bytes {start}..+{len} lie outside the mapped {whole} bytes");
                }
                Ok(Self(Kind::Mapped { map: Arc::clone(map), start: base + start, len }))
            }
            _ => fail!(Internal, "only mapped storage is sliced"),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Kind::Owned(block) => block.as_slice(),
            Kind::Mapped { map, start, len } => &map[*start..*start + *len],
            Kind::Borrowed(b) if b.len == 0 => &[],
            // SAFETY: the maker of the borrow promised `len` readable, constant bytes while `self` lives.
            Kind::Borrowed(b) => unsafe { std::slice::from_raw_parts(b.data, b.len) },
        }
    }

    /// Whether the bytes are paged in from a file as they are read.
    pub fn is_mapped(&self) -> bool {
        matches!(self.0, Kind::Mapped { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn blocks_are_zeroed_and_aligned() {
        for len in [0, 1, 63, 64, 65, 1 << 20, 4 << 20, (5 << 20) + 3] {
            let block = AlignedBytes::zeroed(len).unwrap();
            assert_eq!(block.as_slice().len(), len);
            assert!(block.as_slice().iter().all(|&b| b == 0));
            if len > 0 {
                assert_eq!(block.as_slice().as_ptr() as usize % 64, 0);
            }
        }
        assert_eq!(AlignedBytes::zeroed(usize::MAX / 2).err().unwrap().status(), Status::OutOfMemory);
    }

    #[test]
    fn mapped_slices_stay_inside_and_borrows_release_once() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let map = Storage::map(&file).unwrap();
        let part = map.slice(10, 20).unwrap();
        drop(map);
        assert_eq!(part.bytes(), &[7; 20]);
        assert!(part.slice(10, 11).is_err());
        assert!(part.slice(usize::MAX, 2).is_err());

        let released = Arc::new(AtomicUsize::new(0));
        let host = [1u8, 2, 3];
        let counter = Arc::clone(&released);
        // SAFETY: `host` outlives the storage.
        let borrowed = unsafe {
            Storage::borrowed(
                host.as_ptr(),
                3,
                Some(Box::new(move || {
                    counter.fetch_add(1, Ordering::SeqCst);
                })),
            )
        };
        let again = borrowed.clone();
        drop(borrowed);
        assert_eq!((again.bytes(), released.load(Ordering::SeqCst)), (&host[..], 0));
        drop(again);
        assert_eq!(released.load(Ordering::SeqCst), 1);
    }
}
