//! The ranks of a run as the library uses them: typed, cut into calls of a bounded size, and lost for good once one call failed.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytemuck::{Pod, Zeroable};

use super::{Axis, Collective, MAX_BYTES};
use crate::error::{Error, Result, Status, fail};
use crate::tensor::Array;

/// Bytes of each rank that are gathered at once to be folded here.
const FOLDED_BYTES: usize = 1 << 20;

/// Where this process stands among those of its run, and how it reaches them. Cloned, it is the same.
#[derive(Clone, Default)]
pub struct Ranks(Option<Arc<Many>>);

struct Many {
    collective: Box<dyn Collective>,
    rank: usize,
    data: usize,
    latents: usize,
    /// Why the others cannot be reached any more.
    lost: OnceLock<Error>,
    /// What others gave, to be folded.
    scratch: Mutex<Array<u64>>,
}

impl Ranks {
    /// One process: nobody to talk to.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Rank `rank` of a grid: `data` rows of `latents` ranks each, row after row.
    pub fn new(collective: Box<dyn Collective>, rank: usize, data: usize, latents: usize) -> Result<Self> {
        let size = data.checked_mul(latents).filter(|size| (1..=1 << 20).contains(size));
        let Some(size) = size else {
            return fail!(InvalidArgument, "data_ranks {data} times latent_ranks {latents} must be between 1 and 2^20");
        };
        if rank >= size {
            return fail!(InvalidArgument, "rank {rank} is not below data_ranks {data} times latent_ranks {latents}");
        }
        if size == 1 {
            return Ok(Self::alone());
        }
        let scratch = Mutex::new(Array::zeroed(0)?);
        Ok(Self(Some(Arc::new(Many { collective, rank, data, latents, lost: OnceLock::new(), scratch }))))
    }

    /// How many ranks there are along an axis.
    pub fn count(&self, axis: Axis) -> usize {
        self.0.as_ref().map_or(1, |many| many.count(axis))
    }

    /// This process's place along an axis.
    pub fn place(&self, axis: Axis) -> usize {
        self.0.as_ref().map_or(0, |many| many.place(axis))
    }

