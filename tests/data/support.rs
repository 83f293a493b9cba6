//! Files of activations as others write them, and rows that tell which they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use half::{bf16, f16};
use sae::tensor::DType;
use sae::training::data::{Rows, Source};
use safetensors::tensor::{Dtype, TensorView};

/// Rows `[rows, d]` of which the first element is the row's number from `first` on.
pub(crate) fn numbered(first: usize, rows: usize, d: usize) -> Vec<f32> {
    (0..rows * d).map(|i| if i % d == 0 { (first + i / d) as f32 } else { -((i % d) as f32) }).collect()
}

/// Carries out a test in which threads wait for each other, and fails it if they wait in vain.
pub(crate) fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        // Dropped where the test ends, one way or the other.
        let _done = done;
        test();
    });
    if ended.recv_timeout(Duration::from_secs(120)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("threads wait for what never comes");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Values in a type's bytes.
pub(crate) fn bytes_of(values: &[f32], dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

/// A tensor of a file to be.
pub(crate) struct Named<'a>(pub(crate) &'a str, pub(crate) Dtype, pub(crate) &'a [usize], pub(crate) Vec<u8>);

pub(crate) fn safetensors(path: &Path, tensors: &[Named<'_>]) -> PathBuf {
    let views = tensors
        .iter()
        .map(|Named(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    path.to_owned()
}

/// Rows of f32 in a safetensors file under the name `x`.
pub(crate) fn shard(path: &Path, first: usize, shape: &[usize]) -> PathBuf {
    let d = shape[shape.len() - 1];
    let values = numbered(first, shape.iter().product::<usize>() / d, d);
    safetensors(path, &[Named("x", Dtype::F32, shape, bytes_of(&values, DType::F32))])
}

pub(crate) fn npy_bytes(descr: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let padded = (header.len() + 11).next_multiple_of(64) - 10;
    let header = format!("{header:padded$}");
    [&b"\x93NUMPY\x01\0"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), bytes].concat()
}

pub(crate) fn npy(path: &Path, descr: &str, shape: &str, bytes: &[u8]) -> PathBuf {
    fs::write(path, npy_bytes(descr, shape, bytes)).unwrap();
    path.to_owned()
}

/// The numbers of rows.
pub(crate) fn numbers(rows: &Rows) -> Vec<u64> {
    let mut row = vec![0.0; rows.layout().row_len()];
    let mut number = |i| {
        rows.tensor().read_row(i, &mut row);
        row[0] as u64
    };
    (0..rows.len()).map(&mut number).collect()
}

/// The numbers of all rows that follow, taken so many at a time.
pub(crate) fn drained(source: &mut dyn Source, at_once: usize) -> Vec<u64> {
    let mut rows = Rows::new(source.layout(), at_once).unwrap();
    let mut all = Vec::new();
    while source.next(&mut rows).unwrap() > 0 {
        all.extend(numbers(&rows));
    }
    all
}
