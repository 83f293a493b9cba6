//! The atlas: against one pass of brute force, through calls split at random, merges, files, and what it must refuse.

#![allow(clippy::unwrap_used)]

mod brute;
mod exact;
mod files;
mod refusals;
mod support;
