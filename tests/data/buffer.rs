//! The shuffle buffer: every row comes out once, well mixed, in bounded memory, and the same again after a restore.

use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use sae::Status;
use sae::tensor::{DType, Tensor, TensorMut};
use sae::training::data::{
    Buffer, BufferOptions, Choice, Layout, Push, Room, Rows, ShardOptions, Shards, Source, Taken, Wait,
};

use crate::support::{numbered, numbers, shard};

/// Options of a buffer for so many rows, of which some are on disk.
pub(crate) fn options(
    layout: Layout,
    choice: &Choice,
    capacity: usize,
    spill: Option<(&Path, usize)>,
) -> BufferOptions {
    let options = |room| BufferOptions { layout, room, choice: choice.clone() };
    let taken = |bytes| Buffer::memory(&options(Room { memory_bytes: bytes, ..Room::default() })).unwrap();
    let (less, more) = (taken(1 << 20), taken(2 << 20));
    let each = (more.memory_bytes - less.memory_bytes) / (more.capacity - less.capacity) as u64;
    let fixed = less.memory_bytes - less.capacity as u64 * each;
    let row_bytes = layout.row_bytes() as u64;
    let (folder, spilled) = spill.unzip();
    let spilled = spilled.unwrap_or(0) as u64;
    let room = Room {
        memory_bytes: fixed + capacity as u64 * each - spilled * row_bytes,
        spill_bytes: spilled * row_bytes,
        spill_folder: folder.map(Path::to_owned),
    };
    let options = options(room);
    let memory = Buffer::memory(&options).unwrap();
    assert_eq!((memory.capacity, memory.spill_bytes), (capacity, spilled * row_bytes));
    assert_eq!(memory.memory_bytes, options.room.memory_bytes);
    options
}

pub(crate) fn buffer(capacity: usize, choice: &Choice) -> Buffer {
    Buffer::new(&options(Layout::vectors(2, DType::F32), choice, capacity, None)).unwrap()
}

/// Pushes numbered rows `first..first + count` without waiting.
fn push(buffer: &Buffer, first: usize, count: usize) -> usize {
    let values = numbered(first, count, 2);
    buffer.push(&Tensor::new(&values, &[count, 2]).unwrap().into(), Wait::No).unwrap()
}

/// The numbers of rows taken without waiting.
fn take(buffer: &Buffer, count: usize) -> Option<Vec<u64>> {
    let mut rows = Rows::new(buffer.layout(), count).unwrap();
    match buffer.take(&mut rows, Wait::No).unwrap() {
        Taken::Rows(taken) => {
            assert_eq!(taken, rows.len());
            Some(numbers(&rows))
        }
        Taken::NotYet | Taken::End => None,
    }
}

fn sound(buffer: &Buffer) {
    let s = buffer.stats().unwrap();
    assert_eq!(s.pushed, s.masked + s.not_finite + s.sinks + s.taken + s.held as u64, "{s:?}");
    assert!(s.held <= s.capacity);
}

#[test]
fn it_gives_when_half_full_and_takes_what_fits() {
    let buffer = buffer(10, &Choice::default());
    assert_eq!(push(&buffer, 0, 4), 4);
    assert_eq!(take(&buffer, 2), None);
    assert_eq!(push(&buffer, 4, 20), 6, "ten fit");
    assert_eq!(push(&buffer, 10, 1), 0);
    assert_eq!(take(&buffer, 5).unwrap().len(), 5);
    assert_eq!(take(&buffer, 1).unwrap().len(), 1);
    assert_eq!(take(&buffer, 1), None, "four are fewer than half");
    // What was not taken comes again, from where it was left off.
    let values = numbered(10, 8, 2);
    let rows = Push::from(Tensor::new(&values, &[8, 2]).unwrap());
    assert_eq!(buffer.push(&rows, Wait::No).unwrap(), 6);
    assert_eq!(buffer.push(&Push { first: 6, ..rows }, Wait::No).unwrap(), 0);
    assert_eq!(take(&buffer, 5).unwrap().len(), 5);
    assert_eq!(buffer.push(&Push { first: 6, ..rows }, Wait::No).unwrap(), 2);
    sound(&buffer);
    let mut too_many = Rows::new(buffer.layout(), 6).unwrap();
    let error = buffer.take(&mut too_many, Wait::No).unwrap_err();
    assert!(error.message().contains("6 rows at once") && error.message().contains("at most 5"), "{error}");
    // Closed, it gives the rest, to the last row.
    buffer.close().unwrap();
    assert_eq!([5, 2].map(|count| take(&buffer, 5).unwrap().len() - count), [0, 0]);
    let mut rows = Rows::new(buffer.layout(), 5).unwrap();
    assert_eq!(buffer.take(&mut rows, Wait::Forever).unwrap(), Taken::End);
    let values = numbered(0, 1, 2);
    let late = buffer.push(&Tensor::new(&values, &[1, 2]).unwrap().into(), Wait::Forever).unwrap_err();
    assert_eq!(late.status(), Status::BadState);
    buffer.close().unwrap();
}

