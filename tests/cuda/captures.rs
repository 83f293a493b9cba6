//! What calls ask of the driver while their stream is captured, and what a graph keeps.

use std::sync::Arc;

use sae::Status;
use sae::backend::cuda::{StreamHandle, When};
use sae::backend::{Run, Stream};
use sae::sae::Architecture;
use sae::tensor::DType;

use crate::launches::{HOT_CALLS, all_sessions, options, sae, session};
use crate::recorder::{Event, Recorder};

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
