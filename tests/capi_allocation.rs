//! Hot calls allocate nothing: every allocation of the process is counted while each is made, from Rust and through the C
//! ABI, on one thread and on the host's threads.

#![allow(clippy::unwrap_used, unsafe_code, clippy::undocumented_unsafe_blocks)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use half::bf16;
use sae::backend::{Input, ParallelFor, Pool, Run, Wanted};
use sae::capi::*;
use sae::features::Features;
use sae::sae::{Architecture, Gate, Glu, Matrix, Normalization, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};

/// Counts what every thread allocates or frees while it is told to.
struct Counting;

static WATCHING: AtomicBool = AtomicBool::new(false);
static EVENTS: AtomicUsize = AtomicUsize::new(0);

fn note() {
    if WATCHING.load(Ordering::SeqCst) {
        EVENTS.fetch_add(1, Ordering::SeqCst);
    }
}

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note();
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// That a call succeeds without touching the heap, on its first and on its second run.
fn free_of_allocation(name: &str, mut call: impl FnMut() -> bool) {
    for time in ["first", "second"] {
        EVENTS.store(0, Ordering::SeqCst);
        WATCHING.store(true, Ordering::SeqCst);
        let fine = call();
        WATCHING.store(false, Ordering::SeqCst);
        assert!(fine, "{name} fails");
        assert_eq!(EVENTS.load(Ordering::SeqCst), 0, "{name} touches the heap, the {time} time");
    }
}

/// What the host's threads are to do.
#[derive(Clone, Copy)]
struct Work {
    n: usize,
    task: unsafe extern "C" fn(*mut c_void, usize),
    arg: usize,
}

/// Threads of a host: each takes the next index of the work in hand.
struct Threads {
    work: Mutex<(u64, Option<Work>, usize)>,
    changed: Condvar,
    next: AtomicUsize,
    done: AtomicUsize,
    waiting: AtomicUsize,
    ran_elsewhere: AtomicUsize,
}

impl Threads {
    fn start(count: usize) -> &'static Self {
        let threads = Box::leak(Box::new(Self {
            work: Mutex::new((0, None, 0)),
            changed: Condvar::new(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            ran_elsewhere: AtomicUsize::new(0),
        }));
        for _ in 0..count {
            let threads: &'static Self = threads;
            std::thread::spawn(move || threads.serve());
        }
        // Starting a thread allocates; one that waits has started.
        while threads.waiting.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
        threads
    }

    fn serve(&self) {
        let mut seen = 0;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        loop {
            let mut state = self.work.lock().unwrap();
            while state.0 == seen || state.1.is_none() {
                state = self.changed.wait(state).unwrap();
            }
            seen = state.0;
            state.2 += 1;
            let work = state.1.unwrap();
            drop(state);
            self.ran_elsewhere.fetch_add(self.take(work), Ordering::SeqCst);
            self.work.lock().unwrap().2 -= 1;
            self.changed.notify_all();
        }
    }

    fn take(&self, work: Work) -> usize {
        let mut taken = 0;
        loop {
            let i = self.next.fetch_add(1, Ordering::SeqCst);
            if i >= work.n {
                return taken;
            }
            unsafe { (work.task)(work.arg as *mut c_void, i) };
            self.done.fetch_add(1, Ordering::SeqCst);
            taken += 1;
        }
    }

    fn run(&self, work: Work) {
        let mut state = self.work.lock().unwrap();
        self.next.store(0, Ordering::SeqCst);
        self.done.store(0, Ordering::SeqCst);
        (state.0, state.1) = (state.0 + 1, Some(work));
        drop(state);
        self.changed.notify_all();
        // The others get a head start, so that they do take part.
        std::thread::yield_now();
        self.take(work);
        let mut state = self.work.lock().unwrap();
        while state.2 > 0 || self.done.load(Ordering::SeqCst) < work.n {
            state = self.changed.wait(state).unwrap();
        }
        state.1 = None;
    }
}

