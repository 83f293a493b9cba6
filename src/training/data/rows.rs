//! Rows of activations in memory of their own, in the type they were stored in.

use half::{bf16, f16};

use crate::error::{Result, fail};
use crate::tensor::{AlignedBytes, DType, Element, Tensor, try_vec};

/// More elements than any row has.
const MAX_ROW: usize = 1 << 24;

/// What a row is: a vector `[d]`, or one of each layer, `[layers, d]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Layers of a row; `None`: rows are vectors, and batches `[T, d]`.
    pub layers: Option<usize>,
    /// Width of a vector.
    pub d: usize,
    /// Type of the elements: f32, f16 or bf16.
    pub dtype: DType,
}

impl Layout {
    /// Rows `[d]`.
    pub fn vectors(d: usize, dtype: DType) -> Self {
        Self { layers: None, d, dtype }
    }

    /// Refuses what are not rows.
    pub fn check(&self) -> Result<()> {
        let layers = self.layers.unwrap_or(1);
        if self.d == 0 || layers == 0 || self.d.checked_mul(layers).is_none_or(|len| len > MAX_ROW) {
            return fail!(InvalidArgument, "rows of {layers} layers of d {}: expected 1 to {MAX_ROW} elements", self.d);
        }
        if !self.dtype.is_float() {
            return fail!(InvalidArgument, "rows are f32, f16 or bf16, not {}", self.dtype);
        }
        Ok(())
    }

    /// Elements of a row.
    pub fn row_len(&self) -> usize {
        self.layers.unwrap_or(1) * self.d
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_len() * self.dtype.size()
    }

    /// The shape of a batch: `[rows, d]` or `[rows, layers, d]`.
    pub fn shape(&self, rows: usize) -> Vec<usize> {
        [rows].into_iter().chain(self.layers).chain([self.d]).collect()
    }

    /// Bytes of so many rows, which are aligned to the type, as a batch.
    pub(super) fn tensor<'a>(&self, bytes: &'a [u8], rows: usize) -> Tensor<'a> {
        self.view(bytes, &self.shape(rows))
    }

    /// Bytes of one row, likewise, as `[1, row_len]`.
    pub(super) fn row<'a>(&self, bytes: &'a [u8]) -> Tensor<'a> {
        self.view(bytes, &[1, self.row_len()])
    }

    fn view<'a>(&self, bytes: &'a [u8], shape: &[usize]) -> Tensor<'a> {
        fn view<'a, T: Element>(bytes: &'a [u8], shape: &[usize]) -> Tensor<'a> {
            Tensor::new::<T>(bytemuck::cast_slice(bytes), shape).expect("rows are as wide as their layout says")
        }
        match self.dtype {
            DType::F16 => view::<f16>(bytes, shape),
            DType::BF16 => view::<bf16>(bytes, shape),
            _ => view::<f32>(bytes, shape),
        }
    }
}

/// A batch of rows: room for so many, of which some are filled.
pub struct Rows {
    layout: Layout,
    room: usize,
    bytes: AlignedBytes,
    documents: Vec<i64>,
    len: usize,
}

impl Rows {
    /// Room for so many rows, none of them filled.
    pub fn new(layout: Layout, room: usize) -> Result<Self> {
        layout.check()?;
        let bytes = AlignedBytes::zeroed(layout.row_bytes().saturating_mul(room))?;
        Ok(Self { layout, room, bytes, documents: try_vec(0, room)?, len: 0 })
    }

    /// What a row is.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// How many rows there is room for.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Makes room for so many rows, but not for more than it was made for.
    pub fn set_room(&mut self, room: usize) {
        self.room = room.min(self.documents.len());
        self.len = self.len.min(self.room);
    }

    /// How many rows are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no row is filled.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The filled rows, `[T, d]` or `[T, layers, d]`.
    pub fn tensor(&self) -> Tensor<'_> {
        self.layout.tensor(self.filled(), self.len)
    }

    /// One layer of the filled rows, `[T, d]`: for an SAE that reads that layer alone.
    pub fn layer(&self, layer: usize) -> Result<Tensor<'_>> {
        let layers = self.layout.layers.unwrap_or(1);
        if layer >= layers {
            return fail!(InvalidArgument, "layer {layer} of {layers}");
        }
        fn view<'a, T: Element>(bytes: &'a [u8], layout: &Layout, layer: usize, rows: usize) -> Result<Tensor<'a>> {
            let values: &[T] = bytemuck::cast_slice(bytes);
            let from = (layer * layout.d).min(values.len());
            Tensor::strided(&values[from..], rows, layout.d, layout.row_len())
        }
        match self.layout.dtype {
            DType::F16 => view::<f16>(self.filled(), &self.layout, layer, self.len),
            DType::BF16 => view::<bf16>(self.filled(), &self.layout, layer, self.len),
            _ => view::<f32>(self.filled(), &self.layout, layer, self.len),
        }
    }

    /// The document of each filled row; 0 where the source knows of none.
    pub fn documents(&self) -> &[i64] {
        &self.documents[..self.len]
    }

    /// The bytes of the filled rows, one after the other.
    pub fn filled(&self) -> &[u8] {
        &self.bytes.as_slice()[..self.len * self.layout.row_bytes()]
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Keeps the first rows alone.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Fills the next row, for which there must be room, with bytes of the layout's type.
    pub fn push(&mut self, row: &[u8], document: i64) {
        let bytes = self.layout.row_bytes();
        assert!(row.len() == bytes && self.len < self.room, "row {} of {}, {} bytes", self.len, self.room, row.len());
        self.bytes.as_mut_slice()[self.len * bytes..][..bytes].copy_from_slice(row);
        self.documents[self.len] = document;
        self.len += 1;
    }
}
