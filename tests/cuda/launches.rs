//! What hot calls ask of the driver: launches on the stream they are told, with the right arguments, and nothing else.

use std::sync::Arc;

use sae::backend::cuda::params::{self, *};
use sae::backend::cuda::{CudaModel, StreamHandle, When};
use sae::backend::{DeviceWorkspace, Input, Order, Run, Screen, Stream, Wanted};
use sae::error::Result;
use sae::features::{FeaturesMut, FeaturesRef};
use sae::sae::{Architecture, Gate, Glu, Matrix, Normalization, Sae, Spec, Weights};
use sae::session::{Session, SessionOptions, Steer};
use sae::steering::{Edit, EditOp};
use sae::tensor::DType;

use crate::common::cases::numbers;
use crate::recorder::{Event, Launch, Recorder, tensor, tensor_mut};

pub(crate) const D: usize = 40;
pub(crate) const N: usize = 2000;
const WIDTH: usize = 8;

/// An SAE with everything that its architecture may have.
pub(crate) fn sae(architecture: Architecture, glu: bool, dtype: DType) -> Arc<Sae> {
    let mut numbers = numbers(1);
    let mut values = |len: usize| (0..len).map(|_| numbers.weight()).collect::<Vec<f32>>();
    let mut spec = Spec::new(architecture, D, N);
    spec.normalization = Normalization::LayerNorm;
    spec.rescale_by_decoder_norm = true;
    let mut matrix = |rows: usize| Matrix::from_f32(&values(rows * D), rows, D).unwrap().to_dtype(dtype).unwrap();
    let weights = Weights {
        w_enc: matrix(N),
        w_dec: matrix(N),
        glu: glu.then(|| Glu { w: matrix(N), b: vec![0.5; N] }),
        w_skip: Some(matrix(D)),
        threshold: (architecture == Architecture::JumpRelu).then(|| vec![0.5; N]),
        gate: (architecture == Architecture::Gated).then(|| Gate { r_mag: vec![0.5; N], b_gate: vec![0.5; N] }),
        b_enc: values(N),
        b_dec: values(D),
    };
    Arc::new(Sae::new(spec, weights).unwrap())
}

const ARCHITECTURES: [Architecture; 6] = [
    Architecture::TopK { k: WIDTH },
    Architecture::AbsTopK { k: WIDTH },
    Architecture::GroupMax { k: 20 },
    Architecture::Relu,
    Architecture::JumpRelu,
    Architecture::Gated,
];

pub(crate) fn session(recorder: &Arc<Recorder>, sae: &Arc<Sae>, options: SessionOptions) -> Session {
    let model = CudaModel::on(Arc::clone(sae), Arc::clone(recorder) as _).unwrap();
    let session = Session::new(model, options).unwrap();
    recorder.take();
    session
}

pub(crate) fn options() -> SessionOptions {
    SessionOptions { max_tokens: 100, max_width: WIDTH, slots: 2, edits_per_slot: 100, ..SessionOptions::default() }
}

fn features(at: u64, rows: usize) -> FeaturesRef<'static> {
    FeaturesRef {
        values: tensor(at, DType::BF16, &[rows, WIDTH], None),
        indices: tensor(at + (1 << 24), DType::I32, &[rows, WIDTH], None),
        counts: tensor(at + (2 << 24), DType::I32, &[rows], None),
        row_state: Some(tensor(at + (3 << 24), DType::F32, &[rows, 2], None)),
    }
}

fn features_mut(at: u64, rows: usize) -> FeaturesMut<'static> {
    FeaturesMut {
        values: tensor_mut(at, DType::BF16, &[rows, WIDTH], None),
        indices: tensor_mut(at + (1 << 24), DType::I32, &[rows, WIDTH], None),
        counts: tensor_mut(at + (2 << 24), DType::I32, &[rows], None),
        row_state: Some(tensor_mut(at + (3 << 24), DType::F32, &[rows, 2], None)),
    }
}

/// Where tensors are, far apart.
const X: u64 = 1 << 32;
const OUT: u64 = 2 << 32;
const IDS: u64 = 3 << 32;
const FEATURES: u64 = 4 << 32;
const OTHERS: u64 = 5 << 32;