#[test]
fn every_held_row_is_as_likely_to_come_next() {
    // The first of ten rows, for 20,000 seeds. Chi² of 9 degrees exceeds 27.9 once in a thousand times.
    let mut seen = [0.0f64; 10];
    let mut pairs = [0.0f64; 90];
    for seed in 0..20_000 {
        let buffer = buffer(10, &Choice { seed, ..Choice::default() });
        assert_eq!(push(&buffer, 0, 10), 10);
        let rows = take(&buffer, 2).unwrap();
        let (first, second) = (rows[0] as usize, rows[1] as usize);
        seen[first] += 1.0;
        pairs[first * 9 + second - usize::from(second > first)] += 1.0;
    }
    let chi = |cells: &[f64]| {
        let fair = 20_000.0 / cells.len() as f64;
        cells.iter().map(|n| (n - fair).powi(2) / fair).sum::<f64>()
    };
    assert!(chi(&seen) < 27.9, "{seen:?}");
    // Two at once: all 90 pairs. Chi² of 89 degrees exceeds 136 once in a thousand times.
    assert!(chi(&pairs) < 136.0, "{}", chi(&pairs));
}

#[test]
fn a_stream_is_mixed_over_half_the_buffer() {
    let buffer = buffer(1024, &Choice { seed: 3, ..Choice::default() });
    let (mut next, mut out) = (0, Vec::new());
    while out.len() < 65_536 {
        next += push(&buffer, next, 100);
        while let Some(rows) = take(&buffer, 64) {
            out.extend(rows);
        }
    }
    // A row waits, on average, for as many rows as are held; ages fall off geometrically: with 512 to 612 rows held, the
    // chance of waiting longer than another `held` rows is 1/e.
    let ages: Vec<f64> = out.iter().enumerate().skip(4096).map(|(i, row)| i as f64 - *row as f64 + 512.0).collect();
    let mean = ages.iter().sum::<f64>() / ages.len() as f64;
    assert!((480.0..680.0).contains(&mean), "{mean}");
    let longer = ages.iter().filter(|&&age| age > mean).count() as f64 / ages.len() as f64;
    assert!((longer - (-1.0f64).exp()).abs() < 0.03, "{longer}");
    // Neighbours are torn apart: in a batch of 64 from 512 at least, few come together.
    let together = out.windows(2).filter(|pair| pair[1] == pair[0] + 1).count();
    assert!(together < 65_536 / 200, "{together}");
}

