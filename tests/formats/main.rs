//! Loading and saving: round trips, golden outputs of the original libraries, and hostile files.

#![allow(clippy::unwrap_used)]

mod golden;
mod native;
mod saelens;
mod support;
