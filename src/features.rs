//! Sparse features of a batch of tokens: for each token, which latents are active and how strongly.
//!
//! Shapes are fixed by `width`, so that nothing depends on the data: unused slots hold index −1 and value 0. `counts` says
//! how many latents were active, even when more than `width` (the largest are kept), and is −1 for a token whose
//! activation vector was not finite.

use crate::error::{Result, fail};
use crate::tensor::{DType, Tensor, TensorMut};

/// Features in the host's memory, to read.
#[derive(Clone, Copy)]
pub struct FeaturesRef<'a> {
    /// `[T, width]`, f32, f16 or bf16.
    pub values: Tensor<'a>,
    /// `[T, width]`, i32; global latent indices.
    pub indices: Tensor<'a>,
    /// `[T]`, i32.
    pub counts: Tensor<'a>,
    /// `[T, row_state_width]`, f32: what decoding needs of each token; absent where that width is 0.
    pub row_state: Option<Tensor<'a>>,
}

/// Features in the host's memory, to write.
pub struct FeaturesMut<'a> {
    /// `[T, width]`, f32, f16 or bf16.
    pub values: TensorMut<'a>,
    /// `[T, width]`, i32; global latent indices.
    pub indices: TensorMut<'a>,
    /// `[T]`, i32.
    pub counts: TensorMut<'a>,
    /// `[T, row_state_width]`, f32; absent where that width is 0.
    pub row_state: Option<TensorMut<'a>>,
}

impl<'a> FeaturesRef<'a> {
    /// Tokens.
    pub fn rows(&self) -> usize {
        self.counts.rows()
    }

    /// Slots per token.
    pub fn width(&self) -> usize {
        self.values.shape().last().copied().unwrap_or(0)
    }

    /// The value of latent `index` on a token, 0 if it is not listed.
    pub fn activation(&self, row: usize, index: i32) -> f32 {
        let Some(slot) = self.indices.row::<i32>(row).iter().position(|&i| i == index) else { return 0.0 };
        match self.values.dtype() {
            DType::F16 => self.values.row::<half::f16>(row)[slot].to_f32(),
            DType::BF16 => self.values.row::<half::bf16>(row)[slot].to_f32(),
            DType::F32 | DType::I32 => self.values.row::<f32>(row)[slot],
        }
    }

    /// What decoding needs of a token, as far as the row state goes; zeros beyond it.
    pub(crate) fn state(&self, row: usize) -> [f32; 2] {
        let mut state = [0.0; 2];
        if let Some(given) = &self.row_state {
            let given = given.row::<f32>(row);
            state[..given.len()].copy_from_slice(given);
        }
        state
    }

    /// Refuses tensors that do not fit each other, `rows` tokens, or the model's row state.
    pub fn check(&self, rows: usize, row_state_width: usize) -> Result<()> {
        let width = self.width();
        check_tensor("features.values", &self.values, &[rows, width], |t| t.is_float(), "f32, f16 or bf16")?;
        check_tensor("features.indices", &self.indices, &[rows, width], |t| t == DType::I32, "i32")?;
        check_tensor("features.counts", &self.counts, &[rows], |t| t == DType::I32, "i32")?;
        match &self.row_state {
            None if row_state_width > 0 => {
                fail!(InvalidTensor, "features.row_state: [{rows}, {row_state_width}] of f32 is needed, but absent")
            }
            Some(_) if row_state_width == 0 => {
                fail!(InvalidTensor, "features.row_state: this model keeps no row state; leave the tensor absent")
            }
            Some(state) => {
                check_tensor("features.row_state", state, &[rows, row_state_width], |t| t == DType::F32, "f32")
            }
            None => Ok(()),
        }
    }

    /// Its tensors with their names, for checks of overlap.
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, Tensor<'a>)> {
        [
            ("features.values", Some(self.values)),
            ("features.indices", Some(self.indices)),
            ("features.counts", Some(self.counts)),
            ("features.row_state", self.row_state),
        ]
        .into_iter()
        .filter_map(|(name, tensor)| Some((name, tensor?)))
    }
}

