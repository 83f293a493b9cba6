//! Everything a caller can get wrong with a shuffle buffer: a status, a message that names the thing, and a buffer as it was.

use std::ffi::CString;
use std::ptr::{null, null_mut};

use sae::capi::*;

use crate::host::{Array, BF16, Buffer, F16, F32, I32, init, misaligned, numbers, ok, refused};

const ARGUMENT: sae_status = SAE_ERROR_INVALID_ARGUMENT;
const TENSOR: sae_status = SAE_ERROR_INVALID_TENSOR;

fn options() -> sae_buffer_options {
    let mut options = init::<sae_buffer_options>();
    (options.d, options.memory_bytes) = (8, 20_000);
    options
}

fn buffer(options: &sae_buffer_options) -> Buffer {
    let mut buffer = null_mut();
    ok(|e| unsafe { sae_buffer_create(options, &mut buffer, e) });
    Buffer(buffer)
}

fn state(buffer: &Buffer) -> sae_buffer_state {
    let mut state = init();
    ok(|e| unsafe { sae_buffer_stats(buffer.0, &mut state, e) });
    state
}

#[test]
fn options_are_named() {
    type Spoil = fn(&mut sae_buffer_options);
    let table: &[(sae_status, &str, Spoil)] = &[
        (ARGUMENT, "options.struct_size", |o| o.struct_size = 16),
        (ARGUMENT, "d 0", |o| o.d = 0),
        (ARGUMENT, "options.d: -1", |o| o.d = -1),
        (ARGUMENT, "d 9223372036854775807", |o| o.d = i64::MAX),
        (ARGUMENT, "options.layers: -1", |o| o.layers = -1),
        (ARGUMENT, "layers of d 8", |o| o.layers = i64::MAX),
        (ARGUMENT, "memory_bytes: 1 are too few", |o| o.memory_bytes = 1),
        (ARGUMENT, "spill_folder: say where", |o| o.spill_bytes = 1 << 20),
        (ARGUMENT, "spill_bytes: is 0", |o| o.spill_folder = c"anywhere".as_ptr()),
        (ARGUMENT, "options.spill_folder", |o| (o.spill_bytes, o.spill_folder) = (1 << 9, c"/\xff".as_ptr())),
        (ARGUMENT, "memory_bytes: 20000 are too few", |o| {
            (o.spill_bytes, o.spill_folder) = (u64::MAX, c"anywhere".as_ptr());
        }),
        (ARGUMENT, "min_documents is 2, but documents are not kept", |o| o.min_documents = 2),
        (ARGUMENT, "sink_multiple", |o| o.sink_multiple = f32::NAN),
        (ARGUMENT, "sink_multiple must be above 1", |o| o.sink_multiple = 1.0),
        (ARGUMENT, "max_norm", |o| o.max_norm = f32::INFINITY),
        (ARGUMENT, "options.dtype: expected f32, f16 or bf16, found i32", |o| o.dtype = I32),
        (ARGUMENT, "options.dtype", |o| o.dtype.lanes = 2),
        (ARGUMENT, "options.flags: bits 0x4", |o| o.flags = 4),
    ];
    let mut made = misaligned();
    let mut size = init::<sae_buffer_size>();
    for (status, named, spoil) in table {
        let mut options = options();
        spoil(&mut options);
        refused(*status, named, |e| unsafe { sae_buffer_create(&options, &mut made, e) });
        refused(*status, named, |e| unsafe { sae_buffer_memory(&options, &mut size, e) });
    }
    let mut nowhere = options();
    (nowhere.spill_bytes, nowhere.spill_folder) = (1 << 9, c"/no such folder".as_ptr());
    refused(SAE_ERROR_IO, "spill_folder /no such folder", |e| unsafe { sae_buffer_create(&nowhere, &mut made, e) });
    refused(ARGUMENT, "options: is NULL", |e| unsafe { sae_buffer_create(null(), &mut made, e) });
    refused(ARGUMENT, "options: 0x", |e| unsafe { sae_buffer_memory(misaligned(), &mut size, e) });
    assert_eq!((made, size.capacity), (misaligned(), 0));
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_buffer_create(&options(), null_mut(), e) });
    refused(ARGUMENT, "out: is NULL", |e| unsafe { sae_buffer_memory(&options(), null_mut(), e) });
    ok(|e| unsafe { sae_buffer_memory(&options(), &mut size, e) });
    assert!(size.memory_bytes <= 20_000 && size.capacity == state(&buffer(&options())).capacity);
}

