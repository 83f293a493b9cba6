//! Files that cannot be read: an error that names the file, the tensor and what is wrong with it.

use std::fs;
use std::path::Path;

use sae::Status;
use sae::tensor::DType;
use sae::training::data::{Layout, Position, Rows, ShardOptions, Shards, Shuffle, Source, Told};
use safetensors::tensor::Dtype;

use crate::support::{Named, bytes_of, npy, numbered, safetensors, shard};

#[track_caller]
fn refused(options: &ShardOptions, status: Status, named: &[&str]) {
    let error = Shards::open(options).err().expect("an error");
    assert_eq!(error.status(), status, "{error}");
    for named in named {
        assert!(error.message().contains(named), "{named:?} is not said in {error}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let opened = |name: &str| ShardOptions { paths: vec![at(name)], ..ShardOptions::default() };
    let x = |dtype, shape: &'static [usize], bytes: usize| Named("x", dtype, shape, vec![0; bytes]);
    let zeros = |n: usize| vec![0; n];

    refused(&ShardOptions::default(), Status::InvalidArgument, &["paths: name at least one"]);
    refused(&opened("nowhere.safetensors"), Status::Io, &["nowhere.safetensors", "No such file"]);
    refused(&opened("nowhere*.safetensors"), Status::Io, &["nowhere*.safetensors", "no file is named so"]);
    refused(&opened("nowhere[.npy"), Status::InvalidArgument, &["nowhere[.npy", "pattern"]);
    refused(&opened(""), Status::InvalidArgument, &["holds no file of arrays"]);

    fs::write(at("words.npy"), b"something else").unwrap();
    refused(&opened("words.npy"), Status::Format, &["words.npy", "not a file of arrays"]);
    fs::write(at("nothing.safetensors"), b"").unwrap();
    refused(&opened("nothing.safetensors"), Status::Format, &["nothing.safetensors"]);
    let whole = fs::read(shard(&at("whole.safetensors"), 0, &[4, 2])).unwrap();
    for len in [3, 9, whole.len() - 1] {
        fs::write(at("cut.safetensors"), &whole[..len]).unwrap();
        refused(&opened("cut.safetensors"), Status::Format, &["cut.safetensors"]);
    }
    npy(&at("cut.npy"), "<f4", "(4, 2)", &zeros(31));
    refused(&opened("cut.npy"), Status::Format, &["cut.npy", "does not fit"]);
    npy(&at("wide.npy"), "<f8", "(2, 2)", &zeros(32));
    refused(
        &opened("wide.npy"),
        Status::InvalidArgument,
        &["wide.npy: the array: expected f32, f16 or bf16, found f64"],
    );
    npy(&at("big.npy"), ">f4", "(2, 2)", &zeros(16));
    refused(&opened("big.npy"), Status::Unsupported, &["big.npy", "big-endian"]);
    npy(&at("flat.npy"), "<f4", "(4,)", &zeros(16));
    refused(&opened("flat.npy"), Status::InvalidArgument, &["flat.npy: the array: expected [tokens, d], found [4]"]);
    npy(&at("none.npy"), "<f4", "(0, 4)", &[]);
    refused(&opened("none.npy"), Status::InvalidArgument, &["none.npy: the array: is empty, [0, 4]"]);
    npy(&at("narrow.npy"), "<f4", "(4, 0)", &[]);
    refused(&opened("narrow.npy"), Status::InvalidArgument, &["narrow.npy", "d 0"]);
    let mut fortran = fs::read(npy(&at("columns.npy"), "<f4", "(2, 2)", &zeros(16))).unwrap();
    let place = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran[place..place + 5].copy_from_slice(b"True ");
    fs::write(at("columns.npy"), fortran).unwrap();
    refused(&opened("columns.npy"), Status::Unsupported, &["columns.npy", "row-major"]);

    safetensors(&at("counts.safetensors"), &[x(Dtype::I32, &[2, 2], 16)]);
    refused(
        &opened("counts.safetensors"),
        Status::InvalidArgument,
        &["counts.safetensors: x: expected f32", "found i32"],
    );
    let two = [Named("a", Dtype::F32, &[1, 2], zeros(8)), Named("b", Dtype::F32, &[1, 2], zeros(8))];
    safetensors(&at("two.safetensors"), &two);
    refused(&opened("two.safetensors"), Status::InvalidArgument, &["several tensors (a, b); say which"]);
    let named = ShardOptions { tensor: Some("c".into()), ..opened("two.safetensors") };
    refused(&named, Status::InvalidArgument, &["two.safetensors: tensor c is not there; found a, b"]);
    Shards::open(&ShardOptions { tensor: Some("b".into()), ..opened("two.safetensors") }).unwrap();
    let layered = ShardOptions { layered: true, ..opened("whole.safetensors") };
    refused(&layered, Status::InvalidArgument, &["whole.safetensors: x: expected [tokens, layers, d], found [4, 2]"]);
}

#[test]
fn shards_that_do_not_go_together_are_both_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    shard(&at("a.safetensors"), 0, &[4, 2]);
    let options = ShardOptions { paths: vec![dir.path().into()], ..ShardOptions::default() };
    shard(&at("b.safetensors"), 0, &[4, 3]);
    refused(&options, Status::InvalidArgument, &["b.safetensors: x [4, 3] f32", "x [4, 2] f32 of", "a.safetensors"]);
    let half = bytes_of(&numbered(0, 4, 2), DType::F16);
    safetensors(&at("b.safetensors"), &[Named("x", Dtype::F16, &[4, 2], half)]);
    refused(&options, Status::InvalidArgument, &["b.safetensors: x [4, 2] f16", "x [4, 2] f32 of", "a.safetensors"]);
}

#[test]
fn what_lies_beside_must_fit() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let x = || Named("x", Dtype::F32, &[2, 3, 2], vec![0; 48]);
    let base = |name: &str| ShardOptions { paths: vec![at(name)], ..ShardOptions::default() };
    safetensors(&at("a.safetensors"), &[x(), Named("doc", Dtype::I32, &[5], vec![0; 20])]);
    let options = ShardOptions { documents: Some("doc".into()), ..base("a.safetensors") };
    refused(&options, Status::InvalidArgument, &["a.safetensors: doc: [5] are not the 6 tokens of x [2, 3, 2] f32"]);
    let missing = ShardOptions { documents: Some("docs".into()), ..base("a.safetensors") };
    refused(&missing, Status::Format, &["a.safetensors", "docs is missing"]);
    let floats = ShardOptions { documents: Some("x".into()), tensor: Some("x".into()), ..base("a.safetensors") };
    refused(&floats, Status::InvalidArgument, &["x: expected i32 or i64, found f32"]);
    safetensors(&at("b.safetensors"), &[x(), Named("pos", Dtype::I64, &[2], vec![0; 16])]);
    let positions = ShardOptions { positions: Some("pos".into()), ..base("b.safetensors") };
    refused(&positions, Status::InvalidArgument, &["positions of x [2, 3, 2]", "for each token"]);

    shard(&at("c.safetensors"), 0, &[4, 2]);
    let untold = ShardOptions { keep_positions: 1..9, ..base("c.safetensors") };
    refused(&untold, Status::InvalidArgument, &["c.safetensors: keep_positions: x [4, 2] f32 tells no positions"]);
    let none = ShardOptions { keep_positions: 3..9, ..base("a.safetensors") };
    refused(&none, Status::InvalidArgument, &["keep_positions: 3..9 keeps no row"]);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = ShardOptions { keep_positions: 3..2, ..base("a.safetensors") };
    refused(&reversed, Status::InvalidArgument, &["keep_positions: 3..2"]);

    npy(&at("d.npy"), "<f4", "(4, 2)", &[0; 32]);
    let beside = ShardOptions { documents: Some("doc".into()), ..base("d.npy") };
    refused(&beside, Status::Io, &["d.npy: d.doc.npy"]);
}

