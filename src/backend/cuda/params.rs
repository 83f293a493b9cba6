//! What kernels are given: the structures of kernels/params.cuh, which says what every field is, and the list of kernels.
//! tests/cuda_kernels compares the layouts.

#![allow(missing_docs, reason = "params.cuh documents every field")]

use bytemuck::{Pod, Zeroable};

/// An address in the device's memory; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// None.
    pub const NULL: Self = Self(0);
}

/// What one kernel is given.
pub trait Params: Pod {
    /// The kernel.
    const KERNEL: Kernel;
}

/// A structure's name, its size, and its fields' names and offsets.
pub type Layout = (&'static str, usize, &'static [(&'static str, usize)]);

macro_rules! structures {
    ($($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* })*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type,)* })*

        /// How all of them lie in memory.
        pub const LAYOUTS: &[Layout] = &[
            $((stringify!($name), size_of::<$name>(), &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*]),)*
        ];
    };
}

macro_rules! kernels {
    ($($kernel:ident, $name:literal, $params:ident;)*) => {
        /// A kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kernel { $($kernel,)* }

        impl Kernel {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kernel,)*];

            /// Its name in the embedded code.
            pub const fn symbol(self) -> &'static str {
                match self { $(Self::$kernel => concat!("sae_", $name),)* }
            }
        }

        $(impl Params for $params {
            const KERNEL: Kernel = Kernel::$kernel;
        })*
    };
}

kernels! {
    Prepare, "prepare", PrepareParams;
    Bounds, "bounds", BoundsParams;
    Score, "score", ScoreParams;
    ScoreOne, "score_one", ScoreOneParams;
    Winnow, "winnow", WinnowParams;
    ScoreSelected, "score_selected", ScoreSelectedParams;
    Screen, "screen", ScreenParams;
    Fast, "fast", FastParams;
    Product, "product", ProductParams;
    Tighten, "tighten", TightenParams;
    Rescore, "rescore", RescoreParams;
    Exact, "exact", ExactParams;
    GroupBest, "group_best", GroupBestParams;
    Select, "select", SelectParams;
    Scatter, "scatter", ScatterParams;
    Lookup, "lookup", LookupParams;
    Decode, "decode", DecodeParams;
    SteerPlan, "steer_plan", SteerPlanParams;
    Steer, "steer", SteerParams;
    MergePart, "merge_part", MergePartParams;
    Explain, "explain", ExplainParams;
    Lists, "lists", ListsParams;
    Fill, "fill", FillParams;
    Backward, "backward", BackwardParams;
    Update, "update", UpdateParams;
}

/// Types of numbers.
pub mod dtype {
    pub const F32: i32 = 0;
    pub const F16: i32 = 1;
    pub const BF16: i32 = 2;
}

/// Which candidates are active.
pub mod selection {
    pub const ALL: i32 = 0;
    pub const TOP_K: i32 = 1;
    pub const ABS_TOP_K: i32 = 2;
    pub const GROUP_MAX: i32 = 3;
}

/// What `score` makes.
pub mod what {
    pub const ACTIVATIONS: i32 = 0;
    pub const PRE_ACTIVATIONS: i32 = 1;
    pub const DOTS: i32 = 2;
}

/// What is done to a token before encoding.
pub mod normalization {
    pub const NONE: i32 = 0;
    pub const LAYER_NORM: i32 = 1;
    pub const CONSTANT_NORM: i32 = 2;
}

/// Orders of features.
pub mod order {
    pub const BY_VALUE: i32 = 0;
    pub const BY_INDEX: i32 = 1;
}

/// What an edit does.
pub mod edit_op {
    pub const ADD: i32 = 0;
    pub const SET: i32 = 1;
    pub const SCALE: i32 = 2;
    pub const ABLATE: i32 = 3;
}