    /// This process's number: its place along the axis of data, times the ranks along that of latents, plus its place there.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |many| many.rank)
    }

    /// Whether there is but one.
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// Of `n` latents those of the rank in some place: equal parts, as far as that goes.
    pub fn part_of(&self, n: usize, place: usize) -> Range<usize> {
        let count = self.count(Axis::Latents) as u128;
        let start = |place: usize| (n as u128 * place as u128 / count) as usize;
        start(place)..start(place + 1)
    }

    /// Of `n` latents those of this rank.
    pub fn part(&self, n: usize) -> Range<usize> {
        self.part_of(n, self.place(Axis::Latents))
    }

    /// The error by which the others were lost, if they were.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.as_ref().and_then(|many| many.lost.get()) {
            Some(lost) => Err(lost.clone()),
            None => Ok(()),
        }
    }

    /// What this rank did between calls. If it failed, the ranks are out of step for good.
    pub(crate) fn settle<T>(&self, result: Result<T>) -> Result<T> {
        if let (Err(error), Some(many)) = (&result, &self.0) {
            let message = format!("this rank failed while others went on: {}", error.message());
            many.lost.get_or_init(|| lost(error.status(), &message));
        }
        result
    }

    /// Sums over an axis.
    pub(crate) fn sum(&self, axis: Axis, values: &mut [f32]) -> Result<()> {
        let Some(many) = self.beyond(axis) else { return Ok(()) };
        for values in values.chunks_mut(MAX_BYTES / size_of::<f32>()) {
            many.sum(axis, values)?;
        }
        Ok(())
    }

    /// Sums over an axis, in the order of ranks.
    pub(crate) fn sum_f64(&self, axis: Axis, values: &mut [f64]) -> Result<()> {
        self.fold(axis, values, |a, b| a + b)
    }

    /// Sums over an axis.
    pub(crate) fn sum_u64(&self, axis: Axis, values: &mut [u64]) -> Result<()> {
        self.fold(axis, values, u64::saturating_add)
    }

    /// The least of each over an axis; of numbers above [`i64::MAX`] that one.
    pub(crate) fn min(&self, axis: Axis, values: &mut [u64]) -> Result<()> {
        let Some(many) = self.beyond(axis) else { return Ok(()) };
        values.iter_mut().for_each(|value| *value = (*value).min(i64::MAX as u64));
        let values: &mut [i64] = bytemuck::cast_slice_mut(values);
        for values in values.chunks_mut(MAX_BYTES / size_of::<i64>()) {
            match many.call("all_reduce_min", axis, |c| c.all_reduce_min(axis, values))? {
                Some(()) => {}
                None => many.fold(axis, values, i64::min)?,
            }
        }
        Ok(())
    }

    /// What each rank of an axis has, in their order. At most [`MAX_BYTES`] of each.
    pub(crate) fn gather<T: Pod>(&self, axis: Axis, mine: &[T], all: &mut [T]) -> Result<()> {
        match self.beyond(axis) {
            Some(many) => many.gather(axis, mine, all),
            None => {
                all.copy_from_slice(mine);
                Ok(())
            }
        }
    }

    /// What each rank of the whole grid has, in their order.
    pub(crate) fn gather_all<T: Pod>(&self, mine: T) -> Result<Vec<T>> {
        let mut row = vec![mine; self.count(Axis::Latents)];
        self.gather(Axis::Latents, &[mine], &mut row)?;
        let mut all = row.repeat(self.count(Axis::Data));
        self.gather(Axis::Data, &row, &mut all)?;
        Ok(all)
    }

    /// What the rank in place `root` of an axis has.
    pub(crate) fn broadcast<T: Pod>(&self, axis: Axis, root: usize, values: &mut [T]) -> Result<()> {
        let Some(many) = self.beyond(axis) else { return Ok(()) };
        for bytes in bytemuck::cast_slice_mut(values).chunks_mut(MAX_BYTES) {
            if many.call("broadcast", axis, |c| c.broadcast(axis, root, bytes))?.is_some() {
                continue;
            }
            for bytes in bytes.chunks_mut(FOLDED_BYTES) {
                many.with_all(axis, bytes, |all, bytes| {
                    bytes.copy_from_slice(&all[root * bytes.len()..][..bytes.len()]);
                })?;
            }
        }
        Ok(())
    }

    /// What rank 0 has.
    pub(crate) fn broadcast_all<T: Pod>(&self, values: &mut [T]) -> Result<()> {
        self.broadcast(Axis::Data, 0, values)?;
        self.broadcast(Axis::Latents, 0, values)
    }

    /// What rank 0 has, of any length.
    pub(crate) fn broadcast_bytes(&self, bytes: &mut Vec<u8>) -> Result<()> {
        let mut len = [bytes.len() as u64];
        self.broadcast_all(&mut len)?;
        bytes.resize(len[0] as usize, 0);
        self.broadcast_all(bytes)
    }

    /// Goes on if all ranks can: where one of them failed, all do, and are in step all the same.
    pub(crate) fn agree<T>(&self, result: Result<T>) -> Result<T> {
        self.agree_on(result, "word", 0)
    }

    /// [`Self::agree`], and refuses if a rank has another `word` for `what`.
    pub(crate) fn agree_on<T>(&self, result: Result<T>, what: &str, word: u64) -> Result<T> {
        if self.is_alone() {
            return result;
        }
        let all = self.gather_all(Verdict::of(&result, word))?;
        let value = result?;
        for (rank, verdict) in all.iter().enumerate() {
            if let Some(error) = verdict.error() {
                return Err(error.at(format!("rank {rank}")));
            }
        }
        match all.iter().position(|verdict| verdict.word != all[0].word) {
            Some(rank) => {
                fail!(InvalidArgument, "{what}: rank {rank} has another than rank 0; all ranks need the same")
            }
            None => Ok(value),
        }
    }

    /// Folds numbers over an axis in the order of ranks.
    fn fold<T: Pod>(&self, axis: Axis, values: &mut [T], by: fn(T, T) -> T) -> Result<()> {
        self.beyond(axis).map_or(Ok(()), |many| many.fold(axis, values, by))
    }

    /// Those there are to talk to along an axis.
    fn beyond(&self, axis: Axis) -> Option<&Many> {
        self.0.as_deref().filter(|many| many.count(axis) > 1)
    }
}

