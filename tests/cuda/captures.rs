//! What calls ask of the driver while their stream is captured, and what a graph keeps.

use std::sync::Arc;

use sae::Status;
use sae::backend::cuda::{CudaModel, StreamHandle, When};
use sae::backend::{Run, Stream};
use sae::sae::Architecture;
use sae::session::{Session, SessionOptions, Steer};
use sae::tensor::DType;

use crate::common::cases::Case;
use crate::launches::{HOT_CALLS, all_sessions, options, sae, session};
use crate::recorder::{Event, Recorder, tensor, tensor_mut};

const STREAM: StreamHandle = StreamHandle(0x5eed);

fn run() -> Run<'static> {
    Run { stream: Stream::Host(STREAM.0), ..Run::default() }
}

#[test]
fn captured_calls_take_their_turn_in_the_graph_and_among_everything_else() {
    for (name, recorder, mut session) in all_sessions() {
        let mut pins = 0;
        for (number, (call, hot)) in HOT_CALLS.iter().enumerate() {
            // Two calls in each capture: the first is behind everything, the second behind the first.
            recorder.capture(Some(number as u64));
            for is_first in [true, false] {
                hot(&mut session, run(), 70).unwrap();
                let events = recorder.take();
                let [Event::Enter, Event::CheckStream(STREAM), Event::Capture(STREAM), work @ .., Event::Leave] =
                    &events[..]
                else {
                    panic!("{name}, {call}: {events:?}");
                };
                let work = match (is_first, work) {
                    (true, [Event::Pin(STREAM), work @ ..]) => work,
                    (false, work) => work,
                    _ => panic!("{name}, {call}: {work:?}"),
                };
                pins += usize::from(is_first);
                let [
                    Event::WaitFor(before, STREAM, when),
                    work @ ..,
                    Event::Record(done, STREAM, When::Replayed),
                    Event::Record(inside, STREAM, When::Now),
                ] = work
                else {
                    panic!("{name}, {call}: {work:?}");
                };
                let expected = if is_first { (done, &When::Replayed) } else { (inside, &When::Now) };
                assert!((before, when) == expected && done != inside, "{name}, {call}");
                for event in work {
                    match event {
                        Event::Launch(launch) if launch.stream == STREAM => {}
                        Event::Fill { stream: STREAM, .. } => {}
                        other => panic!("{name}, {call}: {other:?}"),
                    }
                }
            }
        }
        // Back outside, a call asks nothing of the capture's own mark.
        recorder.capture(None);
        HOT_CALLS[0].1(&mut session, run(), 70).unwrap();
        let asked = |event: &Event| matches!(event, Event::Pin(_) | Event::Record(_, _, When::Replayed));
        assert!(!recorder.take().iter().any(asked), "{name}");
        assert_eq!(recorder.destroy_graphs().len(), pins, "{name}");
    }
}

#[test]
fn the_sessions_own_stream_is_in_no_capture() {
    for (name, recorder, mut session) in all_sessions() {
        recorder.capture(Some(1));
        for stream in [Stream::Session, Stream::Synchronous] {
            HOT_CALLS[0].1(&mut session, Run { stream, ..Run::default() }, 70).unwrap();
        }
        assert!(!recorder.take().iter().any(|event| matches!(event, Event::Pin(_) | Event::Capture(_))), "{name}");
    }
}

#[test]
fn a_graph_keeps_session_and_model_and_the_last_one_lets_go() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::TopK { k: 8 }, false, DType::F32), options());
    let allocated = recorder.allocated();
    for capture in 0..2 {
        recorder.capture(Some(capture));
        HOT_CALLS[0].1(&mut session, run(), 70).unwrap();
    }
    recorder.take();
    drop(session);
    assert!(!recorder.take().iter().any(|event| matches!(event, Event::Await(_))), "nothing is given back yet");
    assert_eq!(recorder.allocated(), allocated);
    let mut kept = recorder.destroy_graphs();
    drop(kept.pop());
    assert_eq!(recorder.allocated(), allocated);
    drop(kept);
    // All work is waited for, and then comes the first thing that is given back.
    let events = recorder.take();
    let freed = events.iter().position(|event| *event == Event::Free).unwrap();
    assert!(events[..freed].iter().any(|event| matches!(event, Event::Await(_))), "{events:?}");
    assert!(recorder.is_clean());
}