#[test]
fn tokens_are_told_of_stored_rows() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let whole = |numbers: &[i32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let x = || Named("x", Dtype::F32, &[2, 3, 2], vec![0; 48]);
    safetensors(&at("a.safetensors"), &[x(), Named("tokens", Dtype::I32, &[2, 3], whole(&[5, 6, 7, 8, 9, 10]))]);
    let options =
        |name: &str| ShardOptions { paths: vec![at(name)], tokens: Some("tokens".into()), ..ShardOptions::default() };
    let source = Shards::open(&options("a.safetensors")).unwrap();
    assert_eq!(source.told(4), Some(Told { document: 1, position: Some(1), token: Some(9) }));
    assert_eq!(source.told(6), None);
    safetensors(&at("b.safetensors"), &[x(), Named("tokens", Dtype::I32, &[2], whole(&[5, 6]))]);
    refused(&options("b.safetensors"), Status::InvalidArgument, &["tokens of x [2, 3, 2]", "for each token"]);

    npy(&at("c.npy"), "<f4", "(3, 2)", &[0; 24]);
    npy(&at("c.tokens.npy"), "<i4", "(3,)", &whole(&[1, 2, 3]));
    let folder = ShardOptions { paths: vec![dir.path().join("c*.npy")], ..options("c.npy") };
    for options in [options("c.npy"), folder] {
        let source = Shards::open(&options).unwrap();
        assert_eq!(source.told(2), Some(Told { document: 0, position: None, token: Some(3) }));
        assert_eq!(source.told(3), None, "what lies beside is no shard");
    }
}