type HotCall = (&'static str, fn(&mut Session, Run<'_>, usize) -> Result<()>);

/// Every hot call, with its name.
pub(crate) const HOT_CALLS: [HotCall; 9] = [
    ("encode", |s, run, rows| s.encode(run, x(rows).into(), features_mut(FEATURES, rows))),
    ("encode_selected", |s, run, rows| {
        let ids = tensor(IDS, DType::I32, &[7], None);
        s.encode_selected(run, x(rows).into(), ids, tensor_mut(OUT, DType::F32, &[rows, 7], None))
    }),
    ("encode_dense", |s, run, rows| {
        s.encode_dense(run, x(rows).into(), Wanted::Activations, tensor_mut(OUT, DType::F32, &[rows, N], None))
    }),
    ("pre-activations", |s, run, rows| {
        s.encode_dense(run, x(rows).into(), Wanted::PreActivations, tensor_mut(OUT, DType::F32, &[rows, N], None))
    }),
    ("decode", |s, run, rows| s.decode(run, features(FEATURES, rows), Some(x(rows)), vectors_mut(OUT, rows))),
    ("reconstruct", |s, run, rows| {
        s.reconstruct(run, x(rows).into(), Some(features_mut(FEATURES, rows)), vectors_mut(OUT, rows))
    }),
    ("steer", |s, run, rows| {
        let steer = Steer { row_slot: Some(tensor(IDS, DType::I32, &[rows], None)), ..Steer::default() };
        s.steer(run, x(rows).into(), steer, vectors_mut(OUT, rows))
    }),
    ("steer_in_place", |s, run, rows| s.steer_in_place(run, vectors_mut(X, rows), None)),
    ("merge", |s, run, rows| {
        s.merge(run, &[features(FEATURES, rows), features(OTHERS, rows)], features_mut(OUT, rows))
    }),
];

fn x(rows: usize) -> sae::tensor::Tensor<'static> {
    tensor(X, DType::BF16, &[rows, D], None)
}

fn vectors_mut(at: u64, rows: usize) -> sae::tensor::TensorMut<'static> {
    tensor_mut(at, DType::BF16, &[rows, D], None)
}

/// Every kind of session, with its name.
pub(crate) fn all_sessions() -> impl Iterator<Item = (String, Arc<Recorder>, Session)> {
    let kinds = ARCHITECTURES.into_iter().flat_map(|a| [false, true].map(|glu| (a, glu)));
    kinds.map(|(architecture, glu)| {
        let recorder = Recorder::new();
        let mut session = session(&recorder, &sae(architecture, glu, DType::F16), options());
        session.set_edits(1, &[Edit::new(3, EditOp::Set, 1.0)]).unwrap();
        recorder.take();
        (format!("{}, glu: {glu}", architecture.name()), recorder, session)
    })
}

#[test]
fn hot_calls_launch_on_their_stream_and_do_nothing_else() {
    for (name, recorder, mut session) in all_sessions() {
        for (call, run) in HOT_CALLS {
            for (stream, order) in [(0, Order::Value), (0x5eed, Order::Index), (0, Order::Index)] {
                run(&mut session, Run { stream: Stream::Host(stream), order, ..Run::default() }, 70).unwrap();
                let events = recorder.take();
                assert_eq!((&events[0], &events[events.len() - 1]), (&Event::Enter, &Event::Leave), "{name}, {call}");
                let stream = StreamHandle(stream);
                let [Event::CheckStream(checked), Event::Capture(asked), work @ ..] = &events[1..events.len() - 1]
                else {
                    panic!("{name}, {call}: {events:?}");
                };
                // Behind what came before it, and marked for what comes behind it.
                let [Event::WaitFor(before, waits, When::Now), work @ .., Event::Record(after, marked, When::Now)] =
                    work
                else {
                    panic!("{name}, {call}: {work:?}");
                };
                assert!([checked, asked, waits, marked].iter().all(|told| **told == stream) && before == after);
                let mut launches = 0;
                for event in work {
                    match event {
                        Event::Launch(launch) if launch.stream == stream => launches += 1,
                        Event::Fill { stream: told, .. } if *told == stream => {}
                        other => panic!("{name}, {call}: {other:?}"),
                    }
                }
                assert!(launches > 0, "{name}, {call}");
            }
        }
        assert!(recorder.is_left());
    }
}

