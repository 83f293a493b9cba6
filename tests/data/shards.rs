//! What files of activations give: their rows, in order or shuffled, from any place.

use proptest::prelude::*;
use sae::tensor::DType;
use sae::training::data::{Layout, Rows, ShardOptions, Shards, Shuffle, Source};
use safetensors::tensor::Dtype;

use crate::support::{Named, bytes_of, drained, npy, npy_bytes, numbered, numbers, safetensors, shard};

fn options(path: impl Into<std::path::PathBuf>) -> ShardOptions {
    ShardOptions { paths: vec![path.into()], ..ShardOptions::default() }
}

#[test]
fn rows_keep_their_type_and_order_in_every_container() {
    let dir = tempfile::tempdir().unwrap();
    let values = numbered(0, 6, 4);
    let at = |name: &str| dir.path().join(name);
    let st = |name: &str, dtype, kind, shape: &[usize]| {
        safetensors(&at(name), &[Named("acts", dtype, shape, bytes_of(&values, kind))])
    };
    let npz = {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::fs::File::create(at("a.npz")).unwrap());
        let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file("acts.npy", stored).unwrap();
        zip.write_all(&npy_bytes("<f2", "(6, 4)", &bytes_of(&values, DType::F16))).unwrap();
        zip.finish().unwrap();
        at("a.npz")
    };
    for (path, dtype) in [
        (st("a.safetensors", Dtype::F32, DType::F32, &[6, 4]), DType::F32),
        (st("b.safetensors", Dtype::F16, DType::F16, &[2, 3, 4]), DType::F16),
        (st("c.safetensors", Dtype::BF16, DType::BF16, &[3, 2, 4]), DType::BF16),
        (npy(&at("d.npy"), "<f4", "(6, 4)", &bytes_of(&values, DType::F32)), DType::F32),
        (npy(&at("e.npy"), "<f2", "(1, 6, 4)", &bytes_of(&values, DType::F16)), DType::F16),
        (npz, DType::F16),
    ] {
        let mut source = Shards::open(&options(&path)).unwrap();
        assert_eq!((source.layout(), source.len()), (Layout::vectors(4, dtype), Some(6)));
        let mut rows = Rows::new(source.layout(), 10).unwrap();
        assert_eq!(source.next(&mut rows).unwrap(), 6);
        assert_eq!(rows.filled(), bytes_of(&values, dtype), "{}", path.display());
        assert_eq!((rows.tensor().dtype(), rows.tensor().shape()), (dtype, &[6, 4][..]));
        assert_eq!(source.next(&mut rows).unwrap(), 0);
        assert!(rows.is_empty());
    }
}

#[test]
fn folders_patterns_and_lists_are_one_stream() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    shard(&at("b.safetensors"), 5, &[3, 2]);
    shard(&at("a.safetensors"), 0, &[5, 2]);
    shard(&at("c.safetensors"), 8, &[2, 2, 2]);
    std::fs::write(at("notes.json"), "{}").unwrap();
    assert_eq!(drained(&mut Shards::open(&options(dir.path())).unwrap(), 4), (0..12).collect::<Vec<_>>());
    let pattern = at("[ab]*.safetensors");
    assert_eq!(drained(&mut Shards::open(&options(pattern)).unwrap(), 3), (0..8).collect::<Vec<_>>());
    let listed = ShardOptions { paths: vec![at("c.safetensors"), at("a.safetensors")], ..ShardOptions::default() };
    assert_eq!(drained(&mut Shards::open(&listed).unwrap(), 5), [8, 9, 10, 11, 0, 1, 2, 3, 4]);
    let twice = ShardOptions { epochs: 2, ..options(at("b.safetensors")) };
    let mut source = Shards::open(&twice).unwrap();
    assert_eq!((source.len(), drained(&mut source, 4)), (Some(6), vec![5, 6, 7, 5, 6, 7]));
    let endless = ShardOptions { epochs: u64::MAX, ..twice };
    assert_eq!(Shards::open(&endless).unwrap().len(), None);
}

