//! A file of Arrow's, as activations are kept in: its rows are gone through, whole, layered, and with documents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsae_fuzz::{rows, scratch};
use sae::training::data::ShardOptions;

fuzz_target!(|bytes: &[u8]| {
    let path = scratch("rows.arrow", bytes);
    let options = ShardOptions { paths: vec![path], ..ShardOptions::default() };
    rows(&options);
    rows(&ShardOptions { layered: true, ..options.clone() });
    rows(&ShardOptions { documents: Some("token_ids".to_owned()), ..options });
});
