//! What every backend does for a session. The session has checked shapes, types, devices and overlaps before it calls.

use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::steering::Edit;
use crate::tensor::{AlignedBytes, Tensor, TensorMut};

/// The activations of a call: `x`, or `x + addend`.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[T, d_in]`; of a crosscoder also `[T, layers_in, d_in / layers_in]`.
    pub x: Tensor<'a>,
    /// Like x; engines that keep the residual stream in two parts hand in both.
    pub addend: Option<Tensor<'a>>,
    /// Round the sum to x's type, as engines do that write it back before reading it.
    pub round_sum: bool,
}

impl<'a> From<Tensor<'a>> for Input<'a> {
    fn from(x: Tensor<'a>) -> Self {
        Self { x, addend: None, round_sum: false }
    }
}

/// In which order a token's active latents are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Strongest first, ties by the lower index.
    #[default]
    Value,
    /// By index.
    Index,
}

/// Which stream of a GPU a call's work is put on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// The session's own.
    #[default]
    Session,
    /// The host's, by the driver's handle; 0 is the default stream.
    Host(u64),
    /// The session's own, and the call returns when the work is done. On the CPU, calls always do.
    Synchronous,
}

/// Working memory on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceWorkspace {
    /// Its address there, a multiple of 256.
    pub at: u64,
    /// Its bytes.
    pub size: usize,
}

/// How one call runs.
#[derive(Default)]
pub struct Run<'a> {
    /// Allow scores that are repeatable but not canonical. The CPU has no use for it: its scores are canonical anyway.
    pub fast: bool,
    /// Order of features.
    pub order: Order,
    /// Working memory of the host's, 64-byte aligned, instead of the session's.
    pub workspace: Option<&'a mut [u8]>,
    /// The same for an SAE on a GPU. Until the call's work is done, nobody else may use it.
    pub device_workspace: Option<DeviceWorkspace>,
    /// Where the work of an SAE on a GPU goes.
    pub stream: Stream,
}

/// What a session is prepared for; its memory follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens per call.
    pub max_tokens: usize,
    /// Slots per token in features.
    pub max_width: usize,
    /// Lists of edits.
    pub slots: usize,
    /// Edits in each list.
    pub edits_per_slot: usize,
}

/// Whether encoding first bounds every score by products of 8-bit integers, and takes the exact ones only of latents that
/// can still matter. Results are the same to the bit. It takes a copy of W_enc as bytes, `n_latents · d_in` of them and a
/// little more, which the sessions of a model share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Screen {
    /// Where it is faster, unless W_enc is a mapped file's, whose bytes are not to be copied into memory unasked.
    #[default]
    Auto,
    /// No copy.
    Never,
    /// Wherever the architecture allows it: not with a GLU encoder, nor for GroupMax.
    Always,
}

impl Screen {
    /// Whether so few latents win, of `n`, that finding them by bounds is less work than scoring all; `k` if they compete.
    pub(super) fn pays(n: usize, k: Option<usize>) -> bool {
        n >= 1024 && k.is_none_or(|k| 16 * k <= n)
    }
}

/// Whom to steer, and where.
pub struct Steering<'a> {
    /// `[T]` i32: each row's list of edits, −1 to leave it alone; absent: list 0 for all.
    pub row_slot: Option<Tensor<'a>>,
    /// Features of these rows, if they are already encoded.
    pub known: Option<FeaturesRef<'a>>,
    /// `[T, d_out]`, of a crosscoder also `[T, layers_out, d_out / layers_out]`: what is edited, in the type of `out`, which it may be; absent: `out` is edited in place.
    pub y: Option<Tensor<'a>>,
    /// Like y: where the result goes.
    pub out: TensorMut<'a>,
}

/// What a dense encoding holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Activations: 0 where a latent is not active.
    Activations,
    /// Pre-activations.
    PreActivations,
}

/// One stream of work over one SAE on one device.
pub trait Operations: Send {
    /// Bytes of working memory that every call needs.
    fn workspace_size(&self) -> usize;

    /// Sparse features of each token.
    fn encode(&mut self, run: Run<'_>, input: Input<'_>, out: FeaturesMut<'_>) -> Result<()>;

    /// Activations of the latents `ids` `[m]` alone, into `out` `[T, m]`.
    fn encode_selected(&mut self, run: Run<'_>, input: Input<'_>, ids: Tensor<'_>, out: TensorMut<'_>) -> Result<()>;

    /// All activations or pre-activations, into `z` `[T, n]`.
    fn encode_dense(&mut self, run: Run<'_>, input: Input<'_>, what: Wanted, z: TensorMut<'_>) -> Result<()>;

    /// Activation vectors from features; `x` is the raw input of models with a skip path.
    fn decode(
        &mut self,
        run: Run<'_>,
        features: FeaturesRef<'_>,
        x: Option<Tensor<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()>;

    /// Encode and decode at once, from all active latents; `features` gets as many as fit it.
    fn reconstruct(
        &mut self,
        run: Run<'_>,
        input: Input<'_>,
        features: Option<FeaturesMut<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()>;

    /// Replaces a list of edits, already checked against the limits and the model.
    fn set_edits(&mut self, slot: usize, edits: &[Edit]) -> Result<()>;

    /// Changes activations by the edits' effect in the decoder's space. Without an input, `out` holds it.
    fn steer(&mut self, run: Run<'_>, input: Option<Input<'_>>, steering: Steering<'_>) -> Result<()>;

    /// Features of latent shards into those of the whole.
    fn merge(&mut self, run: Run<'_>, parts: &[FeaturesRef<'_>], out: FeaturesMut<'_>) -> Result<()>;

    /// Indices and slots out of range that were taken for −1, since the session was made, as far as work is done.
    fn ignored_indices(&self) -> u64;

    /// Faults of the device so far; never waits.
    fn fault(&self) -> Result<()> {
        Ok(())
    }

    /// Waits until everything that was asked for is done, on whatever stream.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

/// Working memory: the session's own, or what a call brings.
pub(super) struct Workspace {
    own: AlignedBytes,
    size: usize,
}

impl Workspace {
    /// `size` bytes; none of our own if the host promises to bring them with every call.
    pub(super) fn new(size: usize, host_provides: bool) -> Result<Self> {
        Ok(Self { own: AlignedBytes::zeroed(if host_provides { 0 } else { size })?, size })
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The memory for one call.
    pub(super) fn get<'a>(&'a mut self, brought: Option<&'a mut [u8]>) -> Result<&'a mut [u8]> {
        match brought {
            Some(memory) if memory.len() < self.size => {
                fail!(InvalidArgument, "the workspace must hold {} bytes, this one holds {}", self.size, memory.len())
            }
            Some(memory) if !(memory.as_ptr() as usize).is_multiple_of(AlignedBytes::ALIGN) => {
                fail!(InvalidArgument, "the workspace must be aligned to {} bytes", AlignedBytes::ALIGN)
            }
            Some(memory) => Ok(&mut memory[..self.size]),
            None if self.own.as_slice().len() < self.size => fail!(
                InvalidArgument,
                "this session was made to run in the host's workspace: bring {} bytes with each call",
                self.size
            ),
            None => Ok(self.own.as_mut_slice()),
        }
    }
}
