//! Ranks that are threads of one process: to try a grid out without a communicator, and for hosts whose processes are threads.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Axis, Collective, Ranks};
use crate::error::{Result, fail};

/// A grid of `data` × `latents` ranks, one for each thread, in the order of ranks. A call fails once another rank was dropped, or
/// did not come within `patience`.
pub fn threads(data: usize, latents: usize, patience: Duration) -> Result<Vec<Ranks>> {
    let members = members(data, latents, patience).into_iter().enumerate();
    members.map(|(rank, member)| Ranks::new(member, rank, data, latents)).collect()
}

/// The communicators of [`threads`], for those who wrap them.
pub fn members(data: usize, latents: usize, patience: Duration) -> Vec<Box<dyn Collective>> {
    let meetings = |count: usize, size: usize| -> Vec<_> { (0..count).map(|_| Arc::new(Meeting::of(size))).collect() };
    let (rows, columns) = (meetings(data, latents), meetings(latents, data));
    let places = (0..data).flat_map(|row| (0..latents).map(move |column| (row, column)));
    let member = |(row, column): (usize, usize)| -> Box<dyn Collective> {
        Box::new(Member { data: (columns[column].clone(), row), latents: (rows[row].clone(), column), patience })
    };
    places.map(member).collect()
}

/// One rank: where it meets the others of each axis, and its place there.
struct Member {
    data: (Arc<Meeting>, usize),
    latents: (Arc<Meeting>, usize),
    patience: Duration,
}

impl Collective for Member {
    fn all_gather(&self, axis: Axis, mine: &[u8], all: &mut [u8]) -> Result<()> {
        let (meeting, place) = match axis {
            Axis::Data => &self.data,
            Axis::Latents => &self.latents,
        };
        let together = meeting.bring(*place, mine, self.patience)?;
        if together.len() != all.len() {
            return fail!(Internal, "ranks brought {} bytes together, not {}", together.len(), all.len());
        }
        all.copy_from_slice(&together);
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        [&self.data.0, &self.latents.0].into_iter().for_each(|meeting| meeting.leave());
    }
}

/// Where the ranks of one axis meet, again and again.
struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parts: Vec<Vec<u8>>,
    arrived: usize,
    /// How many meetings there were, and what the last brought together. It stays until all have come again.
    round: u64,
    together: Arc<Vec<u8>>,
    /// Whether somebody left for good.
    over: bool,
}

impl Meeting {
    fn of(size: usize) -> Self {
        let state = State { parts: vec![Vec::new(); size], ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn bring(&self, place: usize, mine: &[u8], patience: Duration) -> Result<Arc<Vec<u8>>> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let round = state.round;
        state.parts[place] = mine.to_vec();
        state.arrived += 1;
        if state.arrived == state.parts.len() {
            state.together = Arc::new(state.parts.concat());
            (state.arrived, state.round) = (0, round + 1);
            self.changed.notify_all();
        }
        while state.round == round {
            let left = until.saturating_duration_since(Instant::now());
            if state.over || left.is_zero() {
                let why = if state.over { "a rank is gone" } else { "a rank did not come in time" };
                state.over = true;
                self.changed.notify_all();
                return fail!(Collective, "{why}");
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state.together.clone())
    }

    fn leave(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).over = true;
        self.changed.notify_all();
    }
}
