//! Everything a caller can get wrong in the hot calls: each gets its status and a message that names the thing, and the
//! outputs keep every byte.

use std::ptr::{from_mut, null, null_mut};

use sae::capi::*;

use crate::host::{
    Array, BF16, F32, I32, Model, Plan, Session, init, misaligned, numbers, ok, plan, refused, transcoder_plan,
};

const ROWS: i64 = 3;
const WIDTH: i64 = 4;

/// All that a program has ready to call with, for a test to spoil.
struct Scene {
    x: Box<Array>,
    addend: Box<Array>,
    values: Box<Array>,
    indices: Box<Array>,
    counts: Box<Array>,
    row_state: Box<Array>,
    x_hat: Box<Array>,
    ids: Box<Array>,
    selected: Box<Array>,
    z: Box<Array>,
    row_slot: Box<Array>,
    known: Box<sae_features>,
    /// Array of two and nothing, of which calls that take one take the first.
    features: Box<[sae_features; 3]>,
    steering: Box<sae_steering>,
    run: Box<sae_run>,
    workspace: Vec<u64>,
    edits: Vec<sae_edit>,
    slot: i32,
    n_edits: usize,
    n_parts: usize,
    what: i32,
    session_at: *mut sae_session,
    run_at: *const sae_run,
    x_at: *const sae_tensor,
    addend_at: *const sae_tensor,
    out_at: *const sae_features,
    parts_at: *const sae_features,
    x_hat_at: *const sae_tensor,
    ids_at: *const sae_tensor,
    selected_at: *const sae_tensor,
    z_at: *const sae_tensor,
    edits_at: *const sae_edit,
    steering_at: *const sae_steering,
    session: Session,
    _model: Model,
}

impl Scene {
    fn new(plan: &Plan) -> Self {
        let model = plan.model();
        let info = model.info();
        let mut options = init::<sae_session_options>();
        (options.max_tokens, options.slots, options.edits_per_slot) = (4, 2, 2);
        let session = model.session(&options);
        let (d, d_out, state) = (info.d_in, info.d_out, info.row_state_width);
        let size = |n: i64| (ROWS * n) as usize;
        let x = Array::f32(&numbers(size(d), 9), &[ROWS, d]);
        let addend = Array::f32(&numbers(size(d), 10), &[ROWS, d]);
        let values = Array::f32(&numbers(size(WIDTH), 11), &[ROWS, WIDTH]);
        let indices = Array::i32(&[1, 2, 3, -1, 0, 5, -1, -1, 7, 6, 5, 4], &[ROWS, WIDTH]);
        let counts = Array::i32(&[3, 2, 4], &[ROWS]);
        let row_state = Array::f32(&vec![1.0; size(state)], &[ROWS, state]);
        let x_hat = Array::f32(&numbers(size(d_out), 12), &[ROWS, d_out]);
        let ids = Array::i32(&[3, 1], &[2]);
        let selected = Array::f32(&numbers(size(2), 13), &[ROWS, 2]);
        let z = Array::f32(&numbers(size(info.n_latents), 14), &[ROWS, info.n_latents]);
        let row_slot = Array::i32(&[0, -1, 1], &[ROWS]);
        let mut one = init::<sae_features>();
        (one.values, one.indices, one.counts) = (values.tensor, indices.tensor, counts.tensor);
        if state > 0 {
            one.row_state = row_state.tensor;
        }
        let edits = vec![edit(3, SAE_EDIT_ADD), edit(2, SAE_EDIT_SET)];
        let mut scene = Self {
            x,
            addend,
            values,
            indices,
            counts,
            row_state,
            x_hat,
            ids,
            selected,
            z,
            row_slot,
            known: Box::new(one),
            features: Box::new([one, one, nothing()]),
            steering: Box::new(init()),
            run: Box::new(init()),
            workspace: vec![0; 1 << 18],
            edits,
            slot: 0,
            n_edits: 2,
            n_parts: 2,
            what: 0,
            session_at: session.0,
            run_at: null(),
            x_at: null(),
            addend_at: null(),
            out_at: null(),
            parts_at: null(),
            x_hat_at: null(),
            ids_at: null(),
            selected_at: null(),
            z_at: null(),
            edits_at: null(),
            steering_at: null(),
            session,
            _model: model,
        };
        scene.run_at = &*scene.run;
        scene.x_at = &scene.x.tensor;
        scene.addend_at = &scene.addend.tensor;
        scene.out_at = &scene.features[0];
        scene.parts_at = &scene.features[0];
        scene.x_hat_at = &scene.x_hat.tensor;
        scene.ids_at = &scene.ids.tensor;
        scene.selected_at = &scene.selected.tensor;
        scene.z_at = &scene.z.tensor;
        scene.edits_at = scene.edits.as_ptr();
        scene.steering_at = &*scene.steering;
        scene.steering.row_slot = &scene.row_slot.tensor;
        ok(|e| unsafe { sae_set_edits(scene.session.0, 0, scene.edits.as_ptr(), 2, e) });
        scene
    }

