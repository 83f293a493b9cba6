//! What a buffer holds, for one thread at a time: rows go in at the end and come out from anywhere.

use std::collections::HashMap;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::norms::Norms;
use super::options::{BufferOptions, Plan};
use super::rows_in::{Incoming, Push};
use super::store::Store;
use crate::error::{Error, Result, Status};
use crate::tensor::try_vec;
use crate::training::data::random::{below, stream};

/// Norms that must be known before rows are judged by their median.
const ENOUGH: usize = 256;

/// What became of all rows so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    pub(super) pushed: u64,
    pub(super) masked: u64,
    pub(super) not_finite: u64,
    pub(super) sinks: u64,
    pub(super) taken: u64,
    pub(super) unmixed: u64,
}

/// The rows and all that decides which come next.
pub(super) struct Held {
    pub(super) options: BufferOptions,
    pub(super) plan: Plan,
    pub(super) counts: Counts,
    pub(super) closed: bool,
    pub(super) norms: Norms,
    pub(super) rng: ChaCha8Rng,
    store: Store,
    incoming: Incoming,
    /// All slots; the first `len` hold rows.
    order: Vec<u32>,
    len: usize,
    /// Of each slot, if documents are kept.
    documents: Vec<i64>,
    /// Rows held of each document, if that matters.
    of_document: HashMap<i64, u32>,
}