#[test]
fn where_rows_are_held_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let given = |spilled| {
        let spill = (spilled > 0).then_some((dir.path(), spilled));
        let layout = Layout::vectors(2, DType::F16);
        let buffer = Buffer::new(&options(layout, &Choice::default(), 50, spill)).unwrap();
        let (mut next, mut out) = (0, Vec::new());
        for step in 0..200 {
            next += push(&buffer, next, step % 17);
            out.extend(take(&buffer, step % 7 + 1).unwrap_or_default());
        }
        buffer.close().unwrap();
        while let Some(rows) = take(&buffer, 25) {
            out.extend(rows);
        }
        assert_eq!(out.len(), next);
        out
    };
    let all = given(0);
    assert_eq!(given(20), all);
    assert_eq!(given(49), all);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn rows_are_held_in_the_buffers_type() {
    let layout = Layout::vectors(2, DType::F16);
    let made = || Buffer::new(&options(layout, &Choice::default(), 4, None)).unwrap();
    // x + addend, formed in f32 and rounded once.
    let (x, addend) = ([f16::from_f32(2048.0); 2], [1.0f32, 3.0]);
    let buffer = made();
    let rows =
        Push { addend: Some(Tensor::new(&addend, &[1, 2]).unwrap()), ..Tensor::new(&x, &[1, 2]).unwrap().into() };
    assert_eq!(buffer.push(&rows, Wait::No).unwrap(), 1);
    buffer.close().unwrap();
    let mut out = [0.0f32; 2];
    let mut documents = [7];
    let into = |out: &mut [f32], documents| {
        let mut out = TensorMut::new(out, &[1, 2]).unwrap();
        buffer.take_into(&mut out, documents, Wait::No)
    };
    assert!(into(&mut out, Some(&mut documents)).unwrap_err().message().contains("documents: are not kept"));
    assert_eq!(into(&mut out, None).unwrap(), Taken::Rows(1));
    assert_eq!(out, [2048.0, 2052.0]);
    // Rounded to x's type first, it is not what is rounded once.
    let (x, addend) = ([bf16::from_f32(256.0); 2], [1.0f32, 3.0]);
    for (round_sum, sums) in [(false, [257.0, 259.0]), (true, [256.0, 260.0])] {
        let buffer = made();
        let addend = Some(Tensor::new(&addend, &[1, 2]).unwrap());
        let rows = Push { addend, round_sum, ..Tensor::new(&x, &[1, 2]).unwrap().into() };
        assert_eq!(buffer.push(&rows, Wait::No).unwrap(), 1);
        buffer.close().unwrap();
        buffer.take_into(&mut TensorMut::new(&mut out, &[1, 2]).unwrap(), None, Wait::No).unwrap();
        assert_eq!(out, sums);
    }
    // What is too large for f16 is not finite there.
    let buffer = made();
    let values = [65_519.0, 0.0, 65_520.0, 0.0, f32::NAN, 0.0, 0.0, f32::INFINITY];
    assert_eq!(buffer.push(&Tensor::new(&values, &[4, 2]).unwrap().into(), Wait::No).unwrap(), 4);
    let stats = buffer.stats().unwrap();
    assert_eq!((stats.held, stats.not_finite), (1, 3));
    let keeping = Choice { keep_not_finite: true, sink_multiple: 2.0, ..Choice::default() };
    let buffer = Buffer::new(&options(layout, &keeping, 8, None)).unwrap();
    assert_eq!(buffer.push(&Tensor::new(&values, &[4, 2]).unwrap().into(), Wait::No).unwrap(), 4);
    assert_eq!(buffer.stats().unwrap().held, 4);
}

#[test]
fn attention_sinks_and_masked_rows_are_left_out_and_counted() {
    // The first row of every 16 has 50 times the norm of the others, the very first among them.
    let norm = |row: usize| if row.is_multiple_of(16) { 50.0 } else { 1.0 + (row % 7) as f32 / 10.0 };
    let values: Vec<f32> = (0..4096).flat_map(|row| [norm(row), 0.0]).collect();
    for (choice, capacity, at_once) in [
        (Choice { sink_multiple: 10.0, ..Choice::default() }, 5000, 4096),
        (Choice { sink_multiple: 10.0, ..Choice::default() }, 5000, 1),
        (Choice { sink_multiple: 10.0, ..Choice::default() }, 100, 37),
        (Choice { max_norm: 40.0, ..Choice::default() }, 100, 11),
        (Choice { max_norm: 49.0, sink_multiple: 3.0, ..Choice::default() }, 5000, 64),
    ] {
        let buffer = buffer(capacity, &choice);
        let mut first = 0;
        let mut given = 0;
        let mut rows = Rows::new(buffer.layout(), capacity / 2).unwrap();
        let mut check = |rows: &Rows| {
            (0..rows.len()).for_each(|i| assert!(rows.tensor().row::<f32>(i)[0] < 2.0));
            given += rows.len();
        };
        while first < 4096 {
            let last = (first + at_once).min(4096);
            let some = Tensor::new(&values[2 * first..2 * last], &[last - first, 2]).unwrap();
            first += buffer.push(&some.into(), Wait::No).unwrap();
            if buffer.take(&mut rows, Wait::No).unwrap() != Taken::NotYet {
                check(&rows);
            }
        }
        buffer.close().unwrap();
        while buffer.take(&mut rows, Wait::No).unwrap() != Taken::End {
            check(&rows);
        }
        let stats = buffer.stats().unwrap();
        assert_eq!((given, stats.sinks, stats.pushed), (4096 - 256, 256, 4096));
        sound(&buffer);
    }
    // Few rows in all: they are judged when no more come.
    let buffer = buffer(5000, &Choice { sink_multiple: 10.0, ..Choice::default() });
    let mask: Vec<i32> = (0..32).map(|row| i32::from(row % 4 != 1)).collect();
    let some = Push {
        row_mask: Some(Tensor::new(&mask, &[32]).unwrap()),
        ..Tensor::new(&values[..64], &[32, 2]).unwrap().into()
    };
    assert_eq!(buffer.push(&some, Wait::No).unwrap(), 32);
    assert_eq!(buffer.stats().unwrap().held, 24, "none is judged yet");
    buffer.close().unwrap();
    let stats = buffer.stats().unwrap();
    assert_eq!((stats.held, stats.sinks, stats.masked), (22, 2, 8));
}