#[test]
fn a_graph_that_keeps_nothing_gets_no_launches() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::Relu, false, DType::F32), options());
    recorder.capture(Some(1));
    recorder.refuse_pins(true);
    let error = HOT_CALLS[0].1(&mut session, run(), 70).unwrap_err();
    assert_eq!(error.status(), Status::OutOfMemory);
    let events = recorder.take();
    assert_eq!(events.len(), 5, "{events:?}");
    // The next one asks again.
    recorder.refuse_pins(false);
    HOT_CALLS[0].1(&mut session, run(), 70).unwrap();
    assert!(recorder.take().contains(&Event::Pin(STREAM)));
    drop(session);
    drop(Arc::clone(&recorder).destroy_graphs());
    assert!(recorder.is_clean());
}

#[test]
fn a_session_is_freed_when_its_work_is_done() {
    for (name, recorder, mut session) in all_sessions() {
        HOT_CALLS[0].1(&mut session, run(), 70).unwrap();
        let [.., Event::Record(done, ..), Event::Leave] = recorder.take()[..] else { panic!("{name}") };
        session.synchronize().unwrap();
        assert_eq!(recorder.take(), [Event::Enter, Event::Await(done), Event::Leave], "{name}");
        drop(session);
        let events = recorder.take();
        let (mut awaited, mut freed) = (false, 0);
        for event in events {
            awaited |= event == Event::Await(done);
            // The stream alone ends by itself.
            freed += usize::from(event == Event::Free && !awaited);
        }
        assert!(awaited && freed == 0, "{name}: {freed} things were given back too soon");
        assert!(recorder.is_clean(), "{name}");
    }
}

/// What a call in a capture waits for, and the capture's own mark that it sets.
fn marks(recorder: &Recorder) -> (Event, Event) {
    let events = recorder.take();
    let waits = events.iter().find(|event| matches!(event, Event::WaitFor(..))).unwrap().clone();
    let [.., set, Event::Leave] = &events[..] else { panic!("{events:?}") };
    (waits, set.clone())
}

#[test]
fn captures_that_go_on_by_turns_keep_their_order() {
    let recorder = Recorder::new();
    let mut session = session(&recorder, &sae(Architecture::TopK { k: 8 }, false, DType::F32), options());
    let mut call = |capture: u64| {
        recorder.capture(Some(capture));
        HOT_CALLS[0].1(&mut session, run(), 70).unwrap();
        marks(&recorder)
    };
    let mut set = Vec::new();
    for capture in 0..8 {
        let (waits, mark) = call(capture);
        assert!(matches!(waits, Event::WaitFor(_, STREAM, When::Replayed)), "{capture}: {waits:?}");
        assert!(!set.contains(&mark), "{capture}: another's mark");
        set.push(mark);
    }
    for capture in [0, 1, 0, 7, 3, 2, 4, 5, 6] {
        let (waits, mark) = call(capture);
        let Event::Record(own, ..) = set[capture as usize] else { panic!("{mark:?}") };
        assert_eq!((&waits, &mark), (&Event::WaitFor(own, STREAM, When::Now), &set[capture as usize]), "{capture}");
    }
    // One more takes the place of the one that was seen longest ago, and of no other.
    assert_eq!(call(8).1, set[1]);
    assert!(matches!(call(0).0, Event::WaitFor(_, STREAM, When::Now)));
    assert!(matches!(call(1).0, Event::WaitFor(_, STREAM, When::Replayed)));
}

#[test]
fn refused_calls_leave_the_graph_alone() {
    let recorder = Recorder::new();
    let case = Case { first_latent: 10, ..Case::plain(40, 50, 4, 8) };
    let model = CudaModel::on(Arc::new(case.sae(&mut case.rng())), Arc::clone(&recorder) as _).unwrap();
    let mut session = Session::new(model, SessionOptions { max_tokens: 4, ..SessionOptions::default() }).unwrap();
    recorder.capture(Some(1));
    recorder.take();
    let steer = |session: &mut Session| {
        let out = tensor_mut(1 << 33, DType::F32, &[4, 40], None);
        session.steer(run(), tensor(1 << 32, DType::F32, &[4, 40], None).into(), Steer::default(), out)
    };
    let error = steer(&mut session).unwrap_err();
    assert!(error.status() == Status::Unsupported && error.message().contains("is not captured"), "{error}");
    let events = recorder.take();
    assert_eq!(events, [Event::Enter, Event::CheckStream(STREAM), Event::Capture(STREAM), Event::Leave]);
    assert!(recorder.destroy_graphs().is_empty());
}