struct Pushed {
    x: Box<Array>,
    mask: Box<Array>,
    documents: [i64; 4],
    rows: Box<sae_buffer_rows>,
    rows_at: *const sae_buffer_rows,
    wait: i64,
}

#[test]
fn pushes() {
    type Spoil = fn(&mut Pushed);
    let table: &[(sae_status, &str, Spoil)] = &[
        (ARGUMENT, "rows: is NULL", |p| p.rows_at = null()),
        (ARGUMENT, "rows.struct_size: 8", |p| p.rows.struct_size = 8),
        (ARGUMENT, "x: is NULL", |p| p.rows.x = null()),
        (TENSOR, "x: ", |p| p.x.tensor.byte_offset = 2),
        (TENSOR, "x: expected shape [4, 8], found [4, 7]", |p| p.x.shape[1] = 7),
        (TENSOR, "x: expected shape [4, 8], found [4]", |p| (p.x.tensor.ndim, p.x.tensor.strides) = (1, null_mut())),
        (TENSOR, "x: expected f32", |p| p.x.tensor.dtype = I32),
        (SAE_ERROR_UNSUPPORTED, "x: the buffer reads host memory", |p| {
            p.x.tensor.device.device_type = SAE_DEVICE_CUDA;
        }),
        (TENSOR, "addend: expected shape [4, 8], found [4]", |p| p.rows.addend = &p.mask.tensor),
        (TENSOR, "row_mask: expected i32, found f32", |p| p.mask.tensor.dtype = F32),
        (TENSOR, "row_mask: expected shape [4], found [3]", |p| p.mask.shape[0] = 3),
        (ARGUMENT, "documents: are kept", |p| p.rows.documents = null()),
        (ARGUMENT, "documents: 0x", |p| p.rows.documents = misaligned()),
        (ARGUMENT, "first: -1", |p| p.rows.first = -1),
        (ARGUMENT, "first: 5 is beyond the 4 rows", |p| p.rows.first = 5),
        (ARGUMENT, "wait_ms: -2", |p| p.wait = -2),
        (ARGUMENT, "rows.flags: bits 0x1", |p| p.rows.flags = SAE_RUN_FAST | SAE_RUN_ROUND_SUM),
        (ARGUMENT, "rows.reserved: 3", |p| p.rows.reserved = 3),
    ];
    let buffer = buffer(&sae_buffer_options { flags: SAE_BUFFER_DOCUMENTS, ..options() });
    let pushed = || {
        let mut pushed = Box::new(Pushed {
            x: Array::f32(&numbers(32, 1), &[4, 8]),
            mask: Array::i32(&[1, 0, 1, 1], &[4]),
            documents: [1, 2, 3, 4],
            rows: Box::new(init()),
            rows_at: null(),
            wait: 0,
        });
        (pushed.rows.x, pushed.rows.row_mask) = (&pushed.x.tensor, &pushed.mask.tensor);
        pushed.rows.documents = pushed.documents.as_ptr();
        pushed.rows_at = &*pushed.rows;
        pushed
    };
    let mut taken = 77;
    for (status, named, spoil) in table {
        let mut pushed = pushed();
        spoil(&mut pushed);
        refused(*status, named, |e| unsafe { sae_buffer_push(buffer.0, pushed.rows_at, pushed.wait, &mut taken, e) });
    }
    let good = pushed();
    unsafe {
        refused(ARGUMENT, "buffer: is NULL", |e| sae_buffer_push(null(), good.rows_at, 0, &mut taken, e));
        refused(ARGUMENT, "taken: is NULL", |e| sae_buffer_push(buffer.0, good.rows_at, 0, null_mut(), e));
    }
    assert_eq!((taken, state(&buffer).pushed), (77, 0), "a refused call changes nothing");
    ok(|e| unsafe { sae_buffer_push(buffer.0, good.rows_at, SAE_WAIT_FOREVER, &mut taken, e) });
    let state = state(&buffer);
    assert_eq!((taken, state.pushed, state.masked, state.held), (4, 4, 1, 3));
    ok(|e| unsafe { sae_buffer_close(buffer.0, e) });
    refused(SAE_ERROR_BAD_STATE, "closed", |e| unsafe { sae_buffer_push(buffer.0, good.rows_at, -1, &mut taken, e) });
    assert_eq!(taken, 4);
}