    /// Every byte that a call could write.
    fn memory(&self) -> Vec<Vec<u32>> {
        [&self.x, &self.addend, &self.values, &self.indices, &self.counts, &self.row_state, &self.x_hat, &self.ids]
            .into_iter()
            .chain([&self.selected, &self.z, &self.row_slot])
            .map(|array| array.memory.clone())
            .collect()
    }
}

fn nothing() -> sae_features {
    unsafe { std::mem::zeroed() }
}

fn edit(feature: i32, op: i32) -> sae_edit {
    sae_edit { feature, op, strength: 1.0, limit: 0.0, flags: 0, reserved: [0; 3] }
}

type Call = fn(&Scene, *mut *mut sae_error) -> sae_status;
type Spoil = fn(&mut Scene);

fn encode(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_encode(s.session_at, s.run_at, s.x_at, s.addend_at, s.out_at, e) }
}

fn encode_selected(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_encode_selected(s.session_at, s.run_at, s.x_at, s.addend_at, s.ids_at, s.selected_at, e) }
}

fn encode_dense(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_encode_dense(s.session_at, s.run_at, s.x_at, s.what, s.z_at, e) }
}

fn decode(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_decode(s.session_at, s.run_at, s.out_at, s.x_at, s.x_hat_at, e) }
}

fn reconstruct(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_reconstruct(s.session_at, s.run_at, s.x_at, s.addend_at, s.out_at, s.x_hat_at, e) }
}

fn set_edits(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_set_edits(s.session_at, s.slot, s.edits_at, s.n_edits, e) }
}

fn steer(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    unsafe { sae_steer(s.session_at, s.run_at, s.x_at, s.addend_at, s.steering_at, e) }
}

fn merge(s: &Scene, e: *mut *mut sae_error) -> sae_status {
    // The parts' memory must not be the result's.
    let values = Array::f32(&[0.0; 12], &[ROWS, WIDTH]);
    let indices = Array::i32(&[0; 12], &[ROWS, WIDTH]);
    let counts = Array::i32(&[0; 3], &[ROWS]);
    let mut out = *s.known;
    if std::ptr::eq(s.parts_at, &s.features[0]) {
        (out.values, out.indices, out.counts) = (values.tensor, indices.tensor, counts.tensor);
    }
    unsafe { sae_features_merge(s.session_at, s.run_at, s.parts_at, s.n_parts, &out, e) }
}

fn check(calls: &[(&str, Call)], plan: &Plan, table: &[(sae_status, &str, Spoil)]) {
    for (name, call) in calls {
        let scene = Scene::new(plan);
        ok(|e| call(&scene, e));
        for (status, named, spoil) in table {
            let mut scene = Scene::new(plan);
            spoil(&mut scene);
            let before = scene.memory();
            let message = refused(*status, named, |e| call(&scene, e));
            assert!(scene.memory() == before, "{name} wrote before it refused: {message}");
        }
    }
}

const INPUT: [(&str, Call); 4] =
    [("encode", encode), ("encode_selected", encode_selected), ("reconstruct", reconstruct), ("steer", steer)];
const ARGUMENT: sae_status = SAE_ERROR_INVALID_ARGUMENT;
const TENSOR: sae_status = SAE_ERROR_INVALID_TENSOR;

