//! Loading and saving: round trips, golden outputs of the original libraries, and hostile files.

#![allow(clippy::unwrap_used)]

mod native;
mod support;