pub const SCORE_LATENTS: usize = 64;
pub const SCORE_TOKENS: usize = 4;
pub const WINNOW_LATENTS: usize = 4096;
pub const SCREEN_LATENTS: usize = 128;
pub const SCREEN_TOKENS: usize = 128;
pub const SCREEN_SHARED: u32 = 65536;
pub const EXACT_TOKENS: usize = 4;
pub const EXACT_KEYS: usize = 512;
pub const DECODE_COLUMNS: usize = 512;

structures! {
    /// Rows of a host's tensor.
    struct Vectors {
        data: DevicePtr,
        row_stride: i64,
        layer_stride: i64,
        layer_size: i32,
        dtype: i32,
    }

    /// Weights, one row after another.
    struct Matrix {
        data: DevicePtr,
        stride: i64,
        dtype: i32,
        reserved: i32,
    }

    /// Features in a host's tensors.
    struct Features {
        values: DevicePtr,
        indices: DevicePtr,
        counts: DevicePtr,
        row_state: DevicePtr,
        values_stride: i64,
        indices_stride: i64,
        counts_stride: i64,
        state_stride: i64,
        width: i32,
        dtype: i32,
        state_width: i32,
        reserved: i32,
    }

    /// The encoding half of an SAE.
    struct Latents {
        w_enc: Matrix,
        w_glu: Matrix,
        b_enc: DevicePtr,
        gain: DevicePtr,
        b_gate: DevicePtr,
        b_glu: DevicePtr,
        scale: DevicePtr,
        threshold: DevicePtr,
        threshold_scale: DevicePtr,
        rank_scale: DevicePtr,
        n: i32,
        d: i32,
        first: i32,
        selection: i32,
        k: i32,
        group: i32,
    }

    /// What is kept of a token while a call runs.
    struct Token {
        state0: f32,
        state1: f32,
        state: i32,
        x: f32,
        dx: f32,
        floor: f32,
        waiting: u32,
        active: i32,
    }

    /// How far a latent's score can be from its bf16 product's.
    struct Bound {
        factor: f32,
        bias: f32,
        lost: f32,
        norm: f32,
        reach: f32,
        threshold: f32,
        reserved0: f32,
        reserved1: f32,
    }

    /// An edit.
    struct Edit {
        feature: i32,
        op: i32,
        strength: f32,
        limit: f32,
        only_active: i32,
        reserved0: i32,
        reserved1: i32,
        reserved2: i32,
    }

    /// Lists of edits, and which row has which.
    struct Edits {
        edits: DevicePtr,
        lengths: DevicePtr,
        row_slot: DevicePtr,
        row_slot_stride: i64,
        slots: i32,
        per_slot: i32,
    }

    /// From the host's activations to x'', the token's statistics, its bf16 image and what that lost.
    struct PrepareParams {
        x: Vectors,
        addend: Vectors,
        b_dec: DevicePtr,
        wanted: DevicePtr,
        out: DevicePtr,
        raw: DevicePtr,
        rounded: DevicePtr,
        tokens: DevicePtr,
        overflowed: DevicePtr,
        peaks: DevicePtr,
        padded: i64,
        rounded_stride: i64,
        rows: i32,
        d: i32,
        normalization: i32,
        center: i32,
        round_sum: i32,
        reserved: i32,
    }

    /// Once for each model.
    struct BoundsParams {
        latents: Latents,
        rounded: DevicePtr,
        bounds: DevicePtr,
        peaks: DevicePtr,
        rounded_stride: i64,
    }

    /// Canonical scores of all latents.
    struct ScoreParams {
        latents: Latents,
        x: DevicePtr,
        tokens: DevicePtr,
        out: Vectors,
        padded: i64,
        rows: i32,
        what: i32,
    }

    /// The same for T = 1.
    struct ScoreOneParams {
        score: ScoreParams,
    }

    /// Of the scores of a range of latents, the largest as keys into the token's list, where they wait to be selected from;.
    struct WinnowParams {
        scores: DevicePtr,
        keys: DevicePtr,
        tokens: DevicePtr,
        scores_stride: i64,
        keys_stride: i64,
        rows: i32,
        n: i32,
        first: i32,
        gathered: i32,
    }

    /// Activations of chosen latents that do not compete.
    struct ScoreSelectedParams {
        latents: Latents,
        x: DevicePtr,
        tokens: DevicePtr,
        ids: DevicePtr,
        out: Vectors,
        ignored: DevicePtr,
        padded: i64,
        ids_stride: i64,
        rows: i32,
        m: i32,
    }

    /// Bf16 products of a range of latents, of which those whose bound reaches the floor are put into their tokens' lists.
    struct ScreenParams {
        x: DevicePtr,
        w: DevicePtr,
        bounds: DevicePtr,
        tokens: DevicePtr,
        waiting: DevicePtr,
        lower: DevicePtr,
        x_stride: i64,
        w_stride: i64,
        capacity: i64,
        rows: i32,
        d: i32,
        first: i32,
        count: i32,
        magnitude: i32,
        reserved: i32,
    }

    /// As a screen, but products are taken for the scores' own: what reaches the floor is put into the lists as keys.
    struct FastParams {
        latents: Latents,
        x: DevicePtr,
        w: DevicePtr,
        tokens: DevicePtr,
        waiting: DevicePtr,
        lower: DevicePtr,
        x_stride: i64,
        w_stride: i64,
        capacity: i64,
        rows: i32,
        first: i32,
        count: i32,
        reserved: i32,
    }

    /// Such scores of all latents.
    struct ProductParams {
        latents: Latents,
        x: DevicePtr,
        w: DevicePtr,
        tokens: DevicePtr,
        out: Vectors,
        x_stride: i64,
        w_stride: i64,
        rows: i32,
        what: i32,
    }

    /// Raises floors to the k-th largest lower bound and drops what is below.
    struct TightenParams {
        tokens: DevicePtr,
        waiting: DevicePtr,
        lower: DevicePtr,
        overflowed: DevicePtr,
        capacity: i64,
        rows: i32,
        k: i32,
    }

    /// Canonical scores of what waits; the likeliest k first, which may spare the others.
    struct RescoreParams {
        latents: Latents,
        x: DevicePtr,
        tokens: DevicePtr,
        waiting: DevicePtr,
        lower: DevicePtr,
        padded: i64,
        capacity: i64,
        rows: i32,
        reserved: i32,
    }

    /// The keys of tokens that overflowed, from the scores of all latents.
    struct ExactParams {
        latents: Latents,
        x: DevicePtr,
        tokens: DevicePtr,
        waiting: DevicePtr,
        overflowed: DevicePtr,
        padded: i64,
        capacity: i64,
        gathered: i32,
        ranges: i32,
    }

    /// The largest of each group, as keys.
    struct GroupBestParams {
        scores: DevicePtr,
        keys: DevicePtr,
        scores_stride: i64,
        keys_stride: i64,
        rows: i32,
        n: i32,
        group: i32,
        first: i32,
    }

    /// The largest of each token, in order; features.
    struct SelectParams {
        latents: Latents,
        keys: DevicePtr,
        scores: DevicePtr,
        x: DevicePtr,
        tokens: DevicePtr,
        kept: DevicePtr,
        out: Features,
        padded: i64,
        keys_stride: i64,
        scores_stride: i64,
        kept_stride: i64,
        rows: i32,
        length: i32,
        gathered: i32,
        order: i32,
        counted: i32,
        reserved: i32,
    }

    /// Dense activations from kept keys.
    struct ScatterParams {
        kept: DevicePtr,
        tokens: DevicePtr,
        out: Vectors,
        kept_stride: i64,
        rows: i32,
        n: i32,
        first: i32,
        limit: i32,
    }

    /// Activations of chosen latents from kept keys.
    struct LookupParams {
        kept: DevicePtr,
        tokens: DevicePtr,
        ids: DevicePtr,
        out: Vectors,
        ignored: DevicePtr,
        kept_stride: i64,
        ids_stride: i64,
        rows: i32,
        m: i32,
        n: i32,
        first: i32,
        limit: i32,
        reserved: i32,
    }

    /// A gather of decoder rows in the order of the slots.
    struct DecodeParams {
        w_dec: Matrix,
        b_dec: DevicePtr,
        norms: DevicePtr,
        skip: DevicePtr,
        features: Features,
        kept: DevicePtr,
        tokens: DevicePtr,
        out: Vectors,
        ignored: DevicePtr,
        skip_stride: i64,
        kept_stride: i64,
        rows: i32,
        d: i32,
        n: i32,
        first: i32,
        limit: i32,
        normalization: i32,
        center: i32,
        denormalize: i32,
    }

    /// Which rows must be encoded because their edits need to know which of the competing latents won.
    struct SteerPlanParams {
        edits: Edits,
        known: Features,
        wanted: DevicePtr,
        rows: i32,
        reserved: i32,
    }

    /// The effect of edits added to activations.
    struct SteerParams {
        latents: Latents,
        edits: Edits,
        known: Features,
        x: DevicePtr,
        tokens: DevicePtr,
        kept: DevicePtr,
        w_dec: Matrix,
        norms: DevicePtr,
        y: Vectors,
        out: Vectors,
        deltas: DevicePtr,
        ignored: DevicePtr,
        padded: i64,
        kept_stride: i64,
        rows: i32,
        d: i32,
        limit: i32,
        normalization: i32,
        center: i32,
        denormalize: i32,
    }

    /// One shard's features as keys, from `offset` on, 0 where there is none; the statistics are the first part's.
    struct MergePartParams {
        part: Features,
        keys: DevicePtr,
        tokens: DevicePtr,
        ignored: DevicePtr,
        keys_stride: i64,
        offset: i64,
        rows: i32,
        is_first: i32,
    }

    /// What a token's codes leave of its target, and how the loss pull / 2 * sum (target - sum z W_dec)^2 pulls at each of them.
    struct ExplainParams {
        codes: Features,
        ids: DevicePtr,
        targets: DevicePtr,
        w_dec: DevicePtr,
        leftover: DevicePtr,
        pulls: DevicePtr,
        errors: DevicePtr,
        starts: DevicePtr,
        padded: i64,
        rows: i32,
        d: i32,
        pull: f32,
        reserved: i32,
    }

    /// Counts become the places where latents' lists start.
    struct ListsParams {
        starts: DevicePtr,
        ends: DevicePtr,
        n: i32,
        reserved: i32,
    }

    /// The slots of codes, latent by latent, in no order.
    struct FillParams {
        codes: Features,
        ids: DevicePtr,
        ends: DevicePtr,
        slots: DevicePtr,
        rows: i32,
        reserved: i32,
    }

    /// Adds the gradients by W_enc, b_enc and W_dec, latent by latent, over tokens in their order.
    struct BackwardParams {
        codes: Features,
        starts: DevicePtr,
        slots: DevicePtr,
        inputs: DevicePtr,
        leftover: DevicePtr,
        pulls: DevicePtr,
        w_enc: DevicePtr,
        w_dec: DevicePtr,
        b_enc: DevicePtr,
        touched: DevicePtr,
        padded: i64,
        d: i32,
        pull: f32,
    }

    /// One step of a matrix, or of a vector as a matrix of one row: the part of the gradient parallel to the row is removed, moving.
    struct UpdateParams {
        w: DevicePtr,
        m: DevicePtr,
        v: DevicePtr,
        ema: DevicePtr,
        g: DevicePtr,
        touched: DevicePtr,
        rounded: DevicePtr,
        stride: i64,
        rounded_stride: i64,
        d: i32,
        is_decoder: i32,
        gradient_scale: f32,
        beta1: f32,
        beta2: f32,
        rate: f32,
        root_scale: f32,
        epsilon: f32,
        ema_decay: f32,
        reserved: i32,
    }

}