impl FeaturesMut<'_> {
    /// The same features, to read.
    pub fn as_ref(&self) -> FeaturesRef<'_> {
        FeaturesRef {
            values: self.values.as_ref(),
            indices: self.indices.as_ref(),
            counts: self.counts.as_ref(),
            row_state: self.row_state.as_ref().map(TensorMut::as_ref),
        }
    }

    /// Slots per token.
    pub fn width(&self) -> usize {
        self.as_ref().width()
    }
}

/// Refuses a tensor of the wrong shape or type, by name.
pub(crate) fn check_tensor(
    name: &str,
    tensor: &Tensor<'_>,
    shape: &[usize],
    accepts: impl Fn(DType) -> bool,
    expected: &str,
) -> Result<()> {
    if tensor.shape() != shape {
        return fail!(InvalidTensor, "{name}: expected shape {shape:?}, found {:?}", tensor.shape());
    }
    if !accepts(tensor.dtype()) {
        return fail!(InvalidTensor, "{name}: expected {expected}, found {}", tensor.dtype());
    }
    Ok(())
}

/// Refuses a tensor that the processor cannot read, by name; `why` says who must.
pub(crate) fn check_host(name: &str, tensor: &Tensor<'_>, why: &str) -> Result<()> {
    if !tensor.device().is_host() {
        return fail!(Unsupported, "{name}: {why}, but the data is on {}", tensor.device());
    }
    Ok(())
}

/// Features in memory of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// Slots per token.
    pub width: usize,
    /// Floats of row state per token.
    pub row_state_width: usize,
    /// `[T, width]`.
    pub values: Vec<f32>,
    /// `[T, width]`.
    pub indices: Vec<i32>,
    /// `[T]`.
    pub counts: Vec<i32>,
    /// `[T, row_state_width]`.
    pub row_state: Vec<f32>,
}

impl Features {
    /// Room for `rows` tokens, empty.
    pub fn new(rows: usize, width: usize, row_state_width: usize) -> Self {
        Self {
            width,
            row_state_width,
            values: vec![0.0; rows * width],
            indices: vec![-1; rows * width],
            counts: vec![0; rows],
            row_state: vec![0.0; rows * row_state_width],
        }
    }

    /// Tokens.
    pub fn rows(&self) -> usize {
        self.counts.len()
    }

    /// The active latents of a token, as (index, value), in their order.
    pub fn row(&self, row: usize) -> impl Iterator<Item = (i32, f32)> {
        let slots = row * self.width..(row + 1) * self.width;
        std::iter::zip(&self.indices[slots.clone()], &self.values[slots])
            .map(|(&index, &value)| (index, value))
            .take_while(|(index, _)| *index >= 0)
    }

    /// A view to hand to a call.
    pub fn view(&self) -> FeaturesRef<'_> {
        let (rows, width, state) = (self.rows(), self.width, self.row_state_width);
        FeaturesRef {
            values: Tensor::new(&self.values, &[rows, width]).expect(SHAPED),
            indices: Tensor::new(&self.indices, &[rows, width]).expect(SHAPED),
            counts: Tensor::new(&self.counts, &[rows]).expect(SHAPED),
            row_state: (state > 0).then(|| Tensor::new(&self.row_state, &[rows, state]).expect(SHAPED)),
        }
    }

    /// A view for a call to write.
    pub fn view_mut(&mut self) -> FeaturesMut<'_> {
        let (rows, width, state) = (self.rows(), self.width, self.row_state_width);
        FeaturesMut {
            values: TensorMut::new(&mut self.values, &[rows, width]).expect(SHAPED),
            indices: TensorMut::new(&mut self.indices, &[rows, width]).expect(SHAPED),
            counts: TensorMut::new(&mut self.counts, &[rows]).expect(SHAPED),
            row_state: (state > 0).then(|| TensorMut::new(&mut self.row_state, &[rows, state]).expect(SHAPED)),
        }
    }
}

/// Why views of owned features cannot fail.
const SHAPED: &str = "the vectors were made with these lengths";
