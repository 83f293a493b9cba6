//! A buffer holds as much memory as it says and no more, and says so before it takes it.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout as Block, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sae::tensor::{DType, Tensor};
use sae::training::data::{Buffer, BufferOptions, Choice, Layout, Push, Room, Rows, Taken, Wait};

/// The system's allocator, counting what is held, and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn more(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::SeqCst) + bytes;
    MOST.fetch_max(held, Ordering::SeqCst);
}

// SAFETY: requests are handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, block: Block) -> *mut u8 {
        more(block.size());
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(block) }
    }

    unsafe fn alloc_zeroed(&self, block: Block) -> *mut u8 {
        more(block.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(block) }
    }

    unsafe fn dealloc(&self, at: *mut u8, block: Block) {
        HELD.fetch_sub(block.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(at, block) };
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn what_it_says_is_what_it_takes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("buffer.safetensors");
    for (d, dtype, choice, memory_bytes, spill_bytes) in [
        (64, DType::F32, Choice::default(), 1 << 20, 0),
        (64, DType::F16, Choice { sink_multiple: 10.0, ..Choice::default() }, 3 << 20, 0),
        (1, DType::F32, Choice { documents: true, min_documents: 50, ..Choice::default() }, 2 << 20, 0),
        (700, DType::BF16, Choice { documents: true, ..Choice::default() }, 300_000, 4 << 20),
    ] {
        let room =
            Room { memory_bytes, spill_bytes, spill_folder: (spill_bytes > 0).then(|| folder.path().to_owned()) };
        let options = BufferOptions { layout: Layout::vectors(d, dtype), room, choice };
        let values: Vec<f32> = (0..500 * d).map(|i| (i % 1013) as f32 * 0.1 + 1.0).collect();
        let x = Tensor::new(&values, &[500, d]).unwrap();
        let documents: Vec<i64> = (0..500).collect();
        let mut rows = Rows::new(options.layout, 300).unwrap();

        let before = HELD.load(Ordering::SeqCst);
        MOST.store(before, Ordering::SeqCst);
        let said = Buffer::memory(&options).unwrap();
        assert!(MOST.load(Ordering::SeqCst) - before < 1000, "it is told without being taken");
        assert!(said.memory_bytes <= memory_bytes && said.capacity >= 600, "{said:?}");
        let buffer = Buffer::new(&options).unwrap();
        let mut given = 0;
        while given < 3 * said.capacity {
            let push = Push { documents: Some(&documents), ..x.into() };
            let pushed = buffer.push(&push, Wait::No).unwrap();
            let mut taken = 0;
            while let Taken::Rows(count) = buffer.take(&mut rows, Wait::No).unwrap() {
                taken += count;
                if taken > pushed {
                    break;
                }
            }
            given += taken;
        }
        let most = MOST.load(Ordering::SeqCst) - before;
        assert!(most as u64 <= said.memory_bytes, "{most} bytes, not {said:?}");
        // Nor is much of it idle: but for the table of documents, which is counted at its largest.
        assert!(options.choice.min_documents > 0 || most as u64 > said.memory_bytes - 8192, "{most} bytes of {said:?}");
        // A save writes from where the rows are. What it lists first, it holds: 8 bytes of each row, where documents are kept.
        MOST.store(before, Ordering::SeqCst);
        buffer.save(&path).unwrap();
        let listed = if options.choice.documents { 8 * said.capacity } else { 0 };
        let most = MOST.load(Ordering::SeqCst) - before;
        assert!(most as u64 <= said.memory_bytes + listed as u64 + 16_384, "{most} bytes to save {said:?}");
    }
}