impl Many {
    fn count(&self, axis: Axis) -> usize {
        match axis {
            Axis::Data => self.data,
            Axis::Latents => self.latents,
        }
    }

    fn place(&self, axis: Axis) -> usize {
        match axis {
            Axis::Data => self.rank / self.latents,
            Axis::Latents => self.rank % self.latents,
        }
    }

    /// Has the host make a call. Once one failed there are no more.
    fn call(
        &self,
        name: &str,
        axis: Axis,
        make: impl FnOnce(&dyn Collective) -> Option<Result<()>>,
    ) -> Result<Option<()>> {
        if let Some(lost) = self.lost.get() {
            return Err(lost.clone());
        }
        make(self.collective.as_ref()).transpose().map_err(|error| {
            let place = format!("{name} over the axis of {}", axis.name());
            self.lost.get_or_init(|| lost(Status::Collective, &format!("{place}: {}", error.message()))).clone()
        })
    }

    fn gather<T: Pod>(&self, axis: Axis, mine: &[T], all: &mut [T]) -> Result<()> {
        debug_assert!(size_of_val(mine) <= MAX_BYTES && all.len() == mine.len() * self.count(axis));
        if mine.is_empty() {
            return Ok(());
        }
        let (mine, all) = (bytemuck::cast_slice(mine), bytemuck::cast_slice_mut(all));
        self.call("all_gather", axis, |c| Some(c.all_gather(axis, mine, all))).map(drop)
    }

    /// At most [`MAX_BYTES`].
    fn sum(&self, axis: Axis, values: &mut [f32]) -> Result<()> {
        if self.call("all_reduce_sum", axis, |c| c.all_reduce_sum(axis, values))?.is_some() {
            return Ok(());
        }
        let count = self.count(axis);
        let each = values.len() / count;
        let (even, rest) = values.split_at_mut(each * count);
        let mut part = Array::<f32>::zeroed(each)?;
        if each > 0 && self.call("reduce_scatter_sum", axis, |c| c.reduce_scatter_sum(axis, even, &mut part))?.is_some()
        {
            self.gather(axis, &part, even)?;
            return self.fold(axis, rest, |a, b| a + b);
        }
        self.fold(axis, values, |a, b| a + b)
    }

    fn fold<T: Pod>(&self, axis: Axis, values: &mut [T], by: fn(T, T) -> T) -> Result<()> {
        for values in values.chunks_mut(FOLDED_BYTES / size_of::<T>()) {
            self.with_all(axis, values, |all, values| {
                for (i, value) in values.iter_mut().enumerate() {
                    let mut ranks = all[i..].iter().step_by(all.len() / self.count(axis)).copied();
                    *value = ranks.next().map_or(*value, |first| ranks.fold(first, by));
                }
            })?;
        }
        Ok(())
    }

    /// Gathers what all ranks of an axis have.
    fn with_all<T: Pod>(&self, axis: Axis, mine: &mut [T], body: impl FnOnce(&[T], &mut [T])) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = size_of_val(mine) * self.count(axis);
        if scratch.len() * size_of::<u64>() < bytes {
            *scratch = Array::zeroed(bytes.div_ceil(size_of::<u64>()))?;
        }
        let all = bytemuck::cast_slice_mut(&mut bytemuck::cast_slice_mut::<u64, u8>(&mut scratch)[..bytes]);
        self.gather(axis, mine, all)?;
        body(all, mine);
        Ok(())
    }
}

fn lost(status: Status, message: &str) -> Error {
    Error::new(
        status,
        format!("{message}; the ranks are apart, so this trainer serves no more: resume from a checkpoint"),
    )
}

/// How a rank came to a decision that all share.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Verdict {
    word: u64,
    status: i32,
    len: u32,
    message: [u8; 256],
}

/// What statuses a rank may tell of.
const STATUSES: [Status; 12] = [
    Status::InvalidArgument,
    Status::InvalidTensor,
    Status::Unsupported,
    Status::Io,
    Status::Format,
    Status::OutOfMemory,
    Status::NoDevice,
    Status::DeviceFault,
    Status::NotFinite,
    Status::BadState,
    Status::Internal,
    Status::Collective,
];