unsafe extern "C" fn parallel_for(
    context: *mut c_void,
    n: usize,
    task: unsafe extern "C" fn(*mut c_void, usize),
    arg: *mut c_void,
) {
    unsafe { &*context.cast::<Threads>() }.run(Work { n, task, arg: arg as usize });
}

const T: usize = 70;
const D: usize = 40;
const N: usize = 200;
const WIDTH: usize = 8;

fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / 8388608.0 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Every architecture, with centring, normalisation, decoder norms in both their uses, a second encoder, and weights that must be converted.
fn models() -> Vec<Arc<Sae>> {
    let architectures = [
        Architecture::TopK { k: WIDTH },
        Architecture::AbsTopK { k: WIDTH },
        Architecture::GroupMax { k: WIDTH },
        Architecture::Relu,
        Architecture::JumpRelu,
        Architecture::Gated,
    ];
    let kinds = architectures.into_iter().flat_map(|architecture| [false, true].map(|select| (architecture, select)));
    kinds
        .map(|(architecture, select)| {
            let mut spec = Spec::new(architecture, D, N);
            spec.center = true;
            spec.normalization = Normalization::ConstantNorm;
            (spec.rescale_by_decoder_norm, spec.select_by_decoder_norm) = (!select, select);
            let matrix = |seed| Matrix::from_f32(&numbers(N * D, seed), N, D).unwrap();
            let weights = Weights {
                w_enc: matrix(1).to_dtype(sae::tensor::DType::BF16).unwrap(),
                b_enc: numbers(N, 2),
                w_dec: matrix(3),
                b_dec: numbers(D, 4),
                threshold: (architecture == Architecture::JumpRelu).then(|| vec![0.1; N]),
                gate: (architecture == Architecture::Gated)
                    .then(|| Gate { r_mag: numbers(N, 6), b_gate: numbers(N, 7) }),
                glu: select.then(|| Glu { w: matrix(8), b: numbers(N, 9) }),
                w_skip: None,
            };
            Arc::new(Sae::new(spec, weights).unwrap())
        })
        .collect()
}

fn through_rust(sae: &Arc<Sae>, pool: &Pool) {
    let options =
        SessionOptions { max_tokens: T, max_width: WIDTH, slots: 2, pool: pool.clone(), ..SessionOptions::default() };
    let mut session = Session::new(Arc::clone(sae), options).unwrap();
    let mut x = numbers(T * D, 5);
    x[3 * D] = f32::NAN;
    let half: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
    let (mut out, mut z, mut some) = (vec![0f32; T * D], vec![0f32; T * N], vec![0f32; T * 2]);
    let mut features = Features::new(T, WIDTH, 2);
    let mut merged = Features::new(T, WIDTH, 2);
    let ids = [3, 1000];
    let slots: Vec<i32> = (0..T as i32).map(|t| t % 4 - 1).collect();
    let input =
        || Input { addend: Some(Tensor::new(&half, &[T, D]).unwrap()), ..Tensor::new(&x, &[T, D]).unwrap().into() };
    let edits = [Edit::new(3, EditOp::Set, 1.0), Edit::new(4, EditOp::Add, 1.0)];
    free_of_allocation("encode", || session.encode(Run::default(), input(), features.view_mut()).is_ok());
    free_of_allocation("encode_selected", || {
        let (ids, out) = (Tensor::new(&ids, &[2]).unwrap(), TensorMut::new(&mut some, &[T, 2]).unwrap());
        session.encode_selected(Run::default(), input(), ids, out).is_ok()
    });
    for what in [Wanted::Activations, Wanted::PreActivations] {
        free_of_allocation("encode_dense", || {
            session.encode_dense(Run::default(), input(), what, TensorMut::new(&mut z, &[T, N]).unwrap()).is_ok()
        });
    }
    free_of_allocation("decode", || {
        session.decode(Run::default(), features.view(), None, TensorMut::new(&mut out, &[T, D]).unwrap()).is_ok()
    });
    free_of_allocation("reconstruct", || {
        let out = TensorMut::new(&mut out, &[T, D]).unwrap();
        session.reconstruct(Run::default(), input(), Some(merged.view_mut()), out).is_ok()
    });
    free_of_allocation("set_edits", || {
        session.set_edits(0, &edits).is_ok() && session.set_edits(1, &edits[1..]).is_ok()
    });
    for known in [false, true] {
        free_of_allocation("steer", || {
            let steer = Steer {
                row_slot: Some(Tensor::new(&slots, &[T]).unwrap()),
                known: known.then(|| features.view()),
                y: None,
            };
            session.steer(Run::default(), input(), steer, TensorMut::new(&mut out, &[T, D]).unwrap()).is_ok()
        });
    }
    let spec = sae.spec();
    if spec.select_by_decoder_norm && spec.architecture.shards_compete() {
        return;
    }
    free_of_allocation("merge", || session.merge(Run::default(), &[features.view()], merged.view_mut()).is_ok());
}

