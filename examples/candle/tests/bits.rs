//! The bits of `examples/data`, in every type and layout.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Result, Tensor};
use sae_candle::{Edit, EditOp, Sae};

const D: usize = 576;
const K: usize = 16;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name)
}

fn numbers<T, const N: usize>(name: &str, from: fn([u8; N]) -> T) -> Vec<T> {
    let bytes = std::fs::read(data(name)).unwrap();
    bytes.as_chunks().0.iter().map(|&bytes| from(bytes)).collect()
}

fn floats(name: &str) -> Vec<f32> {
    numbers(name, f32::from_le_bytes)
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

fn same(found: &Tensor, wanted: &[f32]) {
    assert!(bits(found).into_iter().eq(wanted.iter().map(|v| v.to_bits())));
}

fn x() -> Tensor {
    Tensor::from_vec(floats("activations.f32"), (2, 16, D), &Device::Cpu).unwrap()
}

fn sae() -> Sae {
    Sae::load(data("sae.safetensors"), 64, 2).unwrap()
}

fn edits() -> Vec<Edit> {
    let words = numbers("expected/edits.raw", u32::from_le_bytes);
    let ops = [EditOp::Add, EditOp::Set, EditOp::Scale, EditOp::Ablate];
    words.as_chunks::<8>().0.iter().map(|e| Edit::new(e[0] as i32, ops[e[1] as usize], f32::from_bits(e[2]))).collect()
}

#[test]
fn features_and_reconstructions_are_the_expected_bits() -> Result<()> {
    let (sae, x) = (sae(), x());
    let features = sae.encode(&x)?;
    assert_eq!(features.values.dims(), &[2, 16, K]);
    same(&features.values, &floats("expected/values.f32"));
    let integers = |name| numbers(name, i32::from_le_bytes).into_iter().map(i64::from).collect::<Vec<_>>();
    assert_eq!(features.indices.flatten_all()?.to_vec1::<i64>()?, integers("expected/indices.i32"));
    assert_eq!(features.counts.flatten_all()?.to_vec1::<i64>()?, integers("expected/counts.i32"));
    let x_hat = sae.decode(&features, None)?;
    assert_eq!(x_hat.dims(), &[2, 16, D]);
    same(&x_hat, &floats("expected/x_hat.f32"));
    Ok(())
}

#[test]
fn steering_is_in_place_and_by_slots() -> Result<()> {
    let (sae, x) = (sae(), x());
    let steered = floats("expected/steered.f32");
    sae.set_edits(1, &edits())?;
    let slots: Vec<i32> = (0..32).map(|row| if row % 2 == 0 { 1 } else { -1 }).collect();
    let plain = bits(&x);
    sae.steer_rows(&x, &slots)?;
    let wanted: Vec<u32> =
        (0..32 * D).map(|i| if (i / D) % 2 == 0 { steered[i].to_bits() } else { plain[i] }).collect();
    assert_eq!(bits(&x), wanted);
    sae.set_edits(0, &edits())?;
    let x = self::x();
    sae.steer(&x)?;
    same(&x, &steered);
    Ok(())
}

#[test]
fn views_are_steered_where_they_lie_and_the_rest_is_left_alone() -> Result<()> {
    let sae = sae();
    sae.set_edits(0, &edits())?;
    let steered = floats("expected/steered.f32");
    // Vectors inside longer rows, and the second sequence of two.
    let wide = Tensor::cat(&[&Tensor::full(7f32, (2, 16, 3), &Device::Cpu)?, &x()], 2)?;
    sae.steer(&wide.narrow(2, 3, D)?)?;
    same(&wide.narrow(2, 3, D)?, &steered);
    same(&wide.narrow(2, 0, 3)?, &[7.0; 2 * 16 * 3]);
    let x = self::x();
    sae.steer(&x.i(1)?)?;
    same(&x.i(0)?, &floats("activations.f32")[..16 * D]);
    same(&x.i(1)?, &steered[16 * D..]);
    Ok(())
}

#[test]
fn half_precision_is_served() -> Result<()> {
    let sae = sae();
    for dtype in [DType::F16, DType::BF16] {
        let narrow = x().to_dtype(dtype)?;
        let (ours, wide) = (sae.encode(&narrow)?, sae.encode(&narrow.to_dtype(DType::F32)?)?);
        assert_eq!(bits(&ours.values), bits(&wide.values));
        sae.set_edits(0, &[Edit::new(3, EditOp::Add, 50.0)])?;
        let before = bits(&narrow.to_dtype(DType::F32)?);
        sae.steer(&narrow)?;
        assert_eq!(narrow.dtype(), dtype);
        assert_ne!(bits(&narrow.to_dtype(DType::F32)?), before);
    }
    Ok(())
}

#[test]
fn what_is_wrong_is_said() -> Result<()> {
    let sae = sae();
    let said = |result: Result<()>| result.unwrap_err().to_string();
    let encode = |x: &Tensor| said(sae.encode(x).map(drop));
    assert!(encode(&x().narrow(2, 1, D - 1)?).contains("576"));
    assert!(encode(&x().to_dtype(DType::F64)?).contains("F64"));
    assert!(encode(&x().transpose(0, 2)?).contains("contiguous()"));
    assert!(encode(&x().transpose(0, 1)?).contains("contiguous()"));
    assert!(encode(&Tensor::new(1f32, &Device::Cpu)?).contains("scalar"));
    assert!(encode(&Tensor::zeros((65, D), DType::F32, &Device::Cpu)?).contains("65"));
    assert!(said(sae.steer_rows(&x(), &[0; 31])).contains("31"));
    assert!(said(sae.set_edits(2, &[])).contains('2'));
    assert_eq!(sae.encode(&x().narrow(1, 0, 0)?)?.values.dims(), &[2, 0, K]);
    Ok(())
}