#[test]
fn sessions_and_runs() {
    let all = [&INPUT[..], &[("encode_dense", encode_dense), ("decode", decode), ("merge", merge)]].concat();
    check(
        &all,
        &plan(),
        &[
            (ARGUMENT, "session: is NULL", |s| s.session_at = null_mut()),
            (ARGUMENT, "session: 0x", |s| s.session_at = misaligned()),
            (ARGUMENT, "run: 0x", |s| s.run_at = misaligned()),
            (ARGUMENT, "run.struct_size: 0", |s| s.run.struct_size = 0),
            (ARGUMENT, "run.struct_size: 39", |s| s.run.struct_size = 39),
            (ARGUMENT, "run.struct_size: 9223372036854775808", |s| s.run.struct_size = 1 << 63),
            (ARGUMENT, "run.flags: bits 0x40", |s| s.run.flags = 0x41),
            (SAE_ERROR_UNSUPPORTED, "run.stream_kind", |s| s.run.stream_kind = SAE_STREAM_HOST),
            (ARGUMENT, "run.stream_kind: 3", |s| s.run.stream_kind = 3),
            (ARGUMENT, "run.stream_kind: -1", |s| s.run.stream_kind = -1),
            (ARGUMENT, "run.stream: is set", |s| s.run.stream = misaligned()),
            (ARGUMENT, "run.workspace: is NULL", |s| s.run.workspace_size = 64),
            (ARGUMENT, "run.workspace_size", |s| {
                (s.run.workspace, s.run.workspace_size) = (s.workspace.as_mut_ptr().cast(), usize::MAX);
            }),
            (ARGUMENT, "workspace must hold", |s| {
                let at = s.workspace.as_mut_ptr().cast::<u8>();
                (s.run.workspace, s.run.workspace_size) = (at.wrapping_add(at.align_offset(64)).cast(), 64);
            }),
            (ARGUMENT, "workspace must be aligned", |s| {
                let at = s.workspace.as_mut_ptr().cast::<u8>();
                let at = at.wrapping_add(at.align_offset(64) + 8);
                (s.run.workspace, s.run.workspace_size) = (at.cast(), 8 * s.workspace.len() - 72);
            }),
        ],
    );
}

#[test]
fn a_tail_that_is_not_zero_is_refused() {
    // A run of a version to come: longer, with something set that this library cannot know.
    #[repr(C)]
    struct Longer {
        run: sae_run,
        tail: [u64; 2],
    }
    let mut longer = Longer { run: init(), tail: [0, 0] };
    longer.run.struct_size = size_of::<Longer>();
    let mut scene = Scene::new(&plan());
    scene.run_at = from_mut(&mut longer).cast();
    ok(|e| encode(&scene, e));
    longer.tail[1] = 1 << 8;
    scene.run_at = from_mut(&mut longer).cast();
    let before = scene.memory();
    refused(ARGUMENT, "run: byte 49 of 56", |e| encode(&scene, e));
    assert!(scene.memory() == before);
}