/// A tensor of C over a slice.
fn tensor<E>(data: &[E], code: u8, bits: u8, shape: &mut [i64]) -> sae_tensor {
    sae_tensor {
        data: data.as_ptr().cast_mut().cast(),
        device: sae_device { device_type: SAE_DEVICE_CPU, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: sae_dtype { code, bits, lanes: 1 },
        shape: shape.as_mut_ptr(),
        strides: null_mut(),
        byte_offset: 0,
    }
}

fn sized<S>() -> S {
    let mut value = std::mem::MaybeUninit::<S>::zeroed();
    unsafe {
        value.as_mut_ptr().cast::<usize>().write(size_of::<S>());
        value.assume_init()
    }
}

fn through_c(pool: *const sae_pool) {
    let (w, x) = (numbers(N * D, 1), numbers(T * D, 2));
    let (mut w_shape, mut x_shape, mut slots_shape, mut rows_shape) =
        ([N as i64, D as i64], [T as i64, D as i64], [T as i64, WIDTH as i64], [T as i64]);
    let (mut z_shape, mut ids_shape, mut some_shape) = ([T as i64, N as i64], [2i64], [T as i64, 2]);
    let weights = tensor(&w, SAE_DTYPE_FLOAT, 32, &mut w_shape);
    let named = [c"W_enc", c"W_dec"].map(|name| sae_named_tensor { name: name.as_ptr(), tensor: weights });
    let mut desc = sized::<sae_model_desc>();
    (desc.architecture, desc.d_in, desc.n_latents, desc.k) = (SAE_ARCHITECTURE_TOP_K, D as i64, N as i64, WIDTH as i64);
    let (mut model, mut session) = (null_mut(), null_mut());
    let mut options = sized::<sae_session_options>();
    (options.pool, options.slots) = (pool, 2);
    unsafe {
        assert_eq!(sae_model_from_weights(&desc, named.as_ptr(), 2, null(), &mut model, null_mut()), SAE_OK);
        assert_eq!(sae_session_create(model, &options, &mut session, null_mut()), SAE_OK);
    }
    let (values, indices, counts) = (vec![0f32; T * WIDTH], vec![0i32; T * WIDTH], vec![0i32; T]);
    let (merged_values, merged_indices, merged_counts) = (values.clone(), indices.clone(), counts.clone());
    let (out, z, some, ids) = (vec![0f32; T * D], vec![0f32; T * N], vec![0f32; T * 2], [1, 2]);
    let slots: Vec<i32> = (0..T as i32).map(|t| t % 3 - 1).collect();
    let mut features = |values: &[f32], indices: &[i32], counts: &[i32]| {
        let mut features = sized::<sae_features>();
        features.values = tensor(values, SAE_DTYPE_FLOAT, 32, &mut slots_shape);
        features.indices = tensor(indices, SAE_DTYPE_INT, 32, &mut slots_shape);
        features.counts = tensor(counts, SAE_DTYPE_INT, 32, &mut rows_shape);
        features
    };
    let (f, g) = (features(&values, &indices, &counts), features(&merged_values, &merged_indices, &merged_counts));
    let of_x = tensor(&x, SAE_DTYPE_FLOAT, 32, &mut x_shape);
    let of_out = tensor(&out, SAE_DTYPE_FLOAT, 32, &mut x_shape);
    let of_z = tensor(&z, SAE_DTYPE_FLOAT, 32, &mut z_shape);
    let of_ids = tensor(&ids, SAE_DTYPE_INT, 32, &mut ids_shape);
    let of_some = tensor(&some, SAE_DTYPE_FLOAT, 32, &mut some_shape);
    let of_slots = tensor(&slots, SAE_DTYPE_INT, 32, &mut rows_shape);
    let run = sized::<sae_run>();
    let edit = sae_edit { feature: 3, op: SAE_EDIT_SET, strength: 1.0, limit: 0.0, flags: 0, reserved: [0; 3] };
    let mut steering = sized::<sae_steering>();
    (steering.row_slot, steering.out) = (&of_slots, &of_out);
    let knowing = sae_steering { known: &f, ..steering };
    let (s, e) = (session, null_mut());
    unsafe {
        let check = |name: &str, call: &mut dyn FnMut() -> sae_status| free_of_allocation(name, || call() == SAE_OK);
        check("sae_encode", &mut || sae_encode(s, &run, &of_x, null(), &f, e));
        check("sae_encode_selected", &mut || sae_encode_selected(s, &run, &of_x, null(), &of_ids, &of_some, e));
        check("sae_encode_dense", &mut || sae_encode_dense(s, null(), &of_x, SAE_DENSE_ACTIVATIONS, &of_z, e));
        check("sae_decode", &mut || sae_decode(s, &run, &f, null(), &of_out, e));
        check("sae_reconstruct", &mut || sae_reconstruct(s, &run, &of_x, null(), &g, &of_out, e));
        check("sae_set_edits", &mut || sae_set_edits(s, 0, &edit, 1, e));
        check("sae_steer", &mut || sae_steer(s, &run, &of_x, null(), &steering, e));
        check("sae_steer, known", &mut || sae_steer(s, &run, &of_x, null(), &knowing, e));
        check("sae_features_merge", &mut || sae_features_merge(s, &run, &f, 1, &g, e));
        check("sae_session_status", &mut || sae_session_status(s, e));
        check("sae_session_wait", &mut || sae_session_wait(s, e));
        sae_session_free(session);
        sae_model_free(model);
    }
}

// One test, so that nothing else allocates while it counts.
#[test]
fn hot_calls_allocate_nothing() {
    // The counter does count.
    EVENTS.store(0, Ordering::SeqCst);
    WATCHING.store(true, Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8; 100]));
    WATCHING.store(false, Ordering::SeqCst);
    assert_eq!(EVENTS.load(Ordering::SeqCst), 2);

    let threads = Threads::start(2);
    let context = std::ptr::from_ref(threads).cast_mut().cast();
    let host = unsafe { Pool::from_host(3, parallel_for as ParallelFor, context).unwrap() };
    for pool in [Pool::serial(), Pool::new(3).unwrap(), host] {
        models().iter().for_each(|sae| through_rust(sae, &pool));
    }

    unsafe extern "C" fn of_c(context: *mut c_void, n: usize, task: sae_task, arg: *mut c_void) {
        unsafe { parallel_for(context, n, task.unwrap(), arg) };
    }
    let mut pool = null_mut();
    assert_eq!(unsafe { sae_pool_from_host(3, Some(of_c), context, &mut pool, null_mut()) }, SAE_OK);
    through_c(null());
    through_c(pool);
    unsafe { sae_pool_free(pool) };
    assert_eq!(unsafe { sae_pool_create(3, &mut pool, null_mut()) }, SAE_OK);
    through_c(pool);
    unsafe { sae_pool_free(pool) };
    assert!(threads.ran_elsewhere.load(Ordering::SeqCst) > 0, "the host's threads took part");
}