#[test]
fn batches_wait_for_documents_unless_there_is_no_more_room() {
    let choice = Choice { documents: true, min_documents: 3, ..Choice::default() };
    let buffer = buffer(8, &choice);
    let push = |documents: &[i64]| {
        let values = numbered(0, documents.len(), 2);
        let x = Tensor::new(&values, &[documents.len(), 2]).unwrap();
        buffer.push(&Push { documents: Some(documents), ..x.into() }, Wait::No).unwrap()
    };
    assert_eq!(push(&[1, 1, 1, 2, 2]), 5);
    assert_eq!(take(&buffer, 1), None);
    assert_eq!(push(&[-3]), 1);
    let mut rows = Rows::new(buffer.layout(), 2).unwrap();
    assert_eq!(buffer.take(&mut rows, Wait::No).unwrap(), Taken::Rows(2));
    assert!(rows.documents().iter().all(|document| [1, 2, -3].contains(document)));
    assert_eq!(buffer.stats().unwrap().unmixed, 0);
    // A full buffer gives, and says that it had to.
    let buffer = crate::buffer::buffer(8, &choice);
    let push = |documents: &[i64]| {
        let values = numbered(0, documents.len(), 2);
        let x = Tensor::new(&values, &[documents.len(), 2]).unwrap();
        buffer.push(&Push { documents: Some(documents), ..x.into() }, Wait::No).unwrap()
    };
    assert_eq!(push(&[9; 10]), 8);
    assert_eq!(take(&buffer, 4).unwrap().len(), 4);
    assert_eq!(buffer.stats().unwrap().unmixed, 1);
    assert_eq!(take(&buffer, 1), None, "half full, but of one document");
    assert_eq!(push(&[9, 1, 2]), 3);
    assert_eq!(take(&buffer, 4).unwrap().len(), 4);
    assert_eq!(buffer.stats().unwrap().unmixed, 1);
    sound(&buffer);
    let values = numbered(0, 1, 2);
    let untold = buffer.push(&Tensor::new(&values, &[1, 2]).unwrap().into(), Wait::No).unwrap_err();
    assert!(untold.message().contains("documents: are kept"), "{untold}");
}

#[test]
fn a_source_fills_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = shard(&dir.path().join("a.safetensors"), 0, &[10, 30, 2]);
    let mut source = Shards::open(&ShardOptions { paths: vec![path], ..ShardOptions::default() }).unwrap();
    let buffer = buffer(100, &Choice { documents: true, min_documents: 2, ..Choice::default() });
    let mut at_once = Rows::new(source.layout(), 7).unwrap();
    let mut out = Vec::new();
    let mut rows = Rows::new(buffer.layout(), 16).unwrap();
    loop {
        buffer.fill(&mut source, &mut at_once).unwrap();
        if source.position().given < 300 {
            assert_eq!(buffer.stats().unwrap().held, 100);
        }
        match buffer.take(&mut rows, Wait::No).unwrap() {
            Taken::Rows(_) => {
                out.extend(std::iter::zip(numbers(&rows), rows.documents()).map(|(row, document)| {
                    assert_eq!(row as i64 / 30, *document);
                    row
                }));
            }
            taken => {
                assert_eq!(taken, Taken::End);
                break;
            }
        }
    }
    out.sort_unstable();
    assert!(out.into_iter().eq(0..300));
}