#[test]
fn the_sessions_stream_is_its_own_and_waited_for_when_asked() {
    for (name, recorder, mut session) in all_sessions() {
        for (call, run) in HOT_CALLS {
            run(&mut session, Run::default(), 70).unwrap();
            let launches = recorder.launches();
            let own = launches[0].stream;
            assert!(own != StreamHandle(0) && launches.iter().all(|launch| launch.stream == own), "{name}, {call}");
            run(&mut session, Run { stream: Stream::Synchronous, ..Run::default() }, 70).unwrap();
            let events = recorder.take();
            let [.., Event::Record(done, stream, When::Now), Event::Await(awaited), Event::Leave] = events[..] else {
                panic!("{name}, {call}: {events:?}");
            };
            assert!(stream == own && done == awaited, "{name}, {call}");
            let waits = |event: &&Event| matches!(event, Event::Await(_) | Event::Synchronize(_));
            assert_eq!(events.iter().filter(waits).count(), 1, "{name}, {call}");
        }
    }
}

#[test]
fn no_tokens_are_nothing_to_launch() {
    for (name, recorder, mut session) in all_sessions() {
        for (call, run) in HOT_CALLS {
            run(&mut session, Run::default(), 0).unwrap();
            assert!(recorder.launches().is_empty(), "{name}, {call}");
        }
    }
}

#[test]
fn working_memory_is_where_the_host_says() {
    let recorder = Recorder::new();
    let options = SessionOptions { host_workspace: true, ..options() };
    let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options);
    let (encode, size) = (HOT_CALLS[0].1, session.workspace_size());
    let at = 9 << 32;
    for (workspace, expected) in [
        (None, "bring"),
        (Some(DeviceWorkspace { at, size: size - 1 }), "must hold"),
        (Some(DeviceWorkspace { at: at + 64, size }), "aligned"),
    ] {
        let error = encode(&mut session, Run { device_workspace: workspace, ..Run::default() }, 70).unwrap_err();
        assert!(error.message().contains(expected), "{error}");
    }
    assert!(recorder.launches().is_empty());
    for (_, call) in HOT_CALLS {
        let device_workspace = Some(DeviceWorkspace { at, size });
        call(&mut session, Run { device_workspace, ..Run::default() }, 70).unwrap();
        for launch in recorder.launches() {
            let scratch = match launch.kernel {
                Kernel::Prepare => launch.params::<PrepareParams>().out,
                Kernel::Screen => launch.params::<ScreenParams>().waiting,
                Kernel::Rescore => launch.params::<RescoreParams>().tokens,
                Kernel::Select => launch.params::<SelectParams>().kept,
                Kernel::Steer => launch.params::<SteerParams>().deltas,
                Kernel::MergePart => launch.params::<MergePartParams>().keys,
                _ => continue,
            };
            assert!((at..at + size as u64).contains(&scratch.0) && scratch.0.is_multiple_of(256), "{launch:?}");
        }
    }
}