#[test]
fn layers_are_parts_of_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = shard(&dir.path().join("a.safetensors"), 0, &[5, 3, 2]);
    let mut source = Shards::open(&ShardOptions { layered: true, ..options(&path) }).unwrap();
    assert_eq!(source.layout(), Layout { layers: Some(3), d: 2, dtype: DType::F32 });
    let mut rows = Rows::new(source.layout(), 8).unwrap();
    assert_eq!(source.next(&mut rows).unwrap(), 5);
    assert_eq!(rows.tensor().shape(), [5, 3, 2]);
    for layer in 0..3 {
        let tensor = rows.layer(layer).unwrap();
        assert_eq!(tensor.shape(), [5, 2]);
        (0..5).for_each(|row| assert_eq!(tensor.row::<f32>(row), [(3 * row + layer) as f32, -1.0]));
    }
    assert!(rows.layer(3).is_err());
}

#[test]
fn documents_and_positions_lie_beside() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let i64s = |n: &[i64]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let i32s = |n: &[i32]| n.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let all = |options: &ShardOptions| {
        let mut source = Shards::open(options).unwrap();
        let mut rows = Rows::new(source.layout(), 100).unwrap();
        assert_eq!(Some(source.next(&mut rows).unwrap() as u64), source.len());
        (numbers(&rows), rows.documents().to_vec())
    };
    // By the shape alone.
    shard(&at("a.safetensors"), 0, &[2, 3, 4]);
    shard(&at("b.safetensors"), 6, &[1, 3, 4]);
    assert_eq!(all(&options(dir.path())).1, [0, 0, 0, 1, 1, 1, 2, 2, 2]);
    let cut = ShardOptions { keep_positions: 1..u64::MAX, ..options(dir.path()) };
    assert_eq!(all(&cut), (vec![1, 2, 4, 5, 7, 8], vec![0, 0, 1, 1, 2, 2]));
    assert_eq!(all(&ShardOptions { keep_positions: 2..9, ..cut }).0, [2, 5, 8]);
    // By tensors.
    let x = Named("x", Dtype::F32, &[4, 2], bytes_of(&numbered(0, 4, 2), DType::F32));
    let document = Named("doc", Dtype::I64, &[4], i64s(&[7, 7, -1, 7]));
    let position = Named("pos", Dtype::I32, &[4], i32s(&[0, 1, 0, -3]));
    safetensors(&at("c.safetensors"), &[x, document, position]);
    let by_name = ShardOptions {
        documents: Some("doc".into()),
        positions: Some("pos".into()),
        keep_positions: 0..1,
        ..options(at("c.safetensors"))
    };
    assert_eq!(all(&by_name), (vec![0, 2], vec![7, -1]));
    // By files, and for whole contexts.
    let arrays = tempfile::tempdir().unwrap();
    npy(&arrays.path().join("d.npy"), "<f4", "(2, 2, 1)", &bytes_of(&numbered(0, 4, 1), DType::F32));
    npy(&arrays.path().join("d.doc.npy"), "<i8", "(2,)", &i64s(&[3, 9]));
    let by_file = ShardOptions { documents: Some("doc".into()), ..options(arrays.path()) };
    assert_eq!(all(&by_file), (vec![0, 1, 2, 3], vec![3, 3, 9, 9]));
}

