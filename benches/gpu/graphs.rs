//! Calls captured into a graph and replayed, with inputs and edits changed between, on other streams and after the session is freed.

use std::sync::Arc;

use sae::backend::cuda::CudaModel;
use sae::backend::{Run, Stream as On};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use serde_json::json;

use crate::cases::Case;
use crate::device::{Buffer, Stream};
use crate::say;

const ROWS: usize = 16;

pub fn run() -> bool {
    let case = Case { weights: 2, ..Case::plain(256, 4096, ROWS, 16) };
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let options = SessionOptions { max_tokens: ROWS, ..SessionOptions::default() };
    let mut device = Session::new(CudaModel::new(Arc::clone(&sae), 0).unwrap(), options.clone()).unwrap();
    let mut processor = Session::new(Arc::clone(&sae), options).unwrap();
    let shape = [ROWS, case.d_in];
    let streams = [Stream::new(), Stream::new(), Stream::new()];
    let inputs =
        [numbers.activations(ROWS * case.d_in), numbers.activations(ROWS * case.d_in)].map(|x| Buffer::new(true, &x));
    let x = Buffer::new(true, &inputs[0].read());
    let mut out = Buffer::new(true, &vec![0f32; ROWS * case.d_in]);
    let mut graph = Some(streams[0].capture(|| {
        let run = Run { stream: On::Host(streams[0].handle()), ..Run::default() };
        device.steer(run, x.tensor(&shape).into(), Steer::default(), out.tensor_mut(&shape)).unwrap();
    }));
    let mut device = Some(device);
    let (mut replays, mut wrong) = (0, 0);
    for step in 0..40 {
        let stream = &streams[step % 3];
        let input = &inputs[step / 2 % 2];
        stream.copy(x.at(), input.at(), 4 * ROWS * case.d_in);
        if let Some(device) = &mut device {
            let ops = [EditOp::Add, EditOp::Set, EditOp::Scale, EditOp::Ablate];
            let edits = [Edit::new(step as i32, ops[step % 4], 2.0), Edit::new(1000, EditOp::Set, step as f32)];
            device.set_edits(0, &edits).unwrap();
            processor.set_edits(0, &edits).unwrap();
        }
        graph.as_ref().unwrap().launch(stream);
        stream.wait();
        let (host, mut expected) =
            (Buffer::new(false, &input.read()), Buffer::new(false, &vec![0f32; ROWS * case.d_in]));
        let into = expected.tensor_mut(&shape);
        processor.steer(Run::default(), host.tensor(&shape).into(), Steer::default(), into).unwrap();
        replays += 1;
        let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        wrong += usize::from(bits(out.read()) != bits(expected.read()));
        if step == 30 {
            device = None; // the graph keeps what it needs
        }
    }
    drop(graph.take());
    say(json!({ "replays": replays, "wrong": wrong }), "graphs");
    wrong == 0
}