impl Held {
    pub(super) fn new(options: &BufferOptions, plan: Plan) -> Result<Self> {
        let (layout, choice, capacity) = (options.layout, &options.choice, plan.capacity());
        let mut order = try_vec(0, capacity)?;
        order.iter_mut().zip(0..).for_each(|(slot, i)| *slot = i);
        let mut of_document = HashMap::new();
        if choice.counts_documents() {
            // A table with room for twice as many never grows: what was removed is cleared in place.
            let reserved = of_document.try_reserve(2 * capacity);
            reserved.map_err(|_| Error::new(Status::OutOfMemory, format!("no room to count {capacity} documents")))?;
        }
        Ok(Self {
            counts: Counts::default(),
            closed: false,
            norms: Norms::new()?,
            rng: stream(choice.seed, 0),
            store: Store::new(&plan, &options.room, layout.row_bytes())?,
            incoming: Incoming::new(&layout)?,
            order,
            len: 0,
            documents: if choice.documents { try_vec(0, capacity)? } else { Vec::new() },
            of_document,
            options: options.clone(),
            plan,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == self.order.len()
    }

    /// Rows that must be held before any are given.
    pub(super) fn half(&self) -> usize {
        self.order.len().div_ceil(2)
    }

    /// Whether rows are given now.
    pub(super) fn is_ready(&self) -> bool {
        self.closed || self.is_full() || (self.len >= self.half() && self.is_mixed())
    }

    /// Whether enough documents are held.
    fn is_mixed(&self) -> bool {
        !self.options.choice.counts_documents() || self.of_document.len() as u64 >= self.options.choice.min_documents
    }

    /// Takes in rows from the first on, and tells how many: fewer than all where there is no more room.
    pub(super) fn push(&mut self, rows: &Push<'_>) -> Result<usize> {
        let mut count = 0;
        for row in rows.first..rows.x.rows() {
            match self.push_row(rows, row) {
                Ok(true) => count += 1,
                // What was taken before is told first; the next call meets the fault again.
                Ok(false) => break,
                Err(_) if count > 0 => break,
                Err(error) => return Err(error),
            }
        }
        self.counts.pushed += count as u64;
        Ok(count)
    }

    /// Takes in a row, or leaves it out; whether there was room for it.
    fn push_row(&mut self, rows: &Push<'_>, row: usize) -> Result<bool> {
        if rows.is_masked(row) {
            self.counts.masked += 1;
            return Ok(true);
        }
        if self.is_full() {
            return Ok(false);
        }
        self.incoming.read(rows, row);
        // NaN: not finite.
        let norm = self.incoming.norm();
        if norm.is_nan() && !self.options.choice.keep_not_finite {
            self.counts.not_finite += 1;
            return Ok(true);
        }
        let most = self.options.choice.max_norm;
        if most > 0.0 && norm > most {
            self.counts.sinks += 1;
            return Ok(true);
        }
        match !self.awaits_judgement() && self.exceeds_median(norm) {
            true => self.counts.sinks += 1,
            false => self.put(rows.document(row))?,
        }
        if self.options.choice.sink_multiple > 0.0 {
            let awaited = self.awaits_judgement();
            self.norms.add(norm);
            if awaited && !self.awaits_judgement() {
                self.judge();
            }
        }
        Ok(true)
    }

    /// Whether too few norms are known yet to judge by.
    pub(super) fn awaits_judgement(&self) -> bool {
        self.options.choice.sink_multiple > 0.0 && !self.closed && self.norms.len() < ENOUGH.min(self.half())
    }

    fn exceeds_median(&self, norm: f32) -> bool {
        let multiple = self.options.choice.sink_multiple;
        multiple > 0.0 && norm > multiple * self.norms.median()
    }

    /// Holds the row that is ready.
    fn put(&mut self, document: i64) -> Result<()> {
        let slot = self.order[self.len];
        self.store.write(slot, self.incoming.bytes())?;
        if self.options.choice.documents {
            self.documents[slot as usize] = document;
        }
        if self.options.choice.counts_documents() {
            *self.of_document.entry(document).or_insert(0) += 1;
        }
        self.len += 1;
        Ok(())
    }

    /// Judges the rows that came before the median was known. Nothing has been given yet, so that they are held in the order
    /// in which they, and their norms, came.
    fn judge(&mut self) {
        let norms: Vec<f32> = self.norms.in_order().collect();
        for (i, norm) in norms.into_iter().enumerate().rev() {
            if self.exceeds_median(norm) {
                self.counts.sinks += 1;
                self.order.swap(i, self.len - 1);
                self.forget_last(1);
            }
        }
    }

    /// The last rows are held no longer.
    fn forget_last(&mut self, count: usize) {
        for &slot in &self.order[self.len - count..self.len] {
            if self.options.choice.counts_documents() {
                let document = self.documents[slot as usize];
                if let Some(rows) = self.of_document.get_mut(&document) {
                    *rows -= 1;
                    if *rows == 0 {
                        self.of_document.remove(&document);
                    }
                }
            }
        }
        self.len -= count;
    }

    /// Takes no more rows; those that it holds may all be given.
    pub(super) fn close(&mut self) {
        if self.awaits_judgement() {
            self.judge();
        }
        self.closed = true;
    }

    /// Draws rows, each of those held as likely as any other, and hands each, a row of numbers to work in, and its
    /// document to `out`. On failure all of them stay.
    pub(super) fn take(&mut self, count: usize, mut out: impl FnMut(usize, &[u8], &mut [f32], i64)) -> Result<()> {
        let unmixed = !self.is_mixed();
        for taken in 0..count {
            let left = self.len - taken;
            self.order.swap(below(&mut self.rng, left as u64) as usize, left - 1);
        }
        for taken in 0..count {
            let slot = self.order[self.len - 1 - taken];
            let document = self.documents.get(slot as usize).copied().unwrap_or(0);
            out(taken, self.store.read(slot)?, self.incoming.scratch(), document);
        }
        self.forget_last(count);
        self.counts.taken += count as u64;
        self.counts.unmixed += u64::from(unmixed && count > 0 && !self.closed);
        Ok(())
    }

    /// Hands each held row to `out`, in the order that decides what comes next.
    pub(super) fn each(&mut self, mut out: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        (0..self.len).try_for_each(|i| out(self.store.read(self.order[i])?))
    }

    /// The documents of the held rows, in the same order; none if they are not kept.
    pub(super) fn each_document(&self) -> impl Iterator<Item = i64> {
        let kept = if self.options.choice.documents { self.len } else { 0 };
        self.order[..kept].iter().map(|&slot| self.documents[slot as usize])
    }

    /// Holds a row as it was held before, behind those that were put back already.
    pub(super) fn put_back(&mut self, row: &[u8], document: i64) -> Result<()> {
        self.incoming.set(row);
        self.put(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Tensor};
    use crate::training::data::{Buffer, Layout, Position, Room, Rows, Source, Taken, Wait};

    /// Room for four rows of two numbers: two in memory and two in a file.
    fn half_spilled(folder: &std::path::Path) -> Held {
        let mut options = BufferOptions::new(Layout::vectors(2, DType::F32));
        let fixed = Plan::new(&options, Some(2)).unwrap().memory().memory_bytes - 2 * 12;
        let spill_folder = Some(folder.to_owned());
        options.room = Room { memory_bytes: fixed + 2 * 12 + 2 * 4, spill_bytes: 16, spill_folder };
        options.choice.sink_multiple = 100.0;
        let plan = Plan::new(&options, None).unwrap();
        assert_eq!((plan.memory_rows, plan.spill_rows), (2, 2));
        Held::new(&options, plan).unwrap()
    }

    /// A file that cannot be written, nor read.
    #[cfg(target_os = "linux")]
    fn full_disk() -> std::fs::File {
        std::fs::File::options().write(true).open("/dev/full").unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = half_spilled(dir.path());
        let values: Vec<f32> = (0..8).map(|i| i as f32).collect();
        let rows = Push::from(Tensor::new(&values, &[4, 2]).unwrap());
        let working = held.store.replace_file(full_disk());
        assert_eq!(held.push(&rows).unwrap(), 2, "what is in memory is taken");
        let rest = Push { first: 2, ..rows };
        for _ in 0..2 {
            let error = held.push(&rest).unwrap_err();
            assert!(error.status() == Status::Io && error.message().contains("spill file"), "{error}");
            assert_eq!((held.len(), held.norms.len(), held.counts.pushed), (2, 2, 2));
        }
        held.store.replace_file(working);
        assert_eq!(held.push(&rest).unwrap(), 2);
        // Reading fails: all rows stay.
        let working = held.store.replace_file(full_disk());
        let error = held.take(4, |_, _, _, _| ()).unwrap_err();
        assert!(error.message().contains("spill file"), "{error}");
        assert_eq!((held.len(), held.counts.taken), (4, 0));
        held.store.replace_file(working);
        let mut found = Vec::new();
        held.take(4, |_, row, _, _| found.push(row[..4].to_vec())).unwrap();
        found.sort_by_key(|bytes| f32::from_le_bytes(*bytes.first_chunk().unwrap()) as u32);
        assert_eq!(found, [0f32, 2.0, 4.0, 6.0].map(f32::to_le_bytes));
    }

    /// Rows `[i, i]` from 1 on, so many of them; before some are given, something happens.
    struct Counted<F> {
        position: Position,
        len: u64,
        before: F,
    }

    impl<F: FnMut() + Send> Source for Counted<F> {
        fn layout(&self) -> Layout {
            Layout::vectors(2, DType::F32)
        }

        fn len(&self) -> Option<u64> {
            Some(self.len)
        }

        fn next(&mut self, rows: &mut Rows) -> Result<usize> {
            (self.before)();
            rows.clear();
            while rows.len() < rows.room() && self.position.row < self.len {
                rows.push(bytemuck::cast_slice(&[self.position.row as f32 + 1.0; 2]), 0);
                self.position.row += 1;
            }
            Ok(rows.len())
        }

        fn position(&self) -> Position {
            self.position.clone()
        }

        fn seek(&mut self, position: &Position) -> Result<()> {
            self.position = position.clone();
            Ok(())
        }
    }

    /// The first number of each row that is left in a closed buffer, in order.
    fn left(buffer: &Buffer) -> Vec<f32> {
        let (mut rows, mut all) = (Rows::new(buffer.layout(), 2).unwrap(), Vec::new());
        while let Taken::Rows(_) = buffer.take(&mut rows, Wait::No).unwrap() {
            all.extend((0..rows.len()).map(|i| rows.tensor().row::<f32>(i)[0]));
        }
        all.sort_by(f32::total_cmp);
        all
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_fills_while_the_disk_is_full_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for at_once in 1..6 {
            let buffer = Buffer::of(half_spilled(dir.path()));
            let mut source = Counted { position: Position::default(), len: 4, before: || () };
            let mut rows = Rows::new(buffer.layout(), at_once).unwrap();
            let replace = |file| buffer.lock().unwrap().store.replace_file(file);
            let working = replace(full_disk());
            for _ in 0..2 {
                let error = buffer.fill(&mut source, &mut rows).unwrap_err();
                assert!(error.message().contains("spill file"), "{error}");
                assert_eq!((source.position.row, buffer.stats().unwrap().held), (2, 2));
            }
            replace(working);
            buffer.fill(&mut source, &mut rows).unwrap();
            assert_eq!((source.position.row, buffer.stats().unwrap().held), (4, 4));
            buffer.close().unwrap();
            assert_eq!(left(&buffer), [1.0, 2.0, 3.0, 4.0]);
        }
    }

    #[test]
    fn what_fills_while_another_closes_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let buffer = Buffer::of(half_spilled(dir.path()));
        let mut rows = Rows::new(buffer.layout(), 1).unwrap();
        let mut calls = 0;
        let before = || {
            calls += 1;
            if calls == 4 {
                buffer.close().unwrap();
            }
        };
        let mut source = Counted { position: Position::default(), len: 4, before };
        buffer.fill(&mut source, &mut rows).unwrap();
        assert_eq!(source.position.row, 3);
        assert_eq!(left(&buffer), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn documents_are_counted_in_the_room_there_is() {
        let mut options = BufferOptions::new(Layout::vectors(1, DType::F32));
        (options.choice.documents, options.choice.min_documents, options.room.memory_bytes) = (true, 2, 100_000);
        let mut held = Held::new(&options, Plan::new(&options, None).unwrap()).unwrap();
        let (room, capacity) = (held.of_document.capacity(), held.plan.capacity());
        assert!(room >= 2 * capacity);
        for round in 0..50 {
            let count = capacity - held.len();
            let documents: Vec<i64> = (0..count as i64).map(|i| round * 1_000_000 + i).collect();
            let x = vec![1.0; count];
            let x = Tensor::new(&x, &[count, 1]).unwrap();
            assert_eq!(held.push(&Push { documents: Some(&documents), ..x.into() }).unwrap(), count);
            held.take(capacity / 2, |_, _, _, _| ()).unwrap();
            assert_eq!(held.of_document.len(), held.len());
        }
        // A table counts what was taken out as no room until it sorts itself out in place, so that the figure may be lower for a while.
        assert!(held.of_document.capacity() <= room);
    }
}