/// What is done to a buffer.
#[derive(Clone, Debug)]
enum Op {
    Push(usize),
    Take(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![(0usize..40).prop_map(Op::Push), (0usize..20).prop_map(Op::Take)];
    prop::collection::vec(op, 0..60)
}

fn choices() -> impl Strategy<Value = Choice> {
    (any::<u64>(), any::<bool>(), 0u64..4, prop::sample::select(vec![0.0, 1.5, 4.0])).prop_map(
        |(seed, documents, min_documents, sink_multiple)| Choice {
            seed,
            documents,
            min_documents: if documents { min_documents } else { 0 },
            sink_multiple,
            ..Choice::default()
        },
    )
}

/// Numbered rows, a few of them masked, not finite or sinks: told by their number.
fn doctored(first: usize, count: usize) -> (Vec<f32>, Vec<i32>, Vec<i64>) {
    let mut values = numbered(first, count, 2);
    for (row, pair) in values.chunks_exact_mut(2).enumerate() {
        match (first + row) % 11 {
            3 => pair[1] = f32::NAN,
            5 => pair[1] = 1e30,
            _ => {}
        }
    }
    let mask = (first..first + count).map(|row| i32::from(row % 13 != 2)).collect();
    (values, mask, (first..first + count).map(|row| row as i64 / 9).collect())
}

/// What a batch holds: its bytes and documents.
type Batch = Option<(Vec<u8>, Vec<i64>)>;

/// Carries out an operation and tells what came of it, to the bit.
fn run(buffer: &Buffer, op: &Op, next: &mut usize) -> (usize, Batch) {
    match *op {
        Op::Push(count) => {
            let (values, mask, documents) = doctored(*next, count);
            let rows = Push {
                row_mask: Some(Tensor::new(&mask, &[count]).unwrap()),
                documents: Some(&documents),
                ..Tensor::new(&values, &[count, 2]).unwrap().into()
            };
            let taken = buffer.push(&rows, Wait::No).unwrap();
            *next += taken;
            (taken, None)
        }
        Op::Take(count) => {
            let mut rows = Rows::new(buffer.layout(), count).unwrap();
            match buffer.take(&mut rows, Wait::No).unwrap() {
                Taken::Rows(taken) => (taken, Some((rows.filled().to_vec(), rows.documents().to_vec()))),
                Taken::NotYet | Taken::End => (0, None),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_row_comes_out_once(ops in ops(), choice in choices(), capacity in 40usize..90, spilled in 0usize..40) {
        let dir = tempfile::tempdir().unwrap();
        let spill = (spilled > 0).then_some((dir.path(), spilled));
        let sinks = choice.sink_multiple > 0.0;
        let documents = choice.documents;
        let buffer = Buffer::new(&options(Layout::vectors(2, DType::F32), &choice, capacity, spill)).unwrap();
        let (mut next, mut out) = (0, Vec::new());
        let mut taken = |batch: Batch| {
            for (row, document) in batch.iter().flat_map(|(rows, documents)| rows.chunks_exact(8).zip(documents)) {
                let number = f32::from_le_bytes(*row.first_chunk().unwrap()) as usize;
                assert_eq!(*document, if documents { number as i64 / 9 } else { 0 });
                assert_eq!(row, bytemuck::cast_slice::<f32, u8>(&doctored(number, 1).0), "bit for bit");
                out.push(number);
            }
        };
        for op in &ops {
            let before = buffer.stats().unwrap();
            let (count, batch) = run(&buffer, op, &mut next);
            sound(&buffer);
            if let Op::Take(wanted) = op {
                prop_assert!(batch.is_none() || count == *wanted && before.held >= capacity.div_ceil(2));
            } else if let Op::Push(wanted) = op {
                prop_assert!(count == *wanted || buffer.stats().unwrap().held == capacity);
            }
            taken(batch);
        }
        buffer.close().unwrap();
        while buffer.stats().unwrap().held > 0 {
            taken(run(&buffer, &Op::Take(20), &mut next).1);
        }
        let stats = buffer.stats().unwrap();
        sound(&buffer);
        out.sort_unstable();
        let kept: Vec<usize> = (0..next).filter(|row| row % 11 != 3 && row % 13 != 2).collect();
        if sinks {
            // Sinks are left out, which leaves no doubt about the others: none comes twice, none is made up.
            let mut all = out.clone();
            all.dedup();
            prop_assert_eq!(all.len(), out.len());
            prop_assert!(out.iter().all(|row| kept.binary_search(row).is_ok()));
            prop_assert_eq!(out.len() as u64 + stats.sinks, kept.len() as u64);
        } else {
            prop_assert_eq!(out, kept);
        }
    }

    #[test]
    fn what_is_restored_goes_on_to_the_same_bits(
        ops in ops(), choice in choices(), spilled in 0usize..30, broken_at in 0usize..60, close in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::vectors(2, DType::F16);
        let made = options(layout, &choice, 50, (spilled > 0).then_some((dir.path(), spilled)));
        let whole = Buffer::new(&made).unwrap();
        let broken_at = broken_at.min(ops.len());
        let mut next = 0;
        for op in &ops[..broken_at] {
            run(&whole, op, &mut next);
        }
        if close && broken_at == ops.len() {
            whole.close().unwrap();
        }
        let (file, again) = (dir.path().join("buffer.safetensors"), dir.path().join("again.safetensors"));
        whole.save(&file).unwrap();
        // As it was held, or all in memory.
        let roomy = options(layout, &made.choice, 50, None).room;
        for room in [if spilled == 0 { None } else { Some(&made.room) }, Some(&roomy)] {
            let restored = Buffer::restore(&file, room).unwrap();
            prop_assert_eq!(restored.stats().unwrap(), whole.stats().unwrap());
            if room != Some(&roomy) {
                restored.save(&again).unwrap();
                prop_assert!(std::fs::read(&file).unwrap() == std::fs::read(&again).unwrap());
                prop_assert_eq!(restored.options().unwrap(), made.clone());
            }
        }
        let restored = Buffer::restore(&file, Some(&roomy)).unwrap();
        let mut follows = next;
        for op in ops[broken_at..].iter().chain(&[Op::Take(25), Op::Take(1)]) {
            if whole.stats().unwrap().closed && matches!(op, Op::Push(_)) {
                continue;
            }
            prop_assert_eq!(run(&whole, op, &mut next), run(&restored, op, &mut follows));
            prop_assert_eq!(whole.stats().unwrap(), restored.stats().unwrap());
        }
    }
}

#[test]
fn broken_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("buffer.safetensors");
    let choice = Choice { documents: true, sink_multiple: 5.0, ..Choice::default() };
    let buffer = buffer(20, &choice);
    for op in [Op::Push(18), Op::Take(4)] {
        run(&buffer, &op, &mut 0);
    }
    buffer.save(&file).unwrap();
    // Its rows can be read like any shard's.
    let source = Shards::open(&ShardOptions {
        paths: vec![file.clone()],
        documents: Some("documents".into()),
        ..ShardOptions::default()
    });
    assert_eq!(source.unwrap().len(), Some(buffer.stats().unwrap().held as u64));

    let whole = std::fs::read(&file).unwrap();
    let refused = |bytes: &[u8], named: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = Buffer::restore(&file, None).err().expect("an error");
        assert!(error.message().contains("buffer.safetensors") && error.message().contains(named), "{error}");
    };
    for len in [0, 7, 100, whole.len() - 1] {
        refused(&whole[..len], "");
    }
    let replaced = |from: &str, to: &str| {
        let at = whole.windows(from.len()).position(|w| w == from.as_bytes()).unwrap_or_else(|| panic!("{from}"));
        assert_eq!(from.len(), to.len());
        [&whole[..at], to.as_bytes(), &whole[at + to.len()..]].concat()
    };
    refused(&replaced("\\\"version\\\":1", "\\\"version\\\":2"), "version 2");
    refused(&replaced("\\\"capacity\\\":20", "\\\"capacity\\\":09"), "sound");
    refused(&replaced("\\\"capacity\\\":20", "\\\"capacity\\\":99"), "have room for 20 rows, the saved buffer for 99");
    refused(&replaced("\\\"capacity\\\":20", "\\\"capacity\\\":01"), "sound");
    refused(&replaced("\\\"capacity\\\":20,", "\\\"capacity\\\":1 ,"), "capacity is 1, and not 2 to 4294967295");
    refused(&replaced("\\\"capacity\\\":20,", "\\\"capacity\\\":0 ,"), "capacity is 0");
    refused(&replaced("\\\"taken\\\":4", "\\\"taken\\\":5"), "do not add up");
    refused(&replaced("\\\"dtype\\\":\\\"f32", "\\\"dtype\\\":\\\"f31"), "f31");
    refused(&replaced("libsae_buffer", "libsae_muffer"), "lack libsae_buffer");
    refused(&replaced("\\\"d\\\":2", "\\\"d\\\":3"), "x must be");
    let missing = Buffer::restore(&dir.path().join("nowhere"), None).err().unwrap();
    assert_eq!(missing.status(), Status::Io);
    let nowhere = buffer.save(&dir.path().join("no such folder").join("buffer")).unwrap_err();
    assert_eq!(nowhere.status(), Status::Io);
}

#[test]
fn a_file_alone_takes_neither_much_memory_nor_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("buffer.safetensors");
    let layout = Layout::vectors(2, DType::F32);
    let refused = |named: &str| {
        let error = Buffer::restore(&file, None).err().unwrap();
        assert!(error.message().contains("buffer.safetensors") && error.message().contains(named), "{error}");
    };
    // A spill file is made where the caller says, or nowhere.
    let spilling = options(layout, &Choice::default(), 20, Some((dir.path(), 10)));
    let buffer = Buffer::new(&spilling).unwrap();
    assert_eq!(push(&buffer, 0, 15), 15);
    buffer.save(&file).unwrap();
    refused("spill_folder: the buffer was saved with a spill file of 80 bytes");
    let roomy = options(layout, &Choice::default(), 20, None).room;
    for room in [spilling.room, roomy] {
        assert_eq!(Buffer::restore(&file, Some(&room)).unwrap().stats().unwrap().held, 15);
    }
    // What a few bytes say is not what is taken.
    let buffer = crate::buffer::buffer(20, &Choice::default());
    buffer.save(&file).unwrap();
    let whole = std::fs::read(&file).unwrap();
    let (header, rest) = whole[8..].split_at(u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize);
    let header = std::str::from_utf8(header).unwrap();
    let memory = format!("\\\"memory_bytes\\\":{}", buffer.options().unwrap().room.memory_bytes);
    assert!(header.contains(&memory) && header.contains("\\\"capacity\\\":20"));
    let write = |capacity: u64, bytes: u64| {
        let header = header.replace(&memory, &format!("\\\"memory_bytes\\\":{bytes}"));
        let header = header.replace("\\\"capacity\\\":20", &format!("\\\"capacity\\\":{capacity}"));
        let len = (header.len() as u64).to_le_bytes();
        std::fs::write(&file, [&len[..], header.as_bytes(), rest].concat()).unwrap();
    };
    write(4_000_000_000, u64::MAX);
    refused("memory_bytes: the saved buffer takes 480000");
    write(1 << 32, u64::MAX);
    refused("capacity is 4294967296, and not 2 to 4294967295");
    write(20, 1);
    refused("not a sound buffer: memory_bytes: 1 are too few");
    write(21, 0);
    assert_eq!(Buffer::restore(&file, None).unwrap().stats().unwrap().capacity, 21);
}

#[test]
fn options_are_named() {
    type Spoil = fn(&mut BufferOptions);
    let table: &[(&str, Spoil)] = &[
        ("d 0", |o| o.layout.d = 0),
        ("0 layers", |o| o.layout.layers = Some(0)),
        ("not i32", |o| o.layout.dtype = DType::I32),
        ("memory_bytes: 1000 are too few", |o| o.room.memory_bytes = 1000),
        ("spill_folder: say where", |o| o.room.spill_bytes = 1),
        ("spill_bytes: is 0", |o| o.room.spill_folder = Some("anywhere".into())),
        ("sink_multiple must be a positive number", |o| o.choice.sink_multiple = -1.0),
        ("sink_multiple must be above 1", |o| o.choice.sink_multiple = 0.5),
        ("max_norm", |o| o.choice.max_norm = f32::NAN),
        ("min_documents is 2, but documents are not kept", |o| o.choice.min_documents = 2),
        ("spill_folder /no such folder", |o| {
            o.room = Room { spill_bytes: 1 << 10, spill_folder: Some("/no such folder".into()), memory_bytes: 1 << 20 }
        }),
    ];
    for (named, spoil) in table {
        let mut options = BufferOptions::new(Layout::vectors(4, DType::F32));
        spoil(&mut options);
        let error = Buffer::new(&options).err().expect("an error");
        assert!(error.message().contains(named), "{named:?} is not said in {error}");
    }
    let mut vast = BufferOptions::new(Layout::vectors(4, DType::F32));
    vast.room.memory_bytes = u64::MAX;
    assert_eq!(Buffer::memory(&vast).unwrap().capacity, u32::MAX as usize);
    let default = Buffer::memory(&BufferOptions::new(Layout::vectors(768, DType::F16))).unwrap();
    assert!(default.memory_bytes <= 1 << 30 && default.memory_bytes > (1 << 30) - 2000, "{default:?}");
}