#[test]
fn a_shuffled_source_mixes_and_repeats_itself() {
    let dir = tempfile::tempdir().unwrap();
    shard(&dir.path().join("a.safetensors"), 0, &[700, 1]);
    shard(&dir.path().join("b.safetensors"), 700, &[324, 1]);
    let shuffled = |seed, window_blocks| ShardOptions {
        shuffle: Some(Shuffle { seed, block_rows: 16, window_blocks }),
        epochs: 2,
        ..options(dir.path())
    };
    let first = drained(&mut Shards::open(&shuffled(1, 64)).unwrap(), 100);
    assert_eq!(first, drained(&mut Shards::open(&shuffled(1, 64)).unwrap(), 33), "batch sizes do not show");
    assert_ne!(first, drained(&mut Shards::open(&shuffled(2, 64)).unwrap(), 100));
    for epoch in first.chunks(1024) {
        let mut sorted = epoch.to_vec();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..1024));
        // Where all blocks are one window, each eighth of the stream has its fair share of each eighth of the rows: 64 cells
        // of 16 rows on average. Chi² of 49 degrees exceeds 85.4 once in a thousand times.
        let mut cells = [[0.0f64; 8]; 8];
        epoch.iter().enumerate().for_each(|(i, row)| cells[i / 128][*row as usize / 128] += 1.0);
        let chi: f64 = cells.iter().flatten().map(|n| (n - 16.0).powi(2) / 16.0).sum();
        assert!(chi < 85.4, "{chi}");
    }
    assert_ne!(first[..1024], first[1024..]);
    // A window of 8 blocks has the rows of 8 blocks, and these are from all over.
    let windows = drained(&mut Shards::open(&shuffled(1, 8)).unwrap(), 100);
    let blocks = |rows: &[u64]| rows.iter().map(|row| row / 16).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(blocks(&windows[..128]).len(), 8);
    let found = blocks(&windows[..128]);
    assert!(found.first().unwrap() + 20 < *found.last().unwrap(), "{found:?}");
}

#[cfg(unix)]
#[test]
fn files_beyond_two_gigabytes_are_read_at_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.npy");
    // 5 GiB of which nothing is on the disk but the header and the last row.
    let (rows, d) = (5usize << 20, 512);
    let bytes = npy_bytes("<f2", &format!("({rows}, {d})"), &[]);
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len((bytes.len() + rows * d * 2) as u64).unwrap();
    let last = bytes_of(&numbered(7, 1, d), DType::F16);
    std::os::unix::fs::FileExt::write_all_at(&file, &last, (bytes.len() + (rows - 1) * d * 2) as u64).unwrap();
    let mut source = Shards::open(&options(&path)).unwrap();
    assert_eq!(source.len(), Some(rows as u64));
    let mut place = source.position();
    place.row = rows as u64 - 2;
    source.seek(&place).unwrap();
    let mut rows = Rows::new(source.layout(), 5).unwrap();
    assert_eq!(source.next(&mut rows).unwrap(), 2);
    assert!(rows.filled()[..1024].iter().all(|&byte| byte == 0));
    assert_eq!(rows.filled()[1024..], last);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_place_can_be_gone_back_to(
        shards in prop::collection::vec((1usize..5, 1usize..5), 1..4),
        shuffle in prop::option::of((any::<u64>(), 1usize..6, 1usize..4)),
        epochs in 1u64..4,
        kept in 0u64..2,
        batches in prop::collection::vec(0usize..9, 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut first = 0;
        for (i, (contexts, tokens)) in shards.iter().enumerate() {
            shard(&dir.path().join(format!("{i}.safetensors")), first, &[*contexts, tokens + 1, 2]);
            first += contexts * (tokens + 1);
        }
        let options = ShardOptions {
            shuffle: shuffle.map(|(seed, block_rows, window_blocks)| Shuffle { seed, block_rows, window_blocks }),
            epochs,
            keep_positions: kept..u64::MAX,
            ..options(dir.path())
        };
        let whole = drained(&mut Shards::open(&options).unwrap(), 7);
        let mut source = Shards::open(&options).unwrap();
        prop_assert_eq!(source.len(), Some(whole.len() as u64));
        let mut given = 0;
        for room in batches {
            let place = source.position();
            prop_assert_eq!(place.given, given as u64);
            // As it is kept beside a checkpoint.
            let place = serde_json::from_str(&serde_json::to_string(&place).unwrap()).unwrap();
            let mut again = Shards::open(&options).unwrap();
            again.seek(&place).unwrap();
            prop_assert_eq!(&drained(&mut again, 5), &whole[given..]);
            let mut rows = Rows::new(source.layout(), room).unwrap();
            let count = source.next(&mut rows).unwrap();
            prop_assert_eq!(&numbers(&rows), &whole[given..given + count]);
            given += count;
        }
    }
}