#[test]
fn encoding_by_bounds_goes_through_all_latents_once() {
    let recorder = Recorder::new();
    let options = SessionOptions { max_tokens: 600, ..options() };
    let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options);
    HOT_CALLS[0].1(&mut session, Run::default(), 600).unwrap();
    let launches = recorder.launches();
    let kernels: Vec<Kernel> = launches.iter().map(|launch| launch.kernel).collect();
    use Kernel::{Exact, Prepare, Rescore, Screen, Select, Tighten};
    assert_eq!(kernels, [Prepare, Screen, Tighten, Screen, Tighten, Rescore, Exact, Select]);
    let prepare: PrepareParams = launches[0].params();
    assert_eq!((launches[0].shape.grid, launches[0].shape.block), ((600, 1), 128));
    assert_eq!((prepare.x.data, prepare.x.row_stride, prepare.x.dtype), (DevicePtr(X), D as i64, dtype::BF16));
    assert_eq!((prepare.rows, prepare.d, prepare.padded, prepare.rounded_stride), (600, 40, 48, 40));
    assert_eq!(
        (prepare.normalization, prepare.center, prepare.wanted),
        (normalization::LAYER_NORM, 0, DevicePtr::NULL)
    );
    assert!(prepare.addend.data == DevicePtr::NULL && prepare.b_dec != DevicePtr::NULL);
    let mut next = 0;
    for launch in launches.iter().filter(|launch| launch.kernel == Screen) {
        let screen: ScreenParams = launch.params();
        assert_eq!((screen.first, screen.rows, screen.d), (next, 600, 40));
        let blocks = ((screen.count as usize).div_ceil(SCREEN_LATENTS) * 600usize.div_ceil(SCREEN_TOKENS)) as u32;
        assert_eq!((launch.shape.grid, launch.shape.shared), ((blocks, 1), SCREEN_SHARED));
        assert!(i64::from(screen.count) <= screen.capacity || screen.first > 0);
        next += screen.count;
    }
    assert_eq!(next as usize, N);
    let tighten: TightenParams = launches[2].params();
    let exact: ExactParams = launches[6].params();
    assert!(exact.capacity >= i64::from(exact.gathered) + 1024);
    assert_eq!((tighten.k, exact.gathered), (WIDTH as i32, WIDTH as i32));
    let select: SelectParams = launches[7].params();
    assert_eq!((select.length, select.gathered), (-(exact.capacity as i32), WIDTH as i32));
    assert_eq!((select.keys, select.order, select.out.dtype), (exact.waiting, params::order::BY_VALUE, dtype::BF16));
    assert_eq!((select.out.values, select.out.width, select.out.state_width), (DevicePtr(FEATURES), WIDTH as i32, 2));
    assert!(select.latents.scale != DevicePtr::NULL && select.latents.rank_scale == DevicePtr::NULL);
}

/// Few tokens: fewer launches, and many blocks for what each of them needs.
#[test]
fn a_few_tokens_have_the_device_to_themselves() {
    for (rows, screens, blocks) in [(1, 1, 32), (2, 1, 32), (16, 1, 16), (70, 1, 3), (600, 2, 1)] {
        let recorder = Recorder::new();
        let options = SessionOptions { max_tokens: rows, ..options() };
        let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options);
        HOT_CALLS[0].1(&mut session, Run::default(), rows).unwrap();
        let launches = recorder.launches();
        let of = |kernel| launches.iter().filter(move |launch: &&Launch| launch.kernel == kernel).collect::<Vec<_>>();
        assert_eq!(of(Kernel::Screen).len(), screens, "{rows}");
        assert_eq!(of(Kernel::Rescore)[0].shape.grid, (rows as u32, blocks), "{rows}");
        // Tokens whose lists overflow: four at a time, in ranges of latents whose winners have a place in their lists.
        let (launch, exact) = (of(Kernel::Exact)[0], of(Kernel::Exact)[0].params::<ExactParams>());
        let items = (rows as u32).div_ceil(EXACT_TOKENS as u32) * exact.ranges as u32;
        assert_eq!(launch.shape.grid, (items.min(2 * 132), 1), "{rows}");
        assert!(exact.ranges == 4 && i64::from(exact.ranges * exact.gathered) <= exact.capacity, "{}", exact.ranges);
    }
}

#[test]
fn sessions_are_screened_as_they_are_told() {
    for (screen, architecture, glu, expected) in [
        (Screen::Never, Architecture::TopK { k: WIDTH }, false, false),
        (Screen::Auto, Architecture::TopK { k: WIDTH }, false, true),
        (Screen::Auto, Architecture::TopK { k: 200 }, false, false),
        (Screen::Always, Architecture::TopK { k: 200 }, false, true),
        (Screen::Auto, Architecture::Relu, false, true),
        (Screen::Always, Architecture::TopK { k: WIDTH }, true, false),
        (Screen::Always, Architecture::GroupMax { k: 20 }, false, false),
    ] {
        let recorder = Recorder::new();
        let options = SessionOptions { screen, ..options() };
        let mut session = session(&recorder, &sae(architecture, glu, DType::BF16), options);
        HOT_CALLS[0].1(&mut session, Run::default(), 70).unwrap();
        let launches = recorder.launches();
        let screens = launches.iter().any(|launch| launch.kernel == Kernel::Screen);
        assert_eq!(screens, expected, "{screen:?} {architecture:?} {glu}");
        assert_eq!(launches.iter().any(|launch| launch.kernel == Kernel::Score), !expected);
    }
}

