//! Every operation on random SAEs and activations, kind and unkind: the device's bits are the processor's.

use std::sync::Arc;

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestRunner};
use sae::backend::cuda::CudaModel;
use sae::backend::{Order, Run, Screen, Stream, Wanted};
use sae::features::{FeaturesMut, FeaturesRef};
use sae::sae::Sae;
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use serde_json::json;

use crate::cases::Case;
use crate::device::Buffer;
use crate::say;

const CASES: u32 = 120;
const WIDTH: usize = 24;

pub fn run() -> bool {
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let random = (0..CASES).map(|_| Case::any().new_tree(&mut runner).unwrap().current().whole_if_competing());
    // More latents than one range, and shapes as they are in use.
    let large =
        [(0, 0), (0, 1), (0, 3), (2, 0), (2, 1), (3, 0), (5, 0)].into_iter().flat_map(|(architecture, values)| {
            [(64, 6000, 300, 12), (768, 16384, 40, 32)].map(|(d, n, rows, k)| Case {
                architecture,
                values,
                rescale: true,
                weights: 2,
                ..Case::plain(d, n, rows, k)
            })
        });
    let (mut cases, mut wrong) = (0, 0);
    for case in random.chain(large) {
        cases += 1;
        let found = differences(&case);
        if !found.is_empty() {
            wrong += 1;
            say(json!({ "differs": found, "case": format!("{case:?}") }), "parity");
        }
    }
    say(json!({ "cases": cases, "wrong": wrong }), "parity");
    wrong == 0
}

/// The operations whose results differ.
fn differences(case: &Case) -> Vec<String> {
    let mut numbers = case.rng();
    let sae = Arc::new(case.sae(&mut numbers));
    let x = numbers.activations(case.rows * case.d_in);
    let edits: Vec<Edit> = [EditOp::Add, EditOp::Set, EditOp::Scale, EditOp::Ablate]
        .into_iter()
        .zip([0, 1, 2, 3])
        .filter(|(_, i)| *i < case.n)
        .map(|(op, i)| Edit::new((case.first_latent + i) as i32, op, 1.5))
        .collect();
    let expected = results(&sae, None, &x, &edits);
    let mut differ = Vec::new();
    for screen in [Screen::Always, Screen::Never] {
        for ((name, found), (_, expected)) in results(&sae, Some(screen), &x, &edits).iter().zip(&expected) {
            if !same(found, expected) {
                differ.push(format!("{name}, screen: {screen:?}"));
            }
        }
    }
    differ
}

fn same(a: &[u32], b: &[u32]) -> bool {
    let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (is_nan(*a) && is_nan(*b)))
}

type Results = Vec<(&'static str, Vec<u32>)>;

/// Bits of everything that a session gives, on the processor without a screen.
fn results(sae: &Arc<Sae>, screen: Option<Screen>, x: &[f32], edits: &[Edit]) -> Results {
    let on_device = screen.is_some();
    let spec = sae.spec();
    let (d, d_out, n, rows) = (spec.d_in, spec.d_out, spec.n_latents, x.len() / spec.d_in);
    let options = SessionOptions {
        max_tokens: rows.max(1),
        max_width: WIDTH.min(n),
        screen: screen.unwrap_or(Screen::Never),
        ..SessionOptions::default()
    };
    let mut session = match on_device {
        true => Session::new(CudaModel::new(Arc::clone(sae), 0).unwrap(), options).unwrap(),
        false => Session::new(Arc::clone(sae), options).unwrap(),
    };
    let (width, states) = (WIDTH.min(n), spec.row_state_width());
    let run = |order| Run { stream: Stream::Synchronous, order, ..Run::default() };
    let x = Buffer::new(on_device, x);
    let input = || x.tensor(&[rows, d]);
    let words = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
    let whole = |v: Vec<i32>| v.into_iter().map(|v| v as u32).collect::<Vec<u32>>();

    let mut all = Results::new();
    let mut values = Buffer::new(on_device, &vec![7f32; rows * width]);
    let mut indices = Buffer::new(on_device, &vec![7i32; rows * width]);
    let mut counts = Buffer::new(on_device, &vec![7i32; rows]);
    let mut state = Buffer::new(on_device, &vec![7f32; rows * states]);
    for order in [Order::Index, Order::Value] {
        let out = FeaturesMut {
            values: values.tensor_mut(&[rows, width]),
            indices: indices.tensor_mut(&[rows, width]),
            counts: counts.tensor_mut(&[rows]),
            row_state: (states > 0).then(|| state.tensor_mut(&[rows, states])),
        };
        session.encode(run(order), input().into(), out).unwrap();
        all.push(("encode, values", words(values.read())));
        all.push(("encode, indices", whole(indices.read())));
        all.push(("encode, counts", whole(counts.read())));
        all.push(("encode, row state", words(state.read())));
    }
    let features = FeaturesRef {
        values: values.tensor(&[rows, width]),
        indices: indices.tensor(&[rows, width]),
        counts: counts.tensor(&[rows]),
        row_state: (states > 0).then(|| state.tensor(&[rows, states])),
    };
    let mut out = Buffer::new(on_device, &vec![7f32; rows * d_out]);
    session.decode(run(Order::Value), features, Some(input()), out.tensor_mut(&[rows, d_out])).unwrap();
    all.push(("decode", words(out.read())));
    session.reconstruct(run(Order::Value), input().into(), None, out.tensor_mut(&[rows, d_out])).unwrap();
    all.push(("reconstruct", words(out.read())));
    let mut z = Buffer::new(on_device, &vec![7f32; rows * n]);
    for (name, what) in [("activations", Wanted::Activations), ("pre-activations", Wanted::PreActivations)] {
        session.encode_dense(run(Order::Value), input().into(), what, z.tensor_mut(&[rows, n])).unwrap();
        all.push((name, words(z.read())));
    }
    if d == d_out {
        session.set_edits(0, edits).unwrap();
        session.steer(run(Order::Value), input().into(), Steer::default(), out.tensor_mut(&[rows, d])).unwrap();
        all.push(("steer", words(out.read())));
    }
    all
}
