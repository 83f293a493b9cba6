//! A training step works in memory it already has: it makes no allocation that grows with the batch or the number of latents.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use sae::backend::Pool;
use sae::tensor::Tensor;
use sae::training::{TrainOptions, Trainer};

/// The system's allocator, noting the largest request.
struct Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: requests are handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) };
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

#[test]
fn steps_allocate_next_to_nothing() {
    let (d, n, rows) = (40, 3000, 700);
    let options = TrainOptions {
        d,
        n_latents: n,
        k: 5,
        dead_after_tokens: 700,
        max_batch_tokens: rows,
        clip_norm: 1.0,
        ..TrainOptions::default()
    };
    let x: Vec<f32> = (0..rows * d).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
    let x = Tensor::new(&x, &[rows, d]).unwrap();
    let mut trainer = Trainer::new(&options, Pool::new(2).unwrap()).unwrap();
    trainer.init_from(&x).unwrap();
    LARGEST.store(0, Ordering::Relaxed);
    let mut aux = 0.0;
    for _ in 0..3 {
        aux = trainer.step(&x.into()).unwrap().aux;
    }
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(aux > 0.0, "AuxK must be at work for this to mean much");
    assert!(largest <= 8 * d, "{largest} bytes at once");
}