#[test]
fn inputs() {
    check(
        &INPUT,
        &plan(),
        &[
            (ARGUMENT, "x: is NULL", |s| s.x_at = null()),
            (ARGUMENT, "x: 0x", |s| s.x_at = misaligned()),
            (TENSOR, "x: is absent", |s| (s.x.tensor.data, s.x.tensor.ndim) = (null_mut(), 0)),
            (TENSOR, "x: ndim", |s| s.x.tensor.ndim = 0),
            (TENSOR, "x: ndim: expected 1 to 3, found 4", |s| s.x.tensor.ndim = 4),
            (TENSOR, "x: ndim", |s| s.x.tensor.ndim = -1),
            (TENSOR, "x: ndim", |s| s.x.tensor.ndim = i32::MAX),
            (TENSOR, "x: expected shape [3, 8], found [3]", |s| (s.x.tensor.ndim, s.x.strides[0]) = (1, 1)),
            (TENSOR, "x: the data pointer is null", |s| s.x.tensor.data = null_mut()),
            (TENSOR, "x: the data pointer is null", |s| (s.x.tensor.data, s.x.tensor.byte_offset) = (null_mut(), 64)),
            (TENSOR, "x: data pointer", |s| s.x.tensor.data = s.x.tensor.data.wrapping_byte_add(2)),
            (TENSOR, "x: data pointer", |s| s.x.tensor.byte_offset = 1),
            (TENSOR, "x: byte_offset", |s| s.x.tensor.byte_offset = u64::MAX),
            (TENSOR, "x: dtype: code 2 of 64 bits", |s| s.x.tensor.dtype.bits = 64),
            (TENSOR, "x: dtype: code 99", |s| s.x.tensor.dtype.code = 99),
            (TENSOR, "in 0 lanes", |s| s.x.tensor.dtype.lanes = 0),
            (TENSOR, "in 4 lanes", |s| s.x.tensor.dtype.lanes = 4),
            (TENSOR, "x: expected f32, f16 or bf16, found i32", |s| s.x.tensor.dtype = I32),
            (TENSOR, "x: device.device_type: 4", |s| s.x.tensor.device.device_type = 4),
            (TENSOR, "x: device.device_id: there is no device 1", |s| s.x.tensor.device.device_id = 1),
            (TENSOR, "x: is on cuda:1", |s| s.x.tensor.device = sae_device { device_type: 2, device_id: 1 }),
            (TENSOR, "x: shape: 2 numbers", |s| s.x.tensor.shape = null_mut()),
            (TENSOR, "x: shape: 2 numbers", |s| s.x.tensor.shape = misaligned()),
            (TENSOR, "x: strides: 2 numbers", |s| s.x.tensor.strides = misaligned()),
            (TENSOR, "x: shape[0]: -1", |s| s.x.shape[0] = -1),
            (TENSOR, "x: expected shape [3, 8], found [3, 7]", |s| (s.x.shape[1], s.x.strides[0]) = (7, 7)),
            (TENSOR, "larger than the address space", |s| s.x.shape = [i64::MAX, i64::MAX, 1]),
            (TENSOR, "larger than the address space", |s| s.x.shape = [1 << 62, 8, 1]),
            (TENSOR, "stride -8 of dimension 0 is negative", |s| s.x.strides[0] = -8),
            (TENSOR, "x: ", |s| s.x.strides[0] = i64::MAX),
            (TENSOR, "x: ", |s| s.x.strides[0] = 1 << 61),
            (TENSOR, "innermost stride must be 1, not 2", |s| s.x.strides[1] = 2),
            (TENSOR, "addend: expected shape [3, 8], found [2, 8]", |s| s.addend.shape[0] = 2),
            (TENSOR, "addend: expected f32, f16 or bf16", |s| s.addend.tensor.dtype = I32),
            (TENSOR, "addend: the data pointer is null", |s| s.addend.tensor.data = null_mut()),
            (TENSOR, "addend: ", |s| s.addend.tensor.byte_offset = 2),
        ],
    );
    // A pointer so high that the tensor would end beyond the address space.
    check(
        &[("encode", encode)],
        &plan(),
        &[
            (TENSOR, "x: ", |s| s.x.tensor.data = std::ptr::without_provenance_mut(usize::MAX - 63)),
            (ARGUMENT, "5 tokens, but the session was made for at most 4", |s| {
                s.x.memory.resize(40, 0);
                (s.x.tensor.data, s.x.shape[0], s.addend_at) = (s.x.memory.as_mut_ptr().cast(), 5, null());
            }),
            (TENSOR, "x: overlaps run.workspace", |s| {
                let (data, bytes) = (s.x.memory.as_mut_ptr(), 4 * s.x.memory.len());
                (s.run.workspace, s.run.workspace_size) = (data.cast(), bytes);
            }),
            (TENSOR, "out.values: overlaps run.workspace", |s| {
                let (data, bytes) = (s.values.memory.as_mut_ptr(), 4 * s.values.memory.len());
                (s.run.workspace, s.run.workspace_size) = (data.cast(), bytes);
            }),
        ],
    );
}

