//! In which order a session's work comes on the device, whatever streams it is put on.
//!
//! A mark, set behind each call and waited for before the next, makes one sequence of them. Streams are never compared: the
//! handle of one that has ended may be another's, and that of the per-thread default stream is one for many. In a capture,
//! calls wait for each other by a mark of that capture, which is all that a capture may wait for; and setting and waiting for
//! the mark outside of it become parts of the graph, so that each launch of it takes its place in the sequence. Several captures
//! may go on by turns; of those, as many are known as there are marks.

use std::sync::Arc;

use super::driver::{CaptureId, Driver, OwnEvent, StreamHandle, When};
use crate::error::Result;

/// How many captures are told apart from new ones, where they go on by turns.
const CAPTURES: usize = 8;

/// Where in a capture a call comes.
#[derive(Clone, Copy)]
pub(super) struct Captured {
    /// The number of the capture's mark.
    mark: usize,
    /// Whether an earlier call is in it.
    pub joins: bool,
}

/// The captures that hold a call already, each with the number of its mark; the latest first.
pub(super) struct Captures([(Option<CaptureId>, usize); CAPTURES]);

impl Captures {
    pub(super) fn none() -> Self {
        Self(std::array::from_fn(|mark| (None, mark)))
    }

    /// Finds the place of a call in its capture. One that is not known takes the mark of the one that was seen longest ago, and
    /// is known once [`Self::remember`] is told.
    pub(super) fn place(&mut self, capture: CaptureId) -> Captured {
        let known = self.0.iter().position(|(known, _)| *known == Some(capture));
        self.0[..=known.unwrap_or(CAPTURES - 1)].rotate_right(1);
        let (latest, mark) = &mut self.0[0];
        if known.is_none() {
            *latest = None;
        }
        Captured { mark: *mark, joins: known.is_some() }
    }

    /// Of the capture that was placed last: a call is in it.
    pub(super) fn remember(&mut self, capture: CaptureId) {
        self.0[0].0 = Some(capture);
    }
}

/// The marks.
pub(super) struct Sequence {
    /// Behind the work that was given last.
    done: OwnEvent,
    /// Behind the last call of each capture.
    captured: [OwnEvent; CAPTURES],
}

impl Sequence {
    pub(super) fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        let captured = (0..CAPTURES).map(|_| OwnEvent::new(driver)).collect::<Result<Vec<_>>>()?;
        let Ok(captured) = captured.try_into() else { unreachable!("so many were made") };
        Ok(Self { done: OwnEvent::new(driver)?, captured })
    }

    /// Has a stream wait for what comes before a call.
    pub(super) fn begin(&self, inside: &dyn Driver, stream: StreamHandle, captured: Option<Captured>) -> Result<()> {
        match captured {
            None => inside.wait_for(self.done.handle(), stream, When::Now),
            Some(Captured { mark, joins: true }) => inside.wait_for(self.captured[mark].handle(), stream, When::Now),
            Some(Captured { joins: false, .. }) => inside.wait_for(self.done.handle(), stream, When::Replayed),
        }
    }

    /// Marks the end of a call.
    pub(super) fn end(&self, inside: &dyn Driver, stream: StreamHandle, captured: Option<Captured>) -> Result<()> {
        let Some(Captured { mark, .. }) = captured else {
            return inside.record(self.done.handle(), stream, When::Now);
        };
        inside.record(self.done.handle(), stream, When::Replayed)?;
        inside.record(self.captured[mark].handle(), stream, When::Now)
    }

    /// Waits until everything is done.
    pub(super) fn wait(&self, inside: &dyn Driver) -> Result<()> {
        inside.await_event(self.done.handle())
    }
}
