//! What a session on one device refuses of another's.

use sae::Status;
use sae::backend::{DeviceWorkspace, Run, Stream};
use sae::features::Features;
use sae::sae::Architecture;
use sae::session::{Session, SessionOptions};
use sae::tensor::{DType, Device, DeviceKind, Tensor, TensorMut};

use crate::launches::{D, HOT_CALLS, options, sae, session};
use crate::recorder::{Recorder, tensor};

#[test]
fn the_hosts_tensors_are_refused_by_name() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::TopK { k: 8 }, false, DType::F32), options());
    let (values, mut out) = ([0.0; 2 * D], Features::new(2, 8, 2));
    let x = Tensor::new(&values, &[2, D]).unwrap();
    let error = session.encode(Run::default(), x.into(), out.view_mut()).unwrap_err();
    assert_eq!((error.status(), error.message()), (Status::InvalidTensor, "x: is on cpu, but the model is on cuda:1"));
    let x = tensor(64, DType::F32, &[2, D], None);
    let error = session.encode(Run::default(), x.into(), out.view_mut()).unwrap_err();
    assert_eq!(error.message(), "out: features.values: is on cpu, but the model is on cuda:1");
    let error =
        session.decode(Run::default(), out.view(), Some(x), TensorMut::new(&mut [0.0; 2 * D], &[2, D]).unwrap());
    assert!(error.unwrap_err().message().starts_with("features: features.values: is on cpu"));
    // Another GPU's are too; those that every GPU reaches are not.
    for (kind, id, fine) in
        [(DeviceKind::Cuda, 0, false), (DeviceKind::CudaHost, 1, false), (DeviceKind::CudaManaged, 0, true)]
    {
        let device = Device { kind, id };
        let x = unsafe { Tensor::from_raw(64 as *const u8, DType::F32, device, &[2, D], None).unwrap() };
        let error = session.encode(Run::default(), x.into(), out.view_mut()).unwrap_err();
        assert_eq!(error.message().starts_with(&format!("x: is on {device}")), !fine, "{error}");
    }
    let mut memory = [0u8; 64];
    let run = Run { workspace: Some(&mut memory), ..Run::default() };
    let error = HOT_CALLS[0].1(&mut session, run, 2).unwrap_err();
    assert!(error.message().starts_with("workspace: "), "{error}");
    assert!(recorder.take().is_empty(), "refused before the device is entered");
}

#[test]
fn a_stream_of_another_context_is_refused() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::Relu, false, DType::F32), options());
    recorder.refuse_streams();
    for _ in 0..2 {
        let run = Run { stream: Stream::Host(99), ..Run::default() };
        let error = HOT_CALLS[0].1(&mut session, run, 2).unwrap_err();
        assert!(error.status() == Status::InvalidArgument && error.message().contains("primary context"), "{error}");
        assert!(recorder.launches().is_empty() && recorder.is_left());
    }
}

#[test]
fn sessions_on_the_processor_refuse_what_is_a_gpus() {
    let sae = sae(Architecture::TopK { k: 8 }, false, DType::F32);
    let mut session = Session::new(sae, SessionOptions::default()).unwrap();
    let mut out = Features::new(2, 8, 2);
    let x = tensor(64, DType::F32, &[2, D], None);
    let error = session.encode(Run::default(), x.into(), out.view_mut()).unwrap_err();
    assert_eq!(error.message(), "x: is on cuda:1, but the model is on cpu");
    let values = [0.0; 2 * D];
    let x = Tensor::new(&values, &[2, D]).unwrap();
    let run = Run { stream: Stream::Host(0), ..Run::default() };
    assert_eq!(session.encode(run, x.into(), out.view_mut()).unwrap_err().status(), Status::Unsupported);
    let run = Run { device_workspace: Some(DeviceWorkspace { at: 256, size: 1 << 30 }), ..Run::default() };
    let error = session.encode(run, x.into(), out.view_mut()).unwrap_err();
    assert!(error.message().starts_with("device_workspace: "), "{error}");
}
