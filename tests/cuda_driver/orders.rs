//! Calls of one session on streams that race.

use sae::Status;
use sae::backend::Stream;

use crate::fake::Fake;
use crate::scene::{Memory, edits, on_device, on_device_by, on_processor, sae};

#[test]
fn calls_and_edits_of_one_session_come_in_turn_whatever_the_streams() {
    let fake = Fake::new();
    let sae = sae();
    for seed in 0..40 {
        fake.set("seed", seed);
        let (mut device, mut processor) = (on_device_by(&sae, seed), on_processor(&sae));
        let mut streams: Vec<_> = (0..3).map(|i| fake.stream(i != 0)).collect();
        let mut numbers = crate::common::cases::numbers(seed as u64);
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        for number in 0..12 {
            found.push(Memory::new(number));
            expected.push(Memory::new(number));
        }
        for (number, (found, expected)) in found.iter_mut().zip(&mut expected).enumerate() {
            if numbers.below(2) == 0 {
                device.set_edits(0, &edits(number)).unwrap();
                processor.set_edits(0, &edits(number)).unwrap();
            }
            let stream = match numbers.below(6) {
                0 => Stream::Session,
                1 => Stream::Synchronous,
                2 => Stream::Host(0),
                i => Stream::Host(streams[i - 3].handle()),
            };
            found.encode(&mut device, stream).unwrap();
            found.steer(&mut device, stream).unwrap();
            expected.encode(&mut processor, Stream::Session).unwrap();
            expected.steer(&mut processor, Stream::Session).unwrap();
            if numbers.below(4) == 0 {
                // A host may end its stream at any time, and get the same handle again for another.
                let i = numbers.below(3);
                streams[i] = fake.stream(true);
            }
        }
        device.synchronize().unwrap();
        for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.results(), expected.results(), "seed {seed}, call {number}");
        }
        assert_eq!((fake.get("contexts"), fake.get("mode")), (1, 0));
    }
    assert!(fake.is_clean());
}

#[test]
fn streams_that_do_not_serve_are_refused() {
    let fake = Fake::new();
    let mut session = on_device(&sae());
    let before = fake.get("launches");
    let mut memory = Memory::new(0);
    let error = memory.encode(&mut session, Stream::Host(fake.foreign_stream())).unwrap_err();
    assert_eq!(error.status(), Status::InvalidArgument);
    assert_eq!(error.message(), "the stream is not one of the primary context of cuda:0");
    let error = memory.encode(&mut session, Stream::Host(0x5eed0)).unwrap_err();
    assert!(error.status() == Status::InvalidArgument && error.message().starts_with("stream: "), "{error}");
    // The default stream, while one is captured that must not wait for it.
    let blocking = fake.stream(false);
    let graph = fake.capture(&blocking, || {
        let error = memory.encode(&mut session, Stream::Host(0)).unwrap_err();
        assert_eq!(error.status(), Status::BadState);
    });
    assert!(graph.is_ok(), "the capture goes on");
    assert_eq!(fake.get("launches"), before);
}