struct Taken {
    out: Box<Array>,
    documents: *mut i64,
    wait: i64,
}

#[test]
fn takes() {
    type Spoil = fn(&mut Taken);
    let table: &[(sae_status, &str, Spoil)] = &[
        (TENSOR, "out: ", |t| t.out.tensor.data = null_mut()),
        (TENSOR, "out: is absent", |t| t.out.tensor = init_tensor()),
        (TENSOR, "out: expected shape [2, 8], found [2, 7]", |t| t.out.shape[1] = 7),
        (TENSOR, "out: expected f16 or f32, found bf16", |t| t.out.tensor.dtype = BF16),
        (TENSOR, "out: stride 4", |t| t.out.strides[0] = 4),
        (SAE_ERROR_UNSUPPORTED, "out: the buffer writes host memory", |t| {
            t.out.tensor.device.device_type = SAE_DEVICE_CUDA;
        }),
        (ARGUMENT, "documents: are not kept", |t| t.documents = Box::leak(Box::new([0; 2])).as_mut_ptr()),
        (ARGUMENT, "documents: 0x", |t| t.documents = misaligned()),
        (ARGUMENT, "wait_ms: -3", |t| t.wait = -3),
        (ARGUMENT, "rows at once are more than half", |t| {
            t.out.shape[0] = 1 << 20;
            t.out.memory.resize(8 << 20, 0);
            t.out.tensor.data = t.out.memory.as_mut_ptr().cast();
        }),
    ];
    let buffer = buffer(&sae_buffer_options { dtype: F16, ..options() });
    let x = Array::f32(&numbers(16, 1), &[2, 8]);
    let mut rows = init::<sae_buffer_rows>();
    rows.x = &x.tensor;
    let mut taken = 0;
    ok(|e| unsafe { sae_buffer_push(buffer.0, &rows, 0, &mut taken, e) });
    let take = || Taken { out: Array::f32(&[7.0; 16], &[2, 8]), documents: null_mut(), wait: 0 };
    let mut taken = 77;
    for (status, named, spoil) in table {
        let mut take = take();
        spoil(&mut take);
        refused(*status, named, |e| unsafe {
            sae_buffer_take(buffer.0, &take.out.tensor, take.documents, take.wait, &mut taken, e)
        });
        assert!(take.out.memory.iter().all(|&bits| bits == 7.0f32.to_bits() || bits == 0), "{named}");
    }
    let good = take();
    let out = &raw const good.out.tensor;
    unsafe {
        refused(ARGUMENT, "out: is NULL", |e| sae_buffer_take(buffer.0, null(), null_mut(), 0, &mut taken, e));
        refused(ARGUMENT, "taken: is NULL", |e| sae_buffer_take(buffer.0, out, null_mut(), 0, null_mut(), e));
        refused(ARGUMENT, "buffer: is NULL", |e| sae_buffer_take(null(), out, null_mut(), 0, &mut taken, e));
        assert_eq!(taken, 77);
        ok(|e| sae_buffer_take(buffer.0, out, null_mut(), 1, &mut taken, e));
        assert_eq!(taken, 0, "too few are held");
        ok(|e| sae_buffer_close(buffer.0, e));
        ok(|e| sae_buffer_take(buffer.0, out, null_mut(), -1, &mut taken, e));
        assert_eq!((taken, state(&buffer).taken), (2, 2));
        ok(|e| sae_buffer_take(buffer.0, out, null_mut(), -1, &mut taken, e));
        assert_eq!(taken, SAE_BUFFER_END);
    }
    // The rows, as they were rounded to f16.
    let rounded = |values: &[f32]| values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect::<Vec<_>>();
    let (found, given) = (good.out.floats(), rounded(&x.floats()));
    assert!(found == given || found == [&given[8..], &given[..8]].concat());
}