#[test]
fn features() {
    check(
        &[("encode", encode), ("reconstruct", reconstruct), ("decode", decode)],
        &plan(),
        &[
            (ARGUMENT, "struct_size: 199", |s| s.features[0].struct_size = 199),
            (ARGUMENT, "struct_size: 0", |s| s.features[0].struct_size = 0),
            (TENSOR, "values: ", |s| s.features[0].values.data = null_mut()),
            (TENSOR, "values: dtype", |s| s.features[0].values.dtype.bits = 8),
            (TENSOR, "values: expected f32, f16 or bf16, found i32", |s| s.features[0].values.dtype = I32),
            (TENSOR, "indices: expected i32, found f32", |s| s.features[0].indices.dtype = F32),
            (TENSOR, "indices: expected shape [3, 4], found [3, 3]", |s| s.indices.shape[1] = 3),
            (TENSOR, "counts: expected i32, found f32", |s| s.features[0].counts.dtype = F32),
            (TENSOR, "expected shape", |s| s.counts.shape[0] = 2),
            (TENSOR, "counts: is absent", |s| s.features[0].counts = init::<sae_features>().values),
            (TENSOR, "row_state: this model keeps no row state", |s| s.features[0].row_state = s.x.tensor),
            (TENSOR, "is on cuda:0", |s| s.features[0].indices.device.device_type = SAE_DEVICE_CUDA),
            (ARGUMENT, "width 5, but the session was made for at most 4", |s| {
                s.values.memory.resize(15, 0);
                s.indices.memory.resize(15, 0);
                s.features[0].values.data = s.values.memory.as_mut_ptr().cast();
                s.features[0].indices.data = s.indices.memory.as_mut_ptr().cast();
                for array in [&mut s.values, &mut s.indices] {
                    (array.shape[1], array.strides[0]) = (5, 5);
                }
            }),
        ],
    );
    check(
        &[("encode", encode), ("reconstruct", reconstruct)],
        &plan(),
        &[
            (TENSOR, "both are written", |s| s.features[0].indices.data = s.features[0].values.data),
            (TENSOR, "overlaps x", |s| s.features[0].values.data = s.x.tensor.data),
            (TENSOR, "overlaps addend", |s| s.features[0].counts.data = s.addend.tensor.data),
            (TENSOR, "written rows overlap", |s| s.values.strides[0] = 3),
            (TENSOR, "written rows overlap", |s| s.indices.strides[0] = 0),
        ],
    );
    check(
        &[("encode", encode), ("decode", decode)],
        &plan(),
        &[(ARGUMENT, "is NULL", |s| s.out_at = null()), (ARGUMENT, "0x", |s| s.out_at = misaligned())],
    );
    let mut normalized = plan();
    normalized.desc.normalization = SAE_NORMALIZATION_LAYER_NORM;
    check(
        &[("encode", encode), ("reconstruct", reconstruct), ("decode", decode)],
        &normalized,
        &[
            (TENSOR, "row_state: [3, 2] of f32 is needed", |s| s.features[0].row_state = init::<sae_features>().values),
            (TENSOR, "row_state: expected f32, found bf16", |s| s.features[0].row_state.dtype = BF16),
            (TENSOR, "row_state: expected shape [3, 2], found [3, 1]", |s| s.row_state.shape[1] = 1),
        ],
    );
}

#[test]
fn outputs_of_one_tensor() {
    check(
        &[("decode", decode), ("reconstruct", reconstruct)],
        &plan(),
        &[
            (ARGUMENT, "x_hat: is NULL", |s| s.x_hat_at = null()),
            (TENSOR, "x_hat: expected shape [3, 8], found [2, 8]", |s| s.x_hat.shape[0] = 2),
            (TENSOR, "x_hat: expected f32, f16 or bf16, found i32", |s| s.x_hat.tensor.dtype = I32),
            (TENSOR, "x_hat: is on cuda:0", |s| s.x_hat.tensor.device.device_type = SAE_DEVICE_CUDA),
            (TENSOR, "written rows overlap", |s| s.x_hat.strides[0] = 7),
            (TENSOR, "overlap", |s| s.x_hat.tensor.data = s.values.tensor.data.wrapping_byte_sub(32)),
        ],
    );
    check(
        &[("reconstruct", reconstruct)],
        &plan(),
        &[
            (TENSOR, "x_hat overlaps x", |s| (s.x_hat.tensor.data, s.x_hat.strides[0]) = (s.x.tensor.data, 9)),
            (TENSOR, "x_hat overlaps addend", |s| s.x_hat.tensor.data = s.addend.tensor.data),
        ],
    );
    check(
        &[("encode_selected", encode_selected)],
        &plan(),
        &[
            (ARGUMENT, "ids: is NULL", |s| s.ids_at = null()),
            (ARGUMENT, "out: is NULL", |s| s.selected_at = null()),
            (TENSOR, "ids: expected i32, found f32", |s| s.ids.tensor.dtype = F32),
            (TENSOR, "out: expected shape [3, 2], found [3, 1]", |s| s.selected.shape[1] = 1),
            (TENSOR, "out overlaps ids", |s| s.selected.tensor.data = s.ids.tensor.data.wrapping_byte_sub(4)),
        ],
    );
    check(
        &[("encode_dense", encode_dense)],
        &plan(),
        &[
            (ARGUMENT, "z: is NULL", |s| s.z_at = null()),
            (ARGUMENT, "what: 2", |s| s.what = 2),
            (TENSOR, "z: expected shape [3, 16], found [3, 15]", |s| s.z.shape[1] = 15),
            (TENSOR, "z overlaps x", |s| s.z.tensor.data = s.x.tensor.data),
        ],
    );
    check(
        &[("decode", decode)],
        &transcoder_plan(),
        &[
            (ARGUMENT, "x: this model has a skip path", |s| s.x_at = null()),
            (TENSOR, "x: expected shape [3, 8]", |s| (s.x.shape[1], s.x.strides[0]) = (6, 6)),
        ],
    );
}

