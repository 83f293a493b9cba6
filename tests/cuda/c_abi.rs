//! Models on a GPU through the C ABI.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use sae::backend::cuda::{CudaModel, StreamHandle};
use sae::capi::*;
use sae::sae::Architecture;
use sae::tensor::DType;

use crate::host::{Array, init, numbers, ok, refused};
use crate::launches::{D, N, sae};
use crate::recorder::{Event, Recorder};
use crate::stand_in::StandInDriver;

const ROWS: i64 = 5;
const WIDTH: i64 = 8;
const SAE: Architecture = Architecture::TopK { k: WIDTH as usize };

/// What a call takes and gives, said to be on a device.
struct Memory {
    x: Box<Array>,
    values: Box<Array>,
    indices: Box<Array>,
    counts: Box<Array>,
    state: Box<Array>,
}

impl Memory {
    fn on(device: sae_device) -> Self {
        let slots = (ROWS * WIDTH) as usize;
        let mut memory = Self {
            x: Array::f32(&numbers(ROWS as usize * D, 5), &[ROWS, D as i64]),
            values: Array::f32(&vec![7.0; slots], &[ROWS, WIDTH]),
            indices: Array::i32(&vec![7; slots], &[ROWS, WIDTH]),
            counts: Array::i32(&[7; ROWS as usize], &[ROWS]),
            state: Array::f32(&[7.0; 2 * ROWS as usize], &[ROWS, 2]),
        };
        let Self { x, values, indices, counts, state } = &mut memory;
        [x, values, indices, counts, state].into_iter().for_each(|array| array.tensor.device = device);
        memory
    }

    fn features(&self) -> sae_features {
        let mut features = init::<sae_features>();
        (features.values, features.indices) = (self.values.tensor, self.indices.tensor);
        (features.counts, features.row_state) = (self.counts.tensor, self.state.tensor);
        features
    }

    fn results(&self) -> [&[u32]; 4] {
        [&self.values.memory, &self.indices.memory, &self.counts.memory, &self.state.memory]
    }
}

fn options() -> sae_session_options {
    let mut options = init::<sae_session_options>();
    (options.max_tokens, options.slots) = (10, 2);
    options
}

fn encode(session: *mut sae_session, run: &sae_run, memory: &Memory, error: *mut *mut sae_error) -> sae_status {
    unsafe { sae_encode(session, run, &memory.x.tensor, null(), &memory.features(), error) }
}

#[test]
fn encoding_on_the_stand_in_gives_what_the_processor_gives() {
    let sae = sae(SAE, false, DType::F16);
    let model = CudaModel::on(Arc::clone(&sae), StandInDriver::new(3)).unwrap();
    let mut found = Vec::new();
    for model in [handle_of(sae), handle_of(model)] {
        let mut info = init::<sae_info>();
        ok(|e| unsafe { sae_model_info(model, &mut info, e) });
        let mut session = null_mut();
        ok(|e| unsafe { sae_session_create(model, &options(), &mut session, e) });
        // The session keeps what it needs.
        unsafe { sae_model_free(model) };
        assert_eq!(unsafe { sae_session_kernels(session) }.is_null(), info.device.device_type == SAE_DEVICE_CUDA);
        let (memory, mut run) = (Memory::on(info.device), init::<sae_run>());
        run.stream_kind = SAE_STREAM_SYNCHRONOUS;
        ok(|e| encode(session, &run, &memory, e));
        ok(|e| unsafe { sae_session_status(session, e) });
        // An index that is none is counted and told.
        let mut x_hat = Array::f32(&[0.0; ROWS as usize * D], &[ROWS, D as i64]);
        x_hat.tensor.device = info.device;
        let mut wrong = Memory::on(info.device);
        wrong.indices.memory[3] = N as u32;
        let features = wrong.features();
        ok(|e| unsafe { sae_decode(session, &run, &features, &wrong.x.tensor, &x_hat.tensor, e) });
        refused(SAE_ERROR_INVALID_ARGUMENT, "1 indices or slots", |e| unsafe { sae_session_status(session, e) });
        unsafe { sae_session_free(session) };
        found.push(memory.results().map(<[u32]>::to_vec));
    }
    assert_eq!(found[0], found[1]);
    assert_ne!(found[0][1], vec![7; (ROWS * WIDTH) as usize]);
}

