//! Hot calls allocate nothing, of the host's memory or the device's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Stream as On};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use serde_json::json;

use crate::cases::Case;
use crate::device::{Buffer, Stream, free_memory};
use crate::say;

thread_local!(static COUNT: Cell<usize> = const { Cell::new(0) });

/// The system's allocator, which counts.
pub struct Counting;

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) };
    }
}

pub fn run() -> bool {
    const ROWS: usize = 8;
    const D: usize = 256;
    let case = Case { weights: 2, ..Case::plain(D, 4096, ROWS, 16) };
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let options = SessionOptions { max_tokens: ROWS, ..SessionOptions::default() };
    let mut session = Session::new(CudaModel::new(sae, 0).unwrap(), options).unwrap();
    let x = Buffer::new(true, &numbers.activations(ROWS * D));
    let mut out = Buffer::new(true, &vec![0f32; ROWS * D]);
    let stream = Stream::new();
    let mut all_calls = |session: &mut Session| {
        let run = || Run { stream: On::Host(stream.handle()), ..Run::default() };
        let shape = [ROWS, D];
        session.set_edits(0, &[Edit::new(5, EditOp::Set, 1.0)]).unwrap();
        session.reconstruct(run(), x.tensor(&shape).into(), None, out.tensor_mut(&shape)).unwrap();
        session.steer(run(), x.tensor(&shape).into(), Steer::default(), out.tensor_mut(&shape)).unwrap();
    };
    all_calls(&mut session);
    stream.wait();
    let free = free_memory();
    let before = COUNT.get();
    for _ in 0..20 {
        all_calls(&mut session);
    }
    let allocations = COUNT.get() - before;
    stream.wait();
    let taken = free.saturating_sub(free_memory());
    say(json!({ "host_allocations": allocations, "device_bytes": taken }), "allocation");
    allocations == 0 && taken == 0
}