#[test]
fn edits() {
    check(
        &[("set_edits", set_edits)],
        &plan(),
        &[
            (ARGUMENT, "session: is NULL", |s| s.session_at = null_mut()),
            (ARGUMENT, "slot: -1", |s| s.slot = -1),
            (ARGUMENT, "slot: 2 is not one of the session's 2", |s| s.slot = 2),
            (ARGUMENT, "edits: is NULL", |s| s.edits_at = null()),
            (ARGUMENT, "edits: 0x", |s| s.edits_at = misaligned()),
            (ARGUMENT, "edits: 9223372036854775808 elements", |s| s.n_edits = 1 << 63),
            (ARGUMENT, "n_edits: 3, but the session was made for 2", |s| {
                s.edits.push(edit(1, SAE_EDIT_ADD));
                (s.edits_at, s.n_edits) = (s.edits.as_ptr(), 3);
            }),
            (ARGUMENT, "edits[1]: op: 4", |s| s.edits[1].op = 4),
            (ARGUMENT, "edits[0]: op: -1", |s| s.edits[0].op = -1),
            (ARGUMENT, "edits[1]: flags: bits 0x2", |s| s.edits[1].flags = 3),
            (ARGUMENT, "edits[0]: reserved", |s| s.edits[0].reserved[2] = 1),
            (ARGUMENT, "edits[0].feature: 16", |s| s.edits[0].feature = 16),
            (ARGUMENT, "edits[0].feature: -1", |s| s.edits[0].feature = -1),
            (ARGUMENT, "edits[1].strength: inf", |s| s.edits[1].strength = f32::INFINITY),
            (ARGUMENT, "edits[1].strength: NaN", |s| s.edits[1].strength = f32::NAN),
            (ARGUMENT, "edits[1].limit: -1", |s| s.edits[1].limit = -1.0),
            (ARGUMENT, "both change latent 3", |s| s.edits[1].feature = 3),
        ],
    );
}

#[test]
fn a_refused_list_of_edits_leaves_the_old_one() {
    let mut scene = Scene::new(&plan());
    scene.steering_at = null();
    let x = scene.x.floats();
    ok(|e| steer(&scene, e));
    let steered = scene.x.floats();
    assert_ne!(steered, x);
    scene.edits[1].op = 9;
    refused(ARGUMENT, "op", |e| set_edits(&scene, e));
    scene.x = Array::f32(&x, &[ROWS, 8]);
    scene.x_at = &scene.x.tensor;
    ok(|e| steer(&scene, e));
    assert_eq!(scene.x.floats(), steered);
}