#[test]
fn streams_workspaces_and_memory_are_as_the_host_says() {
    let recorder = Recorder::new();
    let sae = sae(SAE, false, DType::F32);
    let model = handle_of(CudaModel::on(Arc::clone(&sae), Arc::clone(&recorder) as _).unwrap());
    let device = sae_device { device_type: SAE_DEVICE_CUDA, device_id: 1 };
    let (mut info, mut told) = (init::<sae_info>(), init::<sae_memory>());
    ok(|e| unsafe { sae_model_info(model, &mut info, e) });
    assert_eq!((info.device.device_type, info.device.device_id), (2, 1));
    ok(|e| unsafe { sae_session_memory(model, &options(), &mut told, e) });
    let (mut session, before) = (null_mut(), recorder.allocated());
    ok(|e| unsafe { sae_session_create(model, &options(), &mut session, e) });
    assert_eq!((recorder.allocated() - before, told.resident), (told.device as usize, 0));
    assert!(told.workspace > 0 && told.workspace < told.device);

    let memory = Memory::on(device);
    for (kind, stream) in [(SAE_STREAM_HOST, null_mut()), (SAE_STREAM_HOST, 0x5eed as *mut c_void)] {
        let mut run = init::<sae_run>();
        (run.stream_kind, run.stream) = (kind, stream);
        run.workspace = (9usize << 32) as *mut c_void;
        run.workspace_size = told.workspace as usize;
        recorder.take();
        ok(|e| encode(session, &run, &memory, e));
        let stream = StreamHandle(stream.addr() as u64);
        assert!(recorder.launches().iter().all(|launch| launch.stream == stream));
    }
    let mut run = init::<sae_run>();
    run.stream = 0x5eed as *mut c_void;
    for kind in [SAE_STREAM_SESSION, SAE_STREAM_SYNCHRONOUS] {
        run.stream_kind = kind;
        let named = "run.stream: is set, but run.stream_kind is not SAE_STREAM_HOST";
        refused(SAE_ERROR_INVALID_ARGUMENT, named, |e| encode(session, &run, &memory, e));
    }
    run = init();
    (run.workspace, run.workspace_size) = (64 as *mut c_void, told.workspace as usize);
    refused(SAE_ERROR_INVALID_ARGUMENT, "aligned to 256", |e| encode(session, &run, &memory, e));
    let on_host = Memory::on(sae_device { device_type: SAE_DEVICE_CPU, device_id: 0 });
    refused(SAE_ERROR_INVALID_TENSOR, "x: is on cpu, but the model is on cuda:1", |e| {
        encode(session, &init(), &on_host, e)
    });

    // Faults are told by a status that does not wait.
    recorder.take();
    ok(|e| unsafe { sae_session_status(session, e) });
    assert!(recorder.take().iter().all(|event| matches!(event, Event::Enter | Event::Fault(_) | Event::Leave)));
    ok(|e| unsafe { sae_session_wait(session, e) });
    assert!(matches!(recorder.take()[..], [Event::Enter, Event::Await(_), Event::Leave]));
    recorder.break_launch(Some(0));
    refused(SAE_ERROR_DEVICE_FAULT, "illegal address", |e| unsafe { sae_session_status(session, e) });
    recorder.break_launch(None);
    unsafe { sae_model_free(model) };
    unsafe { sae_session_free(session) };
    assert!(recorder.is_clean());
}

#[test]
fn models_made_of_one_on_a_gpu_are_there_too() {
    let recorder = Recorder::new();
    let model = handle_of(CudaModel::on(sae(SAE, false, DType::F32), Arc::clone(&recorder) as _).unwrap());
    let mut info = init::<sae_info>();
    let mut made = null_mut();
    ok(|e| unsafe { sae_model_with_k(model, 3, &mut made, e) });
    ok(|e| unsafe { sae_model_info(made, &mut info, e) });
    assert_eq!((info.device.device_type, info.device.device_id, info.k), (SAE_DEVICE_CUDA, 1, 3));
    unsafe { sae_model_free(model) };
    assert!(!recorder.is_clean());
    unsafe { sae_model_free(made) };
    assert!(recorder.is_clean());
}
