//! Arrow's files: SAELens's cached activations, and what is wrong with others.

use std::fs;
use std::path::{Path, PathBuf};

use sae::Status;
use sae::tensor::DType;
use sae::training::data::{Layout, Rows, ShardOptions, Shards, Shuffle, Source};

use crate::support::drained;

fn cache() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/saelens_cache")
}

fn options(path: PathBuf) -> ShardOptions {
    ShardOptions { paths: vec![path], ..ShardOptions::default() }
}

#[test]
fn what_saelens_caches_is_read() {
    let mut source = Shards::open(&options(cache())).unwrap();
    assert_eq!((source.layout(), source.len()), (Layout::vectors(4, DType::F32), Some(21)));
    let mut rows = Rows::new(source.layout(), 30).unwrap();
    assert_eq!(source.next(&mut rows).unwrap(), 21);
    let values: &[f32] = bytemuck::cast_slice(rows.filled());
    assert!(values.iter().copied().eq((0..84).map(|i| i as f32 / 2.0)));
    // Contexts are documents, of all files together, and tell positions.
    assert_eq!(rows.documents()[..7], [0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(rows.documents()[15..], [5, 5, 5, 6, 6, 6]);
    let cut = ShardOptions {
        keep_positions: 1..u64::MAX,
        shuffle: Some(Shuffle { seed: 1, block_rows: 2, window_blocks: 3 }),
        tensor: Some("blocks.3.hook_resid_post".into()),
        ..options(cache())
    };
    let mut found = drained(&mut Shards::open(&cut).unwrap(), 4);
    found.sort_unstable();
    // The first element of row r is 2 r.
    assert!(found.into_iter().eq((0..21).filter(|row| row % 3 != 0).map(|row| 2 * row)));
    // The tokens beside are numbers of each token.
    let tokens = ShardOptions { documents: Some("token_ids".into()), ..options(cache()) };
    let mut source = Shards::open(&tokens).unwrap();
    source.next(&mut rows).unwrap();
    assert!(rows.documents().iter().copied().eq(0..21));
}

#[test]
fn only_the_files_of_the_dataset_are_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(cache()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(dir.path().join("cache-0123.arrow"), b"left over").unwrap();
    assert_eq!(Shards::open(&options(dir.path().into())).unwrap().len(), Some(21));
    let refused = |state: &str, named: &str| {
        fs::write(dir.path().join("state.json"), state).unwrap();
        let error = Shards::open(&options(dir.path().into())).err().unwrap();
        assert!(error.message().contains("state.json") && error.message().contains(named), "{error}");
    };
    refused("{", "not the state of a dataset");
    refused("{\"_data_files\": []}", "no files");
    refused(
        "{\"_data_files\": [{\"filename\": \"a\"}], \"_indices_files\": [{\"filename\": \"b\"}]}",
        "flatten_indices",
    );
    refused("{\"_data_files\": [{\"filename\": \"../data.arrow\"}]}", "not the name of a file");
}

#[test]
fn broken_files_are_errors_and_nothing_else() {
    let whole = fs::read(cache().join("data-00000-of-00002.arrow")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.arrow");
    let opened = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Shards::open(&options(path.clone()))
    };
    let (mut refused, mut read) = (0, 0);
    let mut used = |bytes: &[u8]| match opened(bytes) {
        Ok(mut source) => {
            // What is understood is within the file.
            let mut rows = Rows::new(source.layout(), 64).unwrap();
            while source.next(&mut rows).unwrap() > 0 {}
            read += 1;
        }
        Err(error) => {
            assert!(error.message().contains("broken.arrow"), "{error}");
            refused += 1;
        }
    };
    for len in 0..whole.len() {
        used(&whole[..len]);
    }
    for at in 0..whole.len() {
        for flipped in [0x01, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= flipped;
            used(&bytes);
        }
    }
    assert!(refused > 1000 && read > 1000, "{refused} refused, {read} read");
    // A column of a type that is not read is named: one byte of the schema says of what type each is.
    let mut named = 0;
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] = 24;
        if let Some(error) = opened(&bytes).err().filter(|e| e.message().contains("a view")) {
            let columns = ["blocks.3.hook_resid_post", "token_ids"];
            assert!(columns.iter().any(|column| error.message().contains(column)), "{error}");
            assert_eq!(error.status(), Status::Unsupported);
            named += 1;
        }
    }
    assert!(named >= 2, "{named}");
    // As Arrow's file format has it, with a word before the stream and more behind it.
    let file = [b"ARROW1\0\0", whole.as_slice(), b"a footer"].concat();
    assert_eq!(opened(&file).unwrap().len(), Some(15));
}
