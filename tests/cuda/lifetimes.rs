//! What is taken is given back, what was current is restored, and memory is told before it is taken.

use std::sync::Arc;

use sae::Status;
use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Screen};
use sae::sae::Architecture;
use sae::session::{Model, Session, SessionOptions};
use sae::tensor::DType;

use crate::launches::{HOT_CALLS, N, all_sessions, options, sae};
use crate::recorder::Recorder;

#[test]
fn a_fault_is_reported_and_the_thread_left_as_it_was() {
    for (name, recorder, mut session) in all_sessions() {
        for (call, run) in HOT_CALLS {
            run(&mut session, Run::default(), 70).unwrap();
            for number in 0..recorder.launches().len() {
                recorder.break_launch(Some(number));
                let error = run(&mut session, Run::default(), 70).unwrap_err();
                assert_eq!(error.status(), Status::DeviceFault, "{name}, {call}");
                assert!(recorder.is_left(), "{name}, {call}");
                assert_eq!(recorder.launches().len(), number + 1, "{name}, {call}: nothing is started after a fault");
            }
            assert_eq!(session.fault().unwrap_err().status(), Status::DeviceFault);
            recorder.break_launch(None);
            session.fault().unwrap();
        }
        drop(session);
        assert!(recorder.is_clean(), "{name}");
    }
}

#[test]
fn memory_is_as_told_and_goes_with_the_last_user() {
    for (architecture, dtype, screen) in [
        (Architecture::TopK { k: 8 }, DType::F32, Screen::Auto),
        (Architecture::TopK { k: 8 }, DType::BF16, Screen::Always),
        (Architecture::Gated, DType::F16, Screen::Auto),
        (Architecture::JumpRelu, DType::F32, Screen::Never),
    ] {
        let (recorder, sae) = (Recorder::new(), sae(architecture, false, dtype));
        let model = CudaModel::on(Arc::clone(&sae), Arc::clone(&recorder) as _).unwrap();
        assert_eq!(recorder.allocated(), CudaModel::memory(&sae));
        assert!(recorder.allocated() >= sae.byte_size() - 4 * N, "all weights but r_mag are there");
        let options = SessionOptions { screen, ..options() };
        let told = Session::memory(&Model::from(Arc::clone(&model)), &options).unwrap();
        let first = Session::new(Arc::clone(&model), options.clone()).unwrap();
        assert_eq!(told.workspace, first.workspace_size());
        let all = told.workspace + told.kept + told.shared;
        assert_eq!(recorder.allocated(), CudaModel::memory(&sae) + all, "{architecture:?} {dtype}");
        // A second session shares what bounds scores; a third brings no memory to work in.
        let second = Session::new(Arc::clone(&model), options.clone()).unwrap();
        let third = Session::new(Arc::clone(&model), SessionOptions { host_workspace: true, ..options }).unwrap();
        let shared = CudaModel::memory(&sae) + told.shared;
        assert_eq!(recorder.allocated(), shared + 2 * told.workspace + 3 * told.kept);
        drop((model, first));
        assert_eq!(recorder.allocated(), shared + told.workspace + 2 * told.kept);
        drop((second, third));
        assert!(recorder.is_clean());
    }
}

#[test]
fn what_does_not_fit_leaves_nothing_behind() {
    let sae = sae(Architecture::TopK { k: 8 }, false, DType::F32);
    let recorder = Recorder::new();
    recorder.limit_memory(CudaModel::memory(&sae) - 1);
    let error = CudaModel::on(Arc::clone(&sae), Arc::clone(&recorder) as _).err().unwrap();
    assert_eq!(error.status(), Status::OutOfMemory);
    assert!(recorder.is_clean());
    recorder.limit_memory(usize::MAX);
    let model = CudaModel::on(Arc::clone(&sae), Arc::clone(&recorder) as _).unwrap();
    let told = Session::memory(&Model::from(Arc::clone(&model)), &options()).unwrap();
    for missing in [1, told.kept + 1, told.workspace + told.kept, told.shared + told.workspace + told.kept] {
        recorder.limit_memory(told.shared + told.workspace + told.kept - missing);
        let error = Session::new(Arc::clone(&model), options()).err().unwrap();
        assert_eq!(error.status(), Status::OutOfMemory);
        assert_eq!(recorder.allocated(), CudaModel::memory(&sae));
    }
}
