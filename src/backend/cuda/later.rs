//! Letting go of what may not be let go of where that is told: the driver says from a place where it must not be called that
//! nobody can launch a graph any more.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use super::driver::Pinned;

/// What waits to be let go of, and whether somebody is about to do it.
static WAITING: Mutex<(Vec<Pinned>, bool)> = Mutex::new((Vec::new(), false));

/// Lets go of something, soon, on a thread that ends when nothing is left. Where there are no more threads to be had it stays
/// until the next time.
pub(super) fn release(kept: Pinned) {
    let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.0.push(kept);
    if !waiting.1 {
        waiting.1 = thread::Builder::new().name("sae-release".to_owned()).spawn(release_all).is_ok();
    }
}

fn release_all() {
    loop {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kept) = waiting.0.pop() else {
            waiting.1 = false;
            return;
        };
        drop(waiting);
        // A panic is told by its hook; it must not end the thread, since nobody would start another.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(kept)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    /// Tells when it is let go of, and may panic then.
    struct Telling(Mutex<Sender<&'static str>>, &'static str);

    impl Drop for Telling {
        fn drop(&mut self) {
            self.0.lock().unwrap().send(self.1).unwrap();
            assert_ne!(self.1, "first", "let go of badly");
        }
    }

    #[test]
    fn what_panics_when_it_is_let_go_of_keeps_nothing_else() {
        let (told, tells) = channel();
        for what in ["first", "second"] {
            release(Arc::new(Telling(Mutex::new(told.clone()), what)));
            assert_eq!(tells.recv_timeout(Duration::from_secs(20)), Ok(what));
        }
    }
}
