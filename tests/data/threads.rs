//! One thread fills the buffer while another empties it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sae::Status;
use sae::tensor::Tensor;
use sae::training::data::{Choice, Rows, Taken, Wait};

use crate::buffer::buffer;
use crate::support::{in_time, numbered, numbers};

#[test]
fn both_sides_wait_for_each_other_and_nothing_is_lost() {
    in_time(|| {
        let (rows, producers, consumers) = (20_000, 2, 2);
        let buffer = buffer(64, &Choice::default());
        let mut all = thread::scope(|scope| {
            let pushing: Vec<_> = (0..producers)
                .map(|producer| {
                    let buffer = &buffer;
                    scope.spawn(move || {
                        let mut first = 0;
                        while first < rows {
                            let count = (first % 301 + 1).min(rows - first);
                            let values = numbered(producer * rows + first, count, 2);
                            let x = Tensor::new(&values, &[count, 2]).unwrap();
                            assert_eq!(buffer.push(&x.into(), Wait::Forever).unwrap(), count);
                            first += count;
                        }
                    })
                })
                .collect();
            let taking: Vec<_> = (0..consumers)
                .map(|consumer| {
                    let buffer = &buffer;
                    scope.spawn(move || {
                        let mut rows = Rows::new(buffer.layout(), 17 + consumer).unwrap();
                        let mut all = Vec::new();
                        loop {
                            match buffer.take(&mut rows, Wait::Forever).unwrap() {
                                Taken::Rows(_) => all.extend(numbers(&rows)),
                                Taken::End => return all,
                                Taken::NotYet => panic!("it was told to wait"),
                            }
                        }
                    })
                })
                .collect();
            pushing.into_iter().for_each(|thread| thread.join().unwrap());
            buffer.close().unwrap();
            taking.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<u64>>()
        });
        all.sort_unstable();
        assert!(all.into_iter().eq(0..(producers * rows) as u64));
    });
}

/// Lets another thread get to where it waits.
fn meanwhile() {
    thread::sleep(Duration::from_millis(30));
}

#[test]
fn closing_ends_all_waiting() {
    in_time(|| {
        let buffer = buffer(10, &Choice::default());
        let values = numbered(0, 25, 2);
        let x = Tensor::new(&values, &[25, 2]).unwrap();
        thread::scope(|scope| {
            // Nobody takes: the eleventh row waits until it is told that it waits for nothing.
            let pushing = scope.spawn(|| buffer.push(&x.into(), Wait::Forever));
            meanwhile();
            buffer.close().unwrap();
            assert_eq!(pushing.join().unwrap().unwrap(), 10);
        });
        assert_eq!(buffer.push(&x.into(), Wait::Forever).unwrap_err().status(), Status::BadState);

        let buffer = crate::buffer::buffer(10, &Choice::default());
        thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let mut rows = Rows::new(buffer.layout(), 5).unwrap();
                (buffer.take(&mut rows, Wait::Forever).unwrap(), buffer.take(&mut rows, Wait::Forever).unwrap())
            });
            meanwhile();
            let three = Tensor::new(&values[..6], &[3, 2]).unwrap();
            assert_eq!(buffer.push(&three.into(), Wait::Forever).unwrap(), 3);
            buffer.close().unwrap();
            assert_eq!(taking.join().unwrap(), (Taken::Rows(3), Taken::End));
        });
    });
}

#[test]
fn waiting_has_an_end_where_one_is_set() {
    in_time(|| {
        let buffer = buffer(4, &Choice::default());
        let short = Wait::AtMost(Duration::from_millis(20));
        let begun = Instant::now();
        let mut rows = Rows::new(buffer.layout(), 2).unwrap();
        assert_eq!(buffer.take(&mut rows, short).unwrap(), Taken::NotYet);
        let values = numbered(0, 6, 2);
        let x = Tensor::new(&values, &[6, 2]).unwrap();
        assert_eq!(buffer.push(&x.into(), short).unwrap(), 4);
        assert!(begun.elapsed() >= Duration::from_millis(40));
        assert_eq!(buffer.take(&mut rows, Wait::AtMost(Duration::MAX)).unwrap(), Taken::Rows(2));
        // What comes in time is had.
        thread::scope(|scope| {
            let taking = scope.spawn(|| {
                let mut rows = Rows::new(buffer.layout(), 2).unwrap();
                let long = Wait::AtMost(Duration::from_secs(60));
                [buffer.take(&mut rows, long).unwrap(), buffer.take(&mut rows, long).unwrap()]
            });
            meanwhile();
            assert_eq!(buffer.push(&x.into(), Wait::AtMost(Duration::from_secs(60))).unwrap(), 6);
            assert_eq!(taking.join().unwrap(), [Taken::Rows(2); 2]);
        });
    });
}

#[test]
fn a_snapshot_may_be_taken_while_others_work() {
    in_time(|| {
        let buffer = buffer(64, &Choice::default());
        let dir = tempfile::tempdir().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for first in (0..20_000).step_by(10) {
                    let values = numbered(first, 10, 2);
                    buffer.push(&Tensor::new(&values, &[10, 2]).unwrap().into(), Wait::Forever).unwrap();
                }
                buffer.close().unwrap();
            });
            scope.spawn(|| {
                let mut rows = Rows::new(buffer.layout(), 32).unwrap();
                while buffer.take(&mut rows, Wait::Forever).unwrap() != Taken::End {}
                done.store(true, Ordering::SeqCst);
            });
            let file = dir.path().join("buffer");
            while !done.load(Ordering::SeqCst) {
                buffer.save(&file).unwrap();
                let stats = sae::training::data::Buffer::restore(&file, None).unwrap().stats().unwrap();
                assert_eq!(stats.pushed, stats.taken + stats.held as u64);
            }
        });
    });
}