impl Verdict {
    fn of<T>(result: &Result<T>, word: u64) -> Self {
        let mut verdict = Self { word, ..Self::zeroed() };
        if let Err(error) = result {
            let text = error.message();
            let most = text.len().min(verdict.message.len());
            let len = (0..=most).rev().find(|&len| text.is_char_boundary(len)).unwrap_or(0);
            verdict.message[..len].copy_from_slice(&text.as_bytes()[..len]);
            (verdict.status, verdict.len) = (error.status() as i32, len as u32);
        }
        verdict
    }

    fn error(&self) -> Option<Error> {
        if self.status == 0 {
            return None;
        }
        let status = STATUSES.into_iter().find(|status| *status as i32 == self.status).unwrap_or(Status::Internal);
        let message = self.message.get(..self.len as usize).unwrap_or(&self.message);
        Some(Error::new(status, String::from_utf8_lossy(message)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::threads;
    use std::time::Duration;

    fn on_grid<R: Send>(data: usize, latents: usize, body: impl Fn(Ranks) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let body = &body;
            let ranks = threads(data, latents, Duration::from_secs(60)).unwrap().into_iter();
            let all: Vec<_> = ranks.map(|ranks| scope.spawn(move || body(ranks))).collect();
            all.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn parts_cover_all_latents() {
        let ranks = &threads(2, 5, Duration::ZERO).unwrap()[7];
        assert_eq!((ranks.place(Axis::Data), ranks.place(Axis::Latents)), (1, 2));
        for n in [5, 13, 100, usize::MAX] {
            let parts: Vec<_> = (0..5).map(|place| ranks.part_of(n, place)).collect();
            assert_eq!((parts[0].start, parts[4].end, &parts[2]), (0, n, &ranks.part(n)));
            for pair in parts.windows(2) {
                assert!(pair[0].end == pair[1].start && pair[0].len().abs_diff(pair[1].len()) <= 1);
            }
        }
    }

    /// More numbers than one call may have, where they are gathered.
    #[test]
    fn long_arrays_are_cut() {
        let len = 2 * FOLDED_BYTES / size_of::<f32>() + 13;
        on_grid(3, 2, |ranks| {
            let (row, column) = (ranks.place(Axis::Data), ranks.place(Axis::Latents));
            let mut values: Vec<f32> = (0..len).map(|i| (i % 100 + row) as f32).collect();
            ranks.sum(Axis::Data, &mut values).unwrap();
            assert!(values.iter().enumerate().all(|(i, v)| *v == (3 * (i % 100) + 3) as f32));
            let mut least: Vec<u64> = (0..len as u64).map(|i| if i % 3 == row as u64 { i } else { u64::MAX }).collect();
            ranks.min(Axis::Data, &mut least).unwrap();
            assert!(least.iter().enumerate().all(|(i, v)| *v == i as u64));
            let mut bytes = vec![column as u8 + 1; FOLDED_BYTES + 5];
            ranks.broadcast(Axis::Latents, 1, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 2));
            let mut text = if ranks.rank() == 0 { b"of rank 0".to_vec() } else { Vec::new() };
            ranks.broadcast_bytes(&mut text).unwrap();
            assert_eq!(text, b"of rank 0");
            assert_eq!(ranks.gather_all(ranks.rank() as u64).unwrap(), [0, 1, 2, 3, 4, 5]);
        });
    }

    #[test]
    fn what_one_refuses_all_refuse() {
        let errors = on_grid(2, 2, |ranks| {
            let long = "ä".repeat(400);
            let result: Result<()> = if ranks.rank() == 2 { fail!(Io, "{long}") } else { Ok(()) };
            let error = ranks.agree(result).unwrap_err();
            // They are still in step.
            assert_eq!(ranks.agree_on(Ok(7), "word", 1).unwrap(), 7);
            error
        });
        for (rank, error) in errors.iter().enumerate() {
            assert_eq!(error.status(), Status::Io);
            assert!(rank == 2 || error.message().starts_with("rank 2: ää"), "{error}");
        }
    }
}