#[test]
fn long_calls_go_in_chunks_whose_offsets_pass_32_bits() {
    let rows = 70_000usize;
    let recorder = Recorder::new();
    let options = SessionOptions { max_tokens: rows, ..options() };
    let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options);
    let row_stride = 1i64 << 20;
    let x = tensor(X, DType::F32, &[rows, D], Some(&[row_stride, 1]));
    let mut out = features_mut(1 << 50, rows);
    out.values = tensor_mut(1 << 51, DType::F32, &[rows, WIDTH], Some(&[row_stride, 1]));
    session.encode(Run::default(), x.into(), out).unwrap();
    let launches = recorder.launches();
    let of = |kernel| launches.iter().filter(move |launch: &&Launch| launch.kernel == kernel);
    let mut next = 0i64;
    for (prepare, select) in of(Kernel::Prepare).zip(of(Kernel::Select)) {
        let (prepare, select): (PrepareParams, SelectParams) = (prepare.params(), select.params());
        assert_eq!(prepare.x.data.0, X + 4 * (next * row_stride) as u64);
        assert_eq!(select.out.values.0, (1 << 51) + 4 * (next * row_stride) as u64);
        assert_eq!(select.out.counts.0, (1 << 50) + (2 << 24) + 4 * next as u64);
        assert!(prepare.rows == select.rows && prepare.rows <= 1 << 15);
        next += i64::from(prepare.rows);
    }
    assert_eq!(next as usize, rows);
    assert!(of(Kernel::Prepare).count() > 2);
}

#[test]
fn ids_are_counted_in_the_first_chunk_alone() {
    for architecture in [Architecture::TopK { k: WIDTH }, Architecture::Relu] {
        let recorder = Recorder::new();
        let options = SessionOptions { max_tokens: 70_000, ..options() };
        let mut session = session(&recorder, &sae(architecture, false, DType::F32), options);
        HOT_CALLS[1].1(&mut session, Run::default(), 70_000).unwrap();
        let launches = recorder.launches();
        let counters: Vec<DevicePtr> = launches
            .iter()
            .filter_map(|launch| match launch.kernel {
                Kernel::Lookup => Some(launch.params::<LookupParams>().ignored),
                Kernel::ScoreSelected => Some(launch.params::<ScoreSelectedParams>().ignored),
                _ => None,
            })
            .collect();
        assert!(counters.len() > 2 && counters.iter().all(|counter| *counter != DevicePtr::NULL));
        assert!(counters[1..].iter().all(|counter| *counter != counters[0]));
    }
}

#[test]
fn layers_lie_where_the_tensor_says() {
    let mut numbers = numbers(1);
    let (n, layers, width) = (30, 3, 8);
    let mut spec = Spec::new(Architecture::Relu, layers * width, n);
    (spec.layers_in, spec.layers_out) = (layers, layers);
    let mut matrix = || {
        let values: Vec<f32> = (0..n * layers * width).map(|_| numbers.weight()).collect();
        Matrix::from_f32(&values, n, layers * width).unwrap()
    };
    let weights = Weights::new(matrix(), vec![0.0; n], matrix(), vec![0.0; layers * width]);
    let recorder = Recorder::new();
    let mut session = session(&recorder, &Arc::new(Sae::new(spec, weights).unwrap()), options());
    let x = tensor(X, DType::F16, &[5, layers, width], Some(&[10, 1000, 1]));
    let addend = tensor(OTHERS, DType::F32, &[5, layers, width], None);
    let input = Input { x, addend: Some(addend), round_sum: true };
    session.reconstruct(Run::default(), input, None, tensor_mut(OUT, DType::F32, &[5, layers * width], None)).unwrap();
    let launches = recorder.launches();
    let prepare: PrepareParams = launches[0].params();
    let place = |v: Vectors| (v.data.0, v.row_stride, v.layer_stride, v.layer_size, v.dtype);
    assert_eq!(place(prepare.x), (X, 10, 1000, 8, dtype::F16));
    assert_eq!(place(prepare.addend), (OTHERS, 24, 8, 8, dtype::F32));
    let decode: DecodeParams = launches[launches.len() - 1].params();
    assert_eq!(place(decode.out), (OUT, 24, 0, 24, dtype::F32));
    assert_eq!((prepare.round_sum, decode.features.values), (1, DevicePtr::NULL));
}