#[test]
fn steering() {
    check(
        &[("steer", steer)],
        &plan(),
        &[
            (ARGUMENT, "steering.struct_size: 8", |s| s.steering.struct_size = 8),
            (ARGUMENT, "steering: 0x", |s| s.steering_at = misaligned()),
            (ARGUMENT, "row_slot: 0x", |s| s.steering.row_slot = misaligned()),
            (TENSOR, "row_slot: expected i32, found f32", |s| s.row_slot.tensor.dtype = F32),
            (TENSOR, "row_slot: expected shape [3], found [2]", |s| s.row_slot.shape[0] = 2),
            (TENSOR, "row_slot: is on cuda:0", |s| s.row_slot.tensor.device.device_type = SAE_DEVICE_CUDA),
            (ARGUMENT, "known.struct_size", |s| {
                s.known.struct_size = 1;
                s.steering.known = &*s.known;
            }),
            (TENSOR, "known: features.indices: expected i32", |s| {
                s.known.indices.dtype = F32;
                s.steering.known = &*s.known;
            }),
            (TENSOR, "y: expected shape [3, 8], found [3, 2]", |s| s.steering.y = &s.selected.tensor),
            (TENSOR, "out: expected shape [3, 8], found [3, 2]", |s| s.steering.out = &s.selected.tensor),
            (TENSOR, "out: expected f32 like y, found bf16", |s| {
                s.x_hat.tensor.dtype = BF16;
                s.steering.out = &s.x_hat.tensor;
            }),
            (TENSOR, "overlaps row_slot", |s| {
                s.row_slot.tensor.data = s.x_hat.tensor.data;
                s.steering.out = &s.x_hat.tensor;
            }),
            (TENSOR, "out overlaps addend", |s| s.steering.out = &s.addend.tensor),
            (TENSOR, "out overlaps y", |s| {
                (s.x_hat.tensor.data, s.x_hat.strides[0]) = (s.z.tensor.data, 9);
                (s.addend.tensor.data, s.addend_at) = (s.z.tensor.data, null());
                (s.steering.y, s.steering.out) = (&s.addend.tensor, &s.x_hat.tensor);
            }),
        ],
    );
    // Here x and y differ in width, so y must be given.
    let mut scene = Scene::new(&transcoder_plan());
    refused(ARGUMENT, "y: this model reads vectors of 8 and writes vectors of 6", |e| steer(&scene, e));
    scene.steering.y = &scene.x_hat.tensor;
    ok(|e| steer(&scene, e));
}

#[test]
fn merging() {
    check(
        &[("merge", merge)],
        &plan(),
        &[
            (ARGUMENT, "n_parts: expected 1 to 64, found 0", |s| s.n_parts = 0),
            (ARGUMENT, "n_parts: expected 1 to 64, found 65", |s| s.n_parts = 65),
            (ARGUMENT, "parts[0]: is NULL", |s| s.parts_at = null()),
            (ARGUMENT, "parts[1].struct_size: is 208", |s| s.features[1].struct_size = 208),
            (TENSOR, "parts[1].values", |s| s.features[1].values.data = null_mut()),
            (TENSOR, "parts[1]", |s| s.features[1].indices.dtype = F32),
            (TENSOR, "overlaps", |s| {
                (s.parts_at, s.n_parts) = (&*s.known, 1);
            }),
        ],
    );
}

#[test]
fn indices_out_of_range_are_counted() {
    let mut scene = Scene::new(&plan());
    ok(|e| unsafe { sae_session_status(scene.session.0, e) });
    scene.indices.memory[1] = 16;
    scene.indices.memory[4] = i32::MIN as u32;
    ok(|e| decode(&scene, e));
    scene.row_slot.memory[0] = 7;
    scene.row_slot.memory[1] = -2i32 as u32;
    let before = scene.x.floats();
    ok(|e| steer(&scene, e));
    assert_eq!(scene.x.floats()[..16], before[..16], "rows of slots that are not there are left alone");
    refused(ARGUMENT, "4 indices or slots", |e| unsafe { sae_session_status(scene.session.0, e) });
    refused(ARGUMENT, "session: is NULL", |e| unsafe { sae_session_status(null_mut(), e) });
    refused(ARGUMENT, "session: is NULL", |e| unsafe { sae_session_wait(null_mut(), e) });
}

#[test]
fn no_tokens_are_fine_whatever_the_pointers() {
    let mut scene = Scene::new(&plan());
    for array in [&mut scene.x, &mut scene.addend, &mut scene.values, &mut scene.indices, &mut scene.counts]
        .into_iter()
        .chain([&mut scene.x_hat, &mut scene.selected, &mut scene.z, &mut scene.row_slot])
    {
        array.shape[0] = 0;
        array.tensor.data = null_mut();
    }
    scene.features.iter_mut().for_each(|features| features.values.data = null_mut());
    scene.ids.tensor.data = scene.ids.memory.as_mut_ptr().cast();
    let before = scene.memory();
    for call in [encode, encode_selected, encode_dense, decode, reconstruct, steer] {
        ok(|e| call(&scene, e));
    }
    assert!(scene.memory() == before);
}
