//! What runs write, read by other means than wrote it.

use std::fs;
use std::path::Path;

use sae::training::run::{Evaluation, TrainingRun};

use crate::support::{finish, plan, records};

/// A scalar of an event file.
#[derive(Debug, PartialEq)]
struct Scalar {
    step: u64,
    tag: String,
    value: f32,
}

/// The fields of a protobuf message: number, and value as bytes (of a varint: its eight little-endian ones).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (&first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first < 0x80 {
                break;
            }
        }
        value
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                all.push((key >> 3, varint(&mut bytes).to_le_bytes().to_vec()));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            wire => panic!("wire type {wire}"),
        };
        let (value, rest) = bytes.split_at(length);
        all.push((key >> 3, value.to_vec()));
        bytes = rest;
    }
    all
}

/// CRC-32C by its definition, bit for bit, with the mask of record files.
fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        for bit in 0..8 {
            let out = (crc ^ u32::from(byte >> bit)) & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 * out);
        }
    }
    let crc = !crc;
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn events(path: &Path) -> Vec<Scalar> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut scalars = Vec::new();
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at(length);
        rest = after;
        (taken, after.is_empty())
    };
    let mut version = None;
    loop {
        let length = take(8).0;
        assert_eq!(take(4).0, checksum(length).to_le_bytes());
        let message = take(u64::from_le_bytes(length.try_into().unwrap()) as usize).0;
        let (crc, end) = take(4);
        assert_eq!(crc, checksum(message).to_le_bytes());
        let event = fields(message);
        let time = f64::from_le_bytes(event.iter().find(|(n, _)| *n == 1).unwrap().1.as_slice().try_into().unwrap());
        assert!(time > 1.7e9, "{time}");
        let step =
            event.iter().find(|(n, _)| *n == 2).map_or(0, |(_, v)| u64::from_le_bytes(v[..].try_into().unwrap()));
        version = version.or(event.iter().find(|(n, _)| *n == 3).map(|(_, text)| text.clone()));
        for (_, summary) in event.iter().filter(|(n, _)| *n == 5) {
            for (_, value) in fields(summary) {
                let value = fields(&value);
                let tag = String::from_utf8(value[0].1.clone()).unwrap();
                scalars.push(Scalar { step, tag, value: f32::from_le_bytes(value[1].1[..].try_into().unwrap()) });
            }
        }
        if end {
            break;
        }
    }
    assert_eq!(version.unwrap(), b"brain.Event:2");
    scalars
}

#[test]
fn both_streams_tell_every_step_once_after_resumes_too() {
    let dir = tempfile::tempdir().unwrap();
    // Left twice between two checkpoints, after what is then told again.
    for steps in [17, 9] {
        let mut run = TrainingRun::resume(plan(dir.path(), 1600)).unwrap();
        for _ in 0..steps {
            run.advance().unwrap().unwrap();
        }
    }
    finish(&mut TrainingRun::resume(plan(dir.path(), 1600)).unwrap());
    for name in ["small", "large"] {
        let records = records(dir.path(), name);
        assert_eq!(records.iter().map(|record| record.step).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
        let events = events(&dir.path().join(name).join("events.out.tfevents"));
        let of = |tag: &str| events.iter().filter(|s| s.tag == tag).map(|s| (s.step, s.value)).collect::<Vec<_>>();
        assert_eq!(of("loss"), records.iter().map(|r| (r.step, r.loss as f32)).collect::<Vec<_>>());
        assert_eq!(of("lr"), records.iter().map(|r| (r.step, r.lr as f32)).collect::<Vec<_>>());
        assert_eq!(of("grad_norm"), records.iter().map(|r| (r.step, r.grad_norm as f32)).collect::<Vec<_>>());
        assert_eq!(of("dead"), records.iter().map(|r| (r.step, r.dead as f32)).collect::<Vec<_>>());
        let text = fs::read_to_string(dir.path().join(name).join("evaluation.jsonl")).unwrap();
        let evaluations: Vec<Evaluation> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [20, 40, 50]);
        let fvu = evaluations.iter().map(|e| (e.step, e.metrics.fvu as f32)).collect::<Vec<_>>();
        assert_eq!(of("held_out/fvu"), fvu);
        assert!(evaluations.iter().all(|e| e.metrics.rows == 64 && e.metrics.l0 > 0.0));
    }
}

#[test]
fn records_are_what_the_trainer_tells_and_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = TrainingRun::start(plan(dir.path(), 1600)).unwrap();
    let mut told = Vec::new();
    while let Some(records) = run.advance().unwrap() {
        told.push(records.to_vec());
    }
    for (i, record) in records(dir.path(), "large").iter().enumerate() {
        let told = &told[i][1];
        assert_eq!((record.loss, record.fvu, record.dead), (told.loss, told.fvu, told.dead));
        assert!((record.loss - record.mse - record.aux - record.sparsity).abs() < 1e-12, "{record:?}");
        assert!(told.tokens_per_second > 0.0 && told.elapsed > 0.0 && record.grad_norm > 0.0 && record.lr > 0.0);
    }
    assert!(told.windows(2).all(|pair| pair[0][0].elapsed <= pair[1][0].elapsed));
    let dead = |step: usize| told[step][1].dead;
    assert!(dead(0) == 0 && dead(30) > 0, "the dead are counted: {} {}", dead(0), dead(30));
    assert!(told[30][1].aux > 0.0 && told[49][0].fvu < 0.7 * told[0][0].fvu);
}

#[test]
fn measurements_are_of_what_is_exported() {
    use sae::evaluation::metrics::Meter;
    use std::sync::Arc;
    let dir = tempfile::tempdir().unwrap();
    let plan_of = || plan(dir.path(), 640);
    let held_out = plan_of().held_out.unwrap();
    let mut run = TrainingRun::start(plan_of()).unwrap();
    while run.advance().unwrap().is_some() {}
    let measured = run.evaluate().unwrap();
    for ((name, sae), measured) in run.export().unwrap().into_iter().zip(&measured) {
        let mut meter = Meter::new(&Arc::new(sae), &sae::backend::Pool::serial()).unwrap();
        for row in 0..held_out.len() {
            let x = held_out.tensor().row::<f32>(row);
            meter.push(x, x).unwrap();
        }
        let metrics = meter.finish().unwrap();
        assert_eq!((&name, &metrics), (&measured.name, &measured.evaluation.metrics));
        let active: u64 = measured.active_rows.iter().sum();
        assert_eq!(active as f64 / 64.0, metrics.l0);
        assert_eq!(measured.active_rows.iter().filter(|&&rows| rows == 0).count(), metrics.dead);
    }
}
