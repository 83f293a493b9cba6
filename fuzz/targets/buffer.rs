//! A saved buffer: what is restored gives all its rows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsae_fuzz::scratch;
use sae::training::data::{Buffer, Room, Rows, Taken, Wait};

fuzz_target!(|bytes: &[u8]| {
    // No more memory than that, whatever the file asks for.
    let room = Room { memory_bytes: 1 << 24, ..Room::default() };
    let Ok(buffer) = Buffer::restore(&scratch("buffer", bytes), Some(&room)) else { return };
    buffer.close().expect("an open or closed buffer");
    let Ok(mut rows) = Rows::new(buffer.layout(), 2) else { return };
    while let Ok(Taken::Rows(taken)) = buffer.take(&mut rows, Wait::No) {
        assert!(taken > 0 && taken <= 2);
    }
});