fn init_tensor() -> sae_tensor {
    unsafe { std::mem::zeroed() }
}

#[test]
fn saving_and_restoring() {
    let dir = tempfile::tempdir().unwrap();
    let path = CString::new(dir.path().join("buffer").to_str().unwrap()).unwrap();
    let made = sae_buffer_options { flags: SAE_BUFFER_DOCUMENTS, sink_multiple: 9.0, seed: 5, ..options() };
    let first = buffer(&made);
    let mut again = null_mut();
    unsafe {
        refused(SAE_ERROR_IO, "No such file", |e| sae_buffer_restore(path.as_ptr(), null(), &mut again, e));
        refused(ARGUMENT, "path: is NULL", |e| sae_buffer_save(first.0, null(), e));
        refused(SAE_ERROR_IO, "/proc/nowhere", |e| sae_buffer_save(first.0, c"/proc/nowhere".as_ptr(), e));
        refused(ARGUMENT, "buffer: is NULL", |e| sae_buffer_save(null(), path.as_ptr(), e));
        ok(|e| sae_buffer_save(first.0, path.as_ptr(), e));
        refused(ARGUMENT, "path: is NULL", |e| sae_buffer_restore(null(), null(), &mut again, e));
        refused(ARGUMENT, "out: is NULL", |e| sae_buffer_restore(path.as_ptr(), null(), null_mut(), e));
    }
    type Spoil = fn(&mut sae_buffer_options);
    let table: &[(&str, Spoil)] = &[
        ("rows are [9] f32, but the buffer was saved with [8] f32", |o| o.d = 9),
        ("rows are [2, 8] f32", |o| o.layers = 2),
        ("rows are [8] bf16", |o| o.dtype = BF16),
        ("seed is 6, but the buffer was saved with 5", |o| o.seed = 6),
        ("max_norm is 3.0", |o| o.max_norm = 3.0),
        ("options.flags", |o| o.flags = 8),
        ("keep_not_finite is true", |o| o.flags |= SAE_BUFFER_KEEP_NOT_FINITE),
        ("have room for", |o| o.memory_bytes = 16_000),
    ];
    for (named, spoil) in table {
        let mut options = made;
        spoil(&mut options);
        refused(ARGUMENT, named, |e| unsafe { sae_buffer_restore(path.as_ptr(), &options, &mut again, e) });
    }
    assert!(again.is_null());
    let mut unsaid = init::<sae_buffer_options>();
    for options in [null(), &made, &unsaid] {
        ok(|e| unsafe { sae_buffer_restore(path.as_ptr(), options, &mut again, e) });
        assert_eq!(state(&Buffer(again)).capacity, state(&first).capacity);
    }
    unsaid.memory_bytes = 1 << 20;
    ok(|e| unsafe { sae_buffer_restore(path.as_ptr(), &unsaid, &mut again, e) });
    assert_eq!(state(&Buffer(again)).capacity, state(&first).capacity, "more memory holds no more rows");
    unsafe {
        refused(ARGUMENT, "buffer: is NULL", |e| sae_buffer_close(null(), e));
        refused(ARGUMENT, "out: is NULL", |e| sae_buffer_stats(first.0, null_mut(), e));
        sae_buffer_free(null_mut());
    }
}
