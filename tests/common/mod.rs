//! Shared by the integration tests.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod cases;
pub mod definition;
pub mod layout;
pub mod oracle;
pub mod placed;
pub mod stand_in;
