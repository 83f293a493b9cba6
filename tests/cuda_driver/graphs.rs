//! Calls captured into graphs, and launched among others.

use std::sync::Arc;

use sae::Status;
use sae::backend::Stream;
use sae::session::Session;

use crate::fake::Fake;
use crate::scene::{Memory, edits, on_device, on_device_by, on_processor, sae};

fn launches_come_in_turn(fake: &Fake, seeds: std::ops::Range<i64>) {
    let sae = sae();
    for seed in seeds {
        fake.set("seed", seed);
        let (mut device, mut processor) = (on_device_by(&sae, seed), on_processor(&sae));
        let streams: Vec<_> = (0..3).map(|_| fake.stream(true)).collect();
        let host = |i: usize| Stream::Host(streams[i].handle());
        let mut captured: Vec<Memory> = (0..4).map(Memory::new).collect();
        let [a, b, c, d] = &mut captured[..] else { unreachable!() };
        // Two graphs; in the first, calls on two streams that are captured together, and an edit that is none of it.
        let one = fake.capture(&streams[0], || {
            a.encode(&mut device, host(0)).unwrap();
            fake.fork(&streams[0], &streams[1]);
            a.steer(&mut device, host(1)).unwrap();
            device.set_edits(0, &edits(9)).unwrap();
            b.steer(&mut device, host(0)).unwrap();
            c.encode(&mut device, Stream::Session).unwrap();
        });
        let one = one.unwrap();
        processor.set_edits(0, &edits(9)).unwrap();
        let two = fake.capture(&streams[2], || d.steer(&mut device, host(2)).unwrap()).unwrap();
        let mut expected: Vec<Memory> = (0..4).map(Memory::new).collect();
        expected[2].encode(&mut processor, Stream::Session).unwrap();

        let mut numbers = crate::common::cases::numbers(seed as u64);
        let (mut found, mut wanted): (Vec<_>, Vec<_>) = (0..12).map(|i| (Memory::new(i), Memory::new(i))).unzip();
        for number in 0..12 {
            match numbers.below(4) {
                0 => {
                    device.set_edits(0, &edits(number)).unwrap();
                    processor.set_edits(0, &edits(number)).unwrap();
                }
                1 => {
                    one.launch(&streams[numbers.below(3)]);
                    expected[0].encode(&mut processor, Stream::Session).unwrap();
                    expected[0].steer(&mut processor, Stream::Session).unwrap();
                    expected[1].steer(&mut processor, Stream::Session).unwrap();
                }
                2 => {
                    two.launch(&streams[numbers.below(3)]);
                    expected[3].steer(&mut processor, Stream::Session).unwrap();
                }
                _ => {
                    found[number].steer(&mut device, host(numbers.below(3))).unwrap();
                    wanted[number].steer(&mut processor, Stream::Session).unwrap();
                }
            }
        }
        device.synchronize().unwrap();
        for (found, expected) in captured.iter().chain(&found).zip(expected.iter().chain(&wanted)) {
            assert_eq!(found.results(), expected.results(), "seed {seed}");
        }
    }
    assert!(fake.is_clean());
}

#[test]
fn launches_come_in_turn_with_calls_and_edits() {
    launches_come_in_turn(&Fake::new(), 0..40);
}

#[test]
#[ignore = "runs in a process of its own, where libcuda is another"]
fn launches_come_in_turn_with_calls_and_edits_on_an_old_driver() {
    launches_come_in_turn(&Fake::new(), 0..5);
}

#[test]
fn a_graph_keeps_what_it_needs() {
    let fake = Fake::new();
    let sae = sae();
    for seed in 0..10 {
        fake.set("seed", seed);
        let stream = fake.stream(true);
        let mut session = on_device_by(&sae, seed / 2);
        session.set_edits(0, &edits(3)).unwrap();
        let mut memory = Memory::new(5);
        let graph = fake.capture(&stream, || {
            for _ in 0..2 {
                memory.encode(&mut session, Stream::Host(stream.handle())).unwrap();
                memory.steer(&mut session, Stream::Host(stream.handle())).unwrap();
            }
        });
        let graph = graph.unwrap();
        drop(session);
        let mut expected = Memory::new(5);
        let mut processor = on_processor(&sae);
        processor.set_edits(0, &edits(3)).unwrap();
        expected.encode(&mut processor, Stream::Session).unwrap();
        expected.steer(&mut processor, Stream::Session).unwrap();
        for _ in 0..2 {
            graph.launch(&stream);
        }
        assert!(fake.get("blocks") > 0);
        if seed % 2 == 0 {
            stream.wait();
            assert_eq!(memory.results(), expected.results());
        }
        // While it is under way, too.
        drop(graph);
        stream.wait();
        assert_eq!(memory.results(), expected.results());
        drop(stream);
        assert!(fake.is_clean(), "with the last graph everything goes");
    }
}

#[test]
fn a_graph_that_keeps_nothing_is_refused() {
    let fake = Fake::new();
    let sae = sae();
    let stream = fake.stream(true);
    let mut session = on_device(&sae);
    for refusal in ["refuse_objects", "refuse_retains"] {
        let before = fake.get("launches");
        let graph = fake.capture(&stream, || {
            fake.set(refusal, 1);
            let error = Memory::new(0).encode(&mut session, Stream::Host(stream.handle())).unwrap_err();
            assert_eq!(error.status(), Status::OutOfMemory);
            fake.set(refusal, 0);
        });
        assert_eq!(fake.get("launches"), before);
        drop(graph.unwrap());
    }
    drop((session, stream));
    assert!(fake.is_clean());
}

#[test]
fn cold_calls_beside_a_capture_leave_it_alone() {
    let fake = Fake::new();
    let sae = sae();
    let stream = fake.stream(true);
    let mut captured = on_device(&sae);
    let (mut memory, mut other) = (Memory::new(1), Memory::new(2));
    let graph = fake.capture(&stream, || {
        memory.encode(&mut captured, Stream::Host(stream.handle())).unwrap();
        let mut beside = |session: &mut Session| {
            other.encode(session, Stream::Synchronous).unwrap();
            session.fault().unwrap();
            session.synchronize().unwrap();
        };
        // On this thread and on another, which no graph has ever been made on.
        let mut session = on_device(&sae);
        beside(&mut session);
        drop(session);
        std::thread::scope(|scope| scope.spawn(|| drop(on_device(&Arc::clone(&sae)))).join().unwrap());
    });
    graph.unwrap().launch(&stream);
    captured.synchronize().unwrap();
    let (mut first, mut second, mut processor) = (Memory::new(1), Memory::new(2), on_processor(&sae));
    first.encode(&mut processor, Stream::Session).unwrap();
    second.encode(&mut processor, Stream::Session).unwrap();
    assert_eq!((memory.results(), other.results()), (first.results(), second.results()));
}
