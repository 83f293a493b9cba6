//! The program `sae`, run as people run it.

#![allow(clippy::unwrap_used)]

mod atlas;
mod convert;
mod doctor;
mod hub;
mod info;
mod pull;
mod support;
mod train;
mod verify;
