//! The SAE and the activations in examples/data, with which a program in any language shows that it gets the same bits:
//! what is expected there is what the definition says, and what the library gives in Rust.
//! `SAE_BLESS=1 cargo test --test example_data` writes the expected files anew.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::Pod;
use common::oracle;
use sae::backend::cpu::Kernels;
use sae::backend::{Input, Pool, Run};
use sae::features::Features;
use sae::formats::{self, LoadOptions};
use sae::sae::{Architecture, Sae};
use sae::session::{Session, SessionOptions};
use sae::steering::{Edit, EditOp};
use sae::tensor::{Tensor, TensorMut};
use serde_json::Value;

const TOKENS: usize = 32;

/// The kinds of edits, by their codes in C.
const OPS: [(&str, EditOp); 4] =
    [("add", EditOp::Add), ("set", EditOp::Set), ("scale", EditOp::Scale), ("ablate", EditOp::Ablate)];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data").join(name)
}

fn read<T: Pod>(name: &str) -> Vec<T> {
    std::fs::read(path(name)).unwrap().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

fn model() -> Arc<Sae> {
    Arc::new(formats::load(path("sae.safetensors"), &LoadOptions::default()).unwrap().sae)
}

/// What the files say, or should say.
#[derive(PartialEq, Debug)]
struct Expected {
    indices: Vec<i32>,
    values: Vec<f32>,
    counts: Vec<i32>,
    x_hat: Vec<f32>,
    steered: Vec<f32>,
}

impl Expected {
    fn read() -> Self {
        Self {
            indices: read("expected/indices.i32"),
            values: read("expected/values.f32"),
            counts: read("expected/counts.i32"),
            x_hat: read("expected/x_hat.f32"),
            steered: read("expected/steered.f32"),
        }
    }

    fn write(&self) {
        let write = |name: &str, bytes: &[u8]| std::fs::write(path("expected").join(name), bytes).unwrap();
        std::fs::create_dir_all(path("expected")).unwrap();
        write("indices.i32", bytemuck::cast_slice(&self.indices));
        write("values.f32", bytemuck::cast_slice(&self.values));
        write("counts.i32", bytemuck::cast_slice(&self.counts));
        write("x_hat.f32", bytemuck::cast_slice(&self.x_hat));
        write("steered.f32", bytemuck::cast_slice(&self.steered));
    }

    /// By the definition, one number at a time.
    fn defined(sae: &Sae, k: usize, x: &[f32], edits: &[Edit]) -> Self {
        let mut all = Self { indices: vec![], values: vec![], counts: vec![], x_hat: vec![], steered: vec![] };
        for row in x.chunks(sae.spec().d_in) {
            let token = oracle::encode(sae, row).unwrap();
            let slot = |i: usize| token.active.get(i).copied().unwrap_or((-1, 0.0));
            all.indices.extend((0..k).map(|i| slot(i).0));
            all.values.extend((0..k).map(|i| slot(i).1));
            all.counts.push(i32::try_from(token.active.len()).unwrap());
            all.x_hat.extend(oracle::decode(sae, &token.active, &token.state, row));
            all.steered.extend(oracle::steer(sae, edits, &token.active, &token.state, row));
        }
        all
    }

    /// By the library.
    fn computed(sae: &Arc<Sae>, k: usize, x: &[f32], edits: &[Edit], kernels: Kernels, threads: usize) -> Self {
        let shape = [TOKENS, sae.spec().d_in];
        let pool = Pool::new(threads).unwrap();
        let options = SessionOptions { kernels: Some(kernels), pool, ..SessionOptions::default() };
        let mut session = Session::new(Arc::clone(sae), options).unwrap();
        let input = Input::from(Tensor::new(x, &shape).unwrap());
        let mut features = Features::new(TOKENS, k, 0);
        let (mut x_hat, mut steered) = (vec![0.0; x.len()], x.to_vec());
        session.encode(Run::default(), input, features.view_mut()).unwrap();
        let to = TensorMut::new(&mut x_hat, &shape).unwrap();
        session.decode(Run::default(), features.view(), None, to).unwrap();
        session.set_edits(0, edits).unwrap();
        session.steer_in_place(Run::default(), TensorMut::new(&mut steered, &shape).unwrap(), None).unwrap();
        Self { indices: features.indices, values: features.values, counts: features.counts, x_hat, steered }
    }
}

/// One latent of each kind of edit, of those that are active.
fn choose_edits(sae: &Sae, x: &[f32]) -> Vec<Edit> {
    let active = |row: usize| oracle::encode(sae, &x[row * sae.spec().d_in..][..sae.spec().d_in]).unwrap().active;
    let mut edits: Vec<Edit> = Vec::new();
    for (row, op, strength) in
        [(0, EditOp::Scale, 2.0), (10, EditOp::Ablate, 0.0), (20, EditOp::Add, 1.5), (30, EditOp::Set, 0.5)]
    {
        let new = |feature: &i32| edits.iter().all(|edit: &Edit| edit.feature != *feature);
        let feature = active(row).iter().map(|(i, _)| *i).find(new).unwrap();
        edits.push(Edit::new(feature, op, strength));
    }
    edits
}

/// The edits as an array of the C ABI's structs, `sae_edit`.
fn raw(edits: &[Edit]) -> Vec<u8> {
    let words = |edit: &Edit| {
        let op = OPS.iter().position(|(_, op)| *op == edit.op).unwrap();
        [edit.feature as u32, op as u32, edit.strength.to_bits(), 0, 0, 0, 0, 0]
    };
    edits.iter().flat_map(words).flat_map(u32::to_le_bytes).collect()
}

/// The same for people, and for languages in which JSON is read more easily: what the raw files do not say, and features.
fn json(sae: &Sae, k: usize, expected: &Expected, edits: &[Edit]) -> String {
    let mut text = format!(
        "{{\n  \"tokens\": {TOKENS},\n  \"d\": {},\n  \"n_latents\": {},\n  \"k\": {k},\n  \"edits\": [\n",
        sae.spec().d_in,
        sae.spec().n_latents
    );
    let comma = |last: bool| if last { "" } else { "," };
    for (i, edit) in edits.iter().enumerate() {
        let op = OPS.iter().find(|(_, op)| *op == edit.op).unwrap().0;
        let (feature, strength) = (edit.feature, edit.strength);
        let end = comma(i + 1 == edits.len());
        writeln!(text, "    {{\"feature\": {feature}, \"op\": \"{op}\", \"strength\": {strength:?}}}{end}").unwrap();
    }
    text += "  ],\n  \"features\": [\n";
    for t in 0..TOKENS {
        let slots = t * k..t * k + usize::try_from(expected.counts[t]).unwrap().min(k);
        let pairs: Vec<String> =
            slots.map(|i| format!("[{}, {:?}]", expected.indices[i], expected.values[i])).collect();
        writeln!(text, "    [{}]{}", pairs.join(", "), comma(t + 1 == TOKENS)).unwrap();
    }
    text + "  ]\n}\n"
}

fn edits_of(json: &Value) -> Vec<Edit> {
    let op = |name: &str| OPS.iter().find(|(n, _)| *n == name).unwrap().1;
    let read = |value: &Value| {
        let feature = i32::try_from(value["feature"].as_i64().unwrap()).unwrap();
        Edit::new(feature, op(value["op"].as_str().unwrap()), value["strength"].as_f64().unwrap() as f32)
    };
    json["edits"].as_array().unwrap().iter().map(read).collect()
}

#[test]
fn the_example_s_features_are_what_the_definition_says() {
    let (sae, x) = (model(), read::<f32>("activations.f32"));
    let Architecture::TopK { k } = sae.spec().architecture else { panic!("a TopK SAE") };
    assert_eq!(x.len(), TOKENS * sae.spec().d_in);
    if std::env::var_os("SAE_BLESS").is_some() {
        let edits = choose_edits(&sae, &x);
        let expected = Expected::defined(&sae, k, &x, &edits);
        expected.write();
        std::fs::write(path("expected/edits.raw"), raw(&edits)).unwrap();
        std::fs::write(path("expected.json"), json(&sae, k, &expected, &edits)).unwrap();
    }

    let text = std::fs::read_to_string(path("expected.json")).unwrap();
    let parsed: Value = serde_json::from_str(&text).unwrap();
    let edits = edits_of(&parsed);
    assert_eq!(raw(&edits), std::fs::read(path("expected/edits.raw")).unwrap());
    let expected = Expected::read();
    assert_eq!(expected, Expected::defined(&sae, k, &x, &edits));
    assert_eq!(text, json(&sae, k, &expected, &edits));
    // Whoever reads the JSON's numbers as f64 gets the same f32.
    for (i, pair) in parsed["features"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).enumerate() {
        assert_eq!(pair[1].as_f64().unwrap() as f32, expected.values[i]);
    }

    for kernels in Kernels::all_supported() {
        for threads in [1, 3] {
            let computed = Expected::computed(&sae, k, &x, &edits, kernels, threads);
            assert_eq!(expected, computed, "{}, {threads} threads", kernels.name);
        }
    }
}

/// The same rows, for whoever has a reader of NumPy's files at hand.
#[test]
fn the_npy_holds_the_raw_activations() {
    let npy = std::fs::read(path("activations.npy")).unwrap();
    assert!(npy.starts_with(b"\x93NUMPY\x01\x00"));
    let header = usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    let said = std::str::from_utf8(&npy[10..10 + header]).unwrap();
    assert!(said.contains("'descr': '<f4', 'fortran_order': False, 'shape': (32, 576)"), "{said}");
    assert!(npy[10 + header..] == std::fs::read(path("activations.f32")).unwrap());
}
