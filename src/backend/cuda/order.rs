//! In which order a session's work comes on the device, whatever streams it is put on.
//!
//! A mark, set behind each call and waited for before the next, makes one sequence of them. Streams are never compared: the
//! handle of one that has ended may be another's, and that of the per-thread default stream is one for many. In a capture,
//! calls wait for each other by a mark of that capture, which is all that a capture may wait for; and setting and waiting for
//! the mark outside of it become parts of the graph, so that each launch of it takes its place in the sequence.

use std::sync::Arc;

use super::driver::{CaptureId, Driver, OwnEvent, StreamHandle, When};
use crate::error::Result;

/// The marks.
pub(super) struct Sequence {
    /// Behind the work that was given last.
    done: OwnEvent,
    /// Behind the call that was captured last.
    captured: OwnEvent,
}

impl Sequence {
    pub(super) fn new(driver: &Arc<dyn Driver>) -> Result<Self> {
        Ok(Self { done: OwnEvent::new(driver)?, captured: OwnEvent::new(driver)? })
    }

    /// Has a stream wait for what comes before a call. `joins`: an earlier call is in the same capture.
    pub(super) fn begin(
        &self,
        inside: &dyn Driver,
        stream: StreamHandle,
        capture: Option<CaptureId>,
        joins: bool,
    ) -> Result<()> {
        match capture {
            None => inside.wait_for(self.done.handle(), stream, When::Now),
            Some(_) if joins => inside.wait_for(self.captured.handle(), stream, When::Now),
            Some(_) => inside.wait_for(self.done.handle(), stream, When::Replayed),
        }
    }

    /// Marks the end of a call.
    pub(super) fn end(&self, inside: &dyn Driver, stream: StreamHandle, capture: Option<CaptureId>) -> Result<()> {
        if capture.is_none() {
            return inside.record(self.done.handle(), stream, When::Now);
        }
        inside.record(self.done.handle(), stream, When::Replayed)?;
        inside.record(self.captured.handle(), stream, When::Now)
    }

    /// Waits until everything is done.
    pub(super) fn wait(&self, inside: &dyn Driver) -> Result<()> {
        inside.await_event(self.done.handle())
    }
}