#[test]
fn edits_are_written_by_value_behind_what_came_before() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options());
    let edits: Vec<Edit> =
        (0..100).map(|i| Edit { limit: 0.5, only_active: true, ..Edit::new(i, EditOp::Scale, i as f32) }).collect();
    HOT_CALLS[0].1(&mut session, Run { stream: Stream::Host(77), ..Run::default() }, 3).unwrap();
    let [.., Event::Record(done, _, _), Event::Leave] = recorder.take()[..] else { panic!("nothing was marked") };
    // What a set comes to: no length, words from an address on, and their length.
    let mut set = |slot, edits: &[Edit]| {
        session.set_edits(slot, edits).unwrap();
        let events = recorder.take();
        // On the session's own stream, which is never captured: the call's may be gone.
        let [
            Event::Enter,
            Event::WaitFor(before, own, When::Now),
            fills @ ..,
            Event::Record(after, marked, When::Now),
            Event::Leave,
        ] = &events[..]
        else {
            panic!("{events:?}");
        };
        assert!((*before, *after) == (done, done) && own == marked && *own != StreamHandle(77));
        let fills = fills.iter().map(|event| match *event {
            Event::Fill { at, word, times, stream } if stream == *own => (at, vec![word; times]),
            ref other => panic!("{other:?}"),
        });
        let (mut fills, mut words): (Vec<_>, Vec<u32>) = (fills.collect(), Vec::new());
        let (length_at, length) = fills.pop().unwrap();
        assert_eq!(fills.remove(0), (length_at, vec![0]));
        for (at, more) in &fills {
            assert_eq!(*at, fills[0].0 + 4 * words.len() as u64);
            words.extend(more);
        }
        (words, length_at, length)
    };
    let (words, length_at, length) = set(1, &edits);
    let found =
        words.chunks_exact(8).map(|words| bytemuck::pod_read_unaligned::<params::Edit>(bytemuck::cast_slice(words)));
    for (i, edit) in found.enumerate() {
        assert_eq!((edit.feature, edit.op, edit.strength), (i as i32, edit_op::SCALE, i as f32));
        assert_eq!((edit.limit, edit.only_active, edit.reserved2), (0.5, 1, 0));
    }
    assert_eq!((words.len(), length), (800, vec![100]));
    assert_eq!(set(0, &[]), (vec![], length_at - 4, vec![0]));
}

#[test]
fn captured_steering_is_ready_for_any_edits() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::TopK { k: WIDTH }, false, DType::F32), options());
    let steer = HOT_CALLS[6].1;
    let kernels = |session: &mut Session| {
        steer(session, Run { stream: Stream::Host(5), ..Run::default() }, 3).unwrap();
        recorder.launches().iter().map(|launch| launch.kernel).collect::<Vec<_>>()
    };
    session.set_edits(0, &[Edit::new(3, EditOp::Add, 1.0)]).unwrap();
    recorder.take();
    // Additions need to know nothing.
    assert_eq!(kernels(&mut session), [Kernel::Prepare, Kernel::Steer]);
    recorder.capture(Some(1));
    let captured = kernels(&mut session);
    assert_eq!((captured[0], captured.contains(&Kernel::Select)), (Kernel::SteerPlan, true));
    // Edits become no part of the graph: they are set at once.
    session.set_edits(0, &[]).unwrap();
    recorder.capture(None);
    session.set_edits(0, &[Edit::new(3, EditOp::Ablate, 0.0)]).unwrap();
    recorder.take();
    assert_eq!(kernels(&mut session), captured);
}