#[test]
fn places_of_other_data_are_not_gone_to() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let filled = |name: &str, first: usize| {
        let folder = folder(name);
        for file in ["a.safetensors", "b.safetensors"] {
            let values = |first| bytes_of(&numbered(first, 6, 2), DType::F32);
            let named = |name, first| Named(name, Dtype::F32, &[2, 3, 2], values(first));
            safetensors(&folder.join(file), &[named("x", first), named("y", first)]);
        }
        folder
    };
    let (here, other) = (filled("here", 0), filled("other", 100));
    let list = |folder: &Path, names: [&str; 2]| ShardOptions {
        paths: names.map(|name| folder.join(name)).into(),
        tensor: Some("x".into()),
        ..ShardOptions::default()
    };
    let names = ["a.safetensors", "b.safetensors"];
    let options = list(&here, names);
    let place = Shards::open(&options).unwrap().position();
    let sought = |options: &ShardOptions| Shards::open(options).unwrap().seek(&place);
    let renamed = folder("renamed");
    for name in names {
        std::fs::copy(here.join(name), renamed.join(format!("0{name}"))).unwrap();
    }
    for (what, options) in [
        ("the same names and shapes, but other rows", list(&other, names)),
        ("another order", list(&here, ["b.safetensors", "a.safetensors"])),
        ("other names", list(&renamed, ["0a.safetensors", "0b.safetensors"])),
        ("another tensor", ShardOptions { tensor: Some("y".into()), ..options.clone() }),
        ("other positions", ShardOptions { keep_positions: 1..3, ..options.clone() }),
        ("layers", ShardOptions { layered: true, ..options.clone() }),
        ("a file twice", list(&here, ["a.safetensors", "a.safetensors"])),
    ] {
        let error = sought(&options).err().unwrap_or_else(|| panic!("{what} passes for the same"));
        assert!(error.message().contains("open it with the same files and options"), "{error}");
    }
    // Wherever it lies, and however the files are said.
    sought(&options).unwrap();
    sought(&ShardOptions { paths: vec![here.clone()], epochs: 3, ..options.clone() }).unwrap();
    let moved = dir.path().join("moved");
    std::fs::rename(&here, &moved).unwrap();
    sought(&list(&moved, names)).unwrap();
}

#[test]
fn places_of_others_are_not_gone_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = shard(&dir.path().join("a.safetensors"), 0, &[4, 2]);
    let options = ShardOptions { paths: vec![path], ..ShardOptions::default() };
    let mut source = Shards::open(&options).unwrap();
    let mut shuffled = Shards::open(&ShardOptions { shuffle: Some(Shuffle::default()), ..options }).unwrap();
    let error = shuffled.seek(&source.position()).unwrap_err();
    assert!(error.message().contains("as stored") && error.message().contains("seed 0"), "{error}");
    let here = source.position();
    for (epoch, row) in [(0, 4), (1, 1), (2, 0)] {
        let error = source.seek(&Position { epoch, row, ..here.clone() }).unwrap_err();
        assert!(error.message().contains("beyond the end"), "{error}");
    }
    source.seek(&Position { epoch: 1, ..here }).unwrap();
    let mut rows = Rows::new(source.layout(), 2).unwrap();
    assert_eq!(source.next(&mut rows).unwrap(), 0);
    let mut others = Rows::new(Layout::vectors(3, DType::F32), 2).unwrap();
    assert_eq!(source.next(&mut others).unwrap_err().status(), Status::InvalidArgument);
}
