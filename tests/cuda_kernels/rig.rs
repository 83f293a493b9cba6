//! An SAE in the kernels' hands: parameters from its spec and weights, and the sequences of launches that make an operation.

use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use half::{bf16, f16};
use sae::backend::cuda::params::*;
use sae::sae::{Architecture, Matrix as Weights, Normalization, Sae};
use sae::tensor::DType;

use crate::common::stand_in::StandIn;

pub fn at<T>(memory: &[T]) -> DevicePtr {
    DevicePtr(memory.as_ptr() as u64)
}

pub fn at_mut<T>(memory: &mut [T]) -> DevicePtr {
    DevicePtr(memory.as_mut_ptr() as u64)
}

pub fn code(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => dtype::F32,
        DType::F16 => dtype::F16,
        _ => dtype::BF16,
    }
}

pub fn round_up(n: usize, to: usize) -> usize {
    n.next_multiple_of(to)
}

pub fn launch<P: Params>(grid: [usize; 2], block: u32, shared: u32, params: &P, seed: u64) {
    // SAFETY: the rig's arrays are as long as params.cuh asks for.
    unsafe { StandIn::kernels().launch(grid.map(|n| n as u32), block, shared, params, seed) };
}

/// A host's tensor: rows with gaps between them and between layers, of any type.
pub struct Memory {
    words: Vec<u32>,
    dtype: DType,
    rows: usize,
    layers: usize,
    layer: usize,
    gap: usize,
    layers_first: bool,
}

impl Memory {
    pub fn new(dtype: DType, rows: usize, (layers, width): (usize, usize), gap: usize, layers_first: bool) -> Self {
        let layer = width / layers;
        let elements = rows * layers * (layer + gap);
        // A pattern that no result is made of.
        Self { words: vec![0x3e55_3e55; elements + 1], dtype, rows, layers, layer, gap, layers_first }
    }

    pub fn plain(dtype: DType, rows: usize, width: usize) -> Self {
        Self::new(dtype, rows, (1, width), 0, false)
    }

    fn place(&self, row: usize, j: usize) -> usize {
        let (v, step) = (self.vectors(), j / self.layer);
        row * v.row_stride as usize + step * v.layer_stride as usize + j % self.layer
    }

    pub fn vectors(&self) -> Vectors {
        let step = (self.layer + self.gap) as i64;
        let (row_stride, layer_stride) =
            if self.layers_first { (step, step * self.rows as i64) } else { (step * self.layers as i64, step) };
        Vectors {
            data: at(&self.words),
            row_stride,
            layer_stride,
            layer_size: self.layer as i32,
            dtype: code(self.dtype),
        }
    }

    /// Writes rows, rounded to the type; what they have become.
    pub fn fill(&mut self, values: &[f32]) -> Vec<f32> {
        let width = self.layers * self.layer;
        for (i, &v) in values.iter().enumerate() {
            let place = self.place(i / width, i % width);
            match self.dtype {
                DType::F32 => self.words[place] = v.to_bits(),
                DType::F16 => cast_slice_mut::<_, u16>(&mut self.words)[place] = f16::from_f32(v).to_bits(),
                _ => cast_slice_mut::<_, u16>(&mut self.words)[place] = bf16::from_f32(v).to_bits(),
            }
        }
        self.values()
    }

    /// Another one like it, unwritten.
    pub fn alike(&self) -> Self {
        Self::new(self.dtype, self.rows, (self.layers, self.layers * self.layer), self.gap, self.layers_first)
    }

    pub fn values(&self) -> Vec<f32> {
        let width = self.layers * self.layer;
        let value = |i: usize| {
            let place = self.place(i / width, i % width);
            match self.dtype {
                DType::F32 => f32::from_bits(self.words[place]),
                DType::F16 => f16::from_bits(cast_slice::<_, u16>(&self.words)[place]).to_f32(),
                _ => bf16::from_bits(cast_slice::<_, u16>(&self.words)[place]).to_f32(),
            }
        };
        (0..self.rows * width).map(value).collect()
    }

    /// Everything, gaps too.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// Features, and where they lie.
pub struct FeatureMemory {
    pub values: Memory,
    pub indices: Vec<i32>,
    pub counts: Vec<i32>,
    pub row_state: Vec<f32>,
    pub width: usize,
    pub state_width: usize,
}

impl FeatureMemory {
    pub fn new(dtype: DType, rows: usize, width: usize, state_width: usize) -> Self {
        Self {
            values: Memory::plain(dtype, rows, width),
            indices: vec![-77; rows * width],
            counts: vec![-77; rows],
            row_state: vec![-77.0; rows * state_width],
            width,
            state_width,
        }
    }

    pub fn params(&self) -> Features {
        Features {
            values: at(&self.values.words),
            indices: at(&self.indices),
            counts: at(&self.counts),
            row_state: if self.state_width > 0 { at(&self.row_state) } else { DevicePtr::NULL },
            values_stride: self.width as i64,
            indices_stride: self.width as i64,
            counts_stride: 1,
            state_stride: self.state_width as i64,
            width: self.width as i32,
            dtype: code(self.values.dtype),
            state_width: self.state_width as i32,
            reserved: 0,
        }
    }
}

/// How to encode.
#[derive(Clone, Copy, Debug)]
pub enum Route {
    /// The scores of all latents first.
    Dense,
    /// Bounds first; lists hold so many, and ranges of latents grow from this one.
    Screen { capacity: usize, first: usize },
}

/// What a token's rows came to.
pub struct Prepared {
    pub x: Vec<f32>,
    pub rounded: Vec<u16>,
    pub tokens: Vec<Token>,
    pub overflowed: Vec<i32>,
}

/// One token has a kernel of its own.
pub fn launch_score(params: &ScoreParams, seed: u64) {
    let (tiles, rows) = ((params.latents.n as usize).div_ceil(SCORE_LATENTS), params.rows as usize);
    match rows {
        1 => launch([tiles, 1], 256, 0, &ScoreOneParams { score: *params }, seed),
        _ => launch([tiles * rows.div_ceil(SCORE_TOKENS), 1], 256, 0, params, seed),
    }
}

pub struct Rig {
    pub sae: Sae,
    pub latents: Latents,
    pub seed: u64,
    /// Whether W_enc in bf16 is screened by a copy, as in other types, or as it is.
    pub copies: bool,
    /// Whether scores go through lists before the largest are selected.
    pub winnows: bool,
    bounds: Vec<Bound>,
    w_screen: Vec<u16>,
    peaks: Vec<u32>,
}

pub fn matrix(weights: &Weights) -> Matrix {
    Matrix { data: at(weights.bytes()), stride: weights.cols() as i64, dtype: code(weights.dtype()), reserved: 0 }
}

impl Rig {
    pub fn new(sae: Sae, seed: u64) -> Self {
        let (spec, weights) = (sae.spec(), sae.weights());
        let list = |v: Option<&[f32]>| v.map_or(DevicePtr::NULL, at);
        let competes = spec.architecture.k().is_some();
        let ranks = sae.decoder_norms().filter(|_| spec.select_by_decoder_norm);
        let latents = Latents {
            w_enc: matrix(&weights.w_enc),
            w_glu: weights.glu.as_ref().map_or(Matrix::zeroed(), |glu| matrix(&glu.w)),
            b_enc: at(&weights.b_enc),
            gain: list(weights.gate.as_ref().map(|_| sae.magnitude_gains())),
            b_gate: list(weights.gate.as_ref().map(|gate| gate.b_gate.as_slice())),
            b_glu: list(weights.glu.as_ref().map(|glu| glu.b.as_slice())),
            scale: list(sae.decoder_norms().filter(|_| spec.rescale_by_decoder_norm)),
            threshold: list(weights.threshold.as_deref()),
            threshold_scale: list(ranks.filter(|_| weights.threshold.is_some())),
            rank_scale: list(ranks.filter(|_| competes)),
            n: spec.n_latents as i32,
            d: spec.d_in as i32,
            first: spec.first_latent as i32,
            selection: match spec.architecture {
                Architecture::TopK { .. } => selection::TOP_K,
                Architecture::AbsTopK { .. } => selection::ABS_TOP_K,
                Architecture::GroupMax { .. } => selection::GROUP_MAX,
                _ => selection::ALL,
            },
            k: spec.architecture.k().unwrap_or(0) as i32,
            group: spec.group_size().unwrap_or(1) as i32,
        };
        let seen = weights.w_enc.dtype() == DType::BF16 && spec.d_in.is_multiple_of(8);
        Self {
            latents,
            seed,
            copies: !seen,
            winnows: seed % 2 == 1,
            bounds: vec![],
            w_screen: vec![],
            peaks: vec![0; 2],
            sae,
        }
    }

    pub fn n(&self) -> usize {
        self.sae.spec().n_latents
    }

    pub fn d(&self) -> usize {
        self.sae.spec().d_in
    }

    pub fn padded(&self) -> usize {
        round_up(self.d(), 16)
    }

    fn stride(&self) -> usize {
        round_up(self.d(), 8)
    }

    pub fn normalization(&self) -> i32 {
        match self.sae.spec().normalization {
            Normalization::None => normalization::NONE,
            Normalization::LayerNorm => normalization::LAYER_NORM,
            Normalization::ConstantNorm => normalization::CONSTANT_NORM,
        }
    }

    /// What is done once for a model.
    fn load(&mut self) {
        if !self.bounds.is_empty() {
            return;
        }
        self.bounds = vec![Bound::zeroed(); self.n()];
        self.w_screen = vec![0x7fff; if self.copies { self.n() * self.stride() } else { 0 }];
        let params = BoundsParams {
            latents: self.latents,
            rounded: if self.copies { at_mut(&mut self.w_screen) } else { DevicePtr::NULL },
            bounds: at_mut(&mut self.bounds),
            peaks: at_mut(&mut self.peaks),
            rounded_stride: self.stride() as i64,
        };
        launch([self.n().div_ceil(8), 1], 256, 0, &params, self.seed);
    }

    pub fn prepare(
        &mut self,
        x: Vectors,
        addend: Option<(Vectors, bool)>,
        rows: usize,
        wanted: Option<&[i32]>,
        screened: bool,
    ) -> Prepared {
        if screened {
            self.load();
        }
        let mut prepared = Prepared {
            x: vec![f32::NAN; rows * self.padded()],
            rounded: vec![0x7fff; if screened { rows * self.stride() } else { 0 }],
            tokens: vec![Token::zeroed(); rows],
            overflowed: vec![0; rows + 1],
        };
        let spec = self.sae.spec();
        let params = PrepareParams {
            x,
            addend: addend.map_or(Vectors::zeroed(), |(addend, _)| addend),
            b_dec: if spec.subtract_b_dec { at(&self.sae.weights().b_dec) } else { DevicePtr::NULL },
            wanted: wanted.map_or(DevicePtr::NULL, at),
            out: at_mut(&mut prepared.x),
            raw: DevicePtr::NULL,
            rounded: if screened { at_mut(&mut prepared.rounded) } else { DevicePtr::NULL },
            tokens: at_mut(&mut prepared.tokens),
            overflowed: at_mut(&mut prepared.overflowed),
            peaks: at(&self.peaks),
            padded: self.padded() as i64,
            rounded_stride: self.stride() as i64,
            rows: rows as i32,
            d: self.d() as i32,
            normalization: self.normalization(),
            center: i32::from(spec.center),
            round_sum: i32::from(addend.is_some_and(|(_, round)| round)),
            reserved: 0,
        };
        launch([rows, 1], 128, 0, &params, self.seed);
        prepared
    }

    /// Rows of x as they are, padded.
    pub fn raw(&self, x: Vectors, rows: usize) -> Vec<f32> {
        let mut raw = vec![f32::NAN; rows * self.padded()];
        let params = PrepareParams {
            x,
            raw: at_mut(&mut raw),
            padded: self.padded() as i64,
            rows: rows as i32,
            d: self.d() as i32,
            ..PrepareParams::zeroed()
        };
        launch([rows, 1], 128, 0, &params, self.seed);
        raw
    }

    pub fn score(&self, prepared: &Prepared, what: i32, out: Vectors) {
        let rows = prepared.tokens.len();
        let params = ScoreParams {
            latents: self.latents,
            x: at(&prepared.x),
            tokens: at(&prepared.tokens),
            out,
            padded: self.padded() as i64,
            rows: rows as i32,
            what,
        };
        launch_score(&params, self.seed);
    }

    /// Most keys that can be kept of a token whose features have `width` slots.
    pub fn gathered(&self, width: usize) -> usize {
        match self.sae.spec().architecture.k() {
            Some(k) => k.min(self.n()),
            None => width.min(self.n()),
        }
    }

    /// Encodes; gives the kept keys and their stride.
    pub fn encode(
        &mut self,
        prepared: &mut Prepared,
        route: Route,
        gathered: usize,
        order: i32,
        out: Option<&FeatureMemory>,
    ) -> (Vec<u64>, usize) {
        let rows = prepared.tokens.len();
        let kept_stride = gathered.next_power_of_two();
        let mut kept = vec![0x1234u64; rows * kept_stride];
        let mut params = SelectParams {
            latents: self.latents,
            x: at(&prepared.x),
            tokens: at_mut(&mut prepared.tokens),
            kept: at_mut(&mut kept),
            out: out.map_or(Features::zeroed(), FeatureMemory::params),
            padded: self.padded() as i64,
            kept_stride: kept_stride as i64,
            rows: rows as i32,
            gathered: gathered as i32,
            order,
            ..SelectParams::zeroed()
        };
        match route {
            Route::Dense => {
                let scores = Memory::plain(DType::F32, rows, self.n());
                self.score(prepared, what::ACTIVATIONS, scores.vectors());
                params.scores = at(scores.words());
                params.scores_stride = self.n() as i64;
                let (groups, ranges) = (self.n() / self.latents.group as usize, self.n().div_ceil(WINNOW_LATENTS));
                let room = groups.max(ranges * gathered.min(WINNOW_LATENTS));
                let mut keys = vec![0u64; rows * room];
                if self.latents.selection == selection::GROUP_MAX {
                    let best = GroupBestParams {
                        scores: params.scores,
                        keys: at_mut(&mut keys),
                        scores_stride: params.scores_stride,
                        keys_stride: room as i64,
                        rows: rows as i32,
                        n: self.n() as i32,
                        group: self.latents.group,
                        first: self.latents.first,
                    };
                    launch([groups.div_ceil(256), rows], 256, 0, &best, self.seed);
                    (params.keys, params.scores) = (at(&keys), DevicePtr::NULL);
                    (params.keys_stride, params.length) = (room as i64, groups as i32);
                } else if self.winnows {
                    let winnow = WinnowParams {
                        scores: params.scores,
                        keys: at_mut(&mut keys),
                        tokens: params.tokens,
                        scores_stride: params.scores_stride,
                        keys_stride: room as i64,
                        rows: rows as i32,
                        n: self.n() as i32,
                        first: self.latents.first,
                        gathered: gathered as i32,
                    };
                    launch([ranges, rows], 256, 0, &winnow, self.seed);
                    (params.keys, params.scores) = (at(&keys), DevicePtr::NULL);
                    (params.keys_stride, params.length, params.counted) = (room as i64, -(room as i32), 1);
                }
                launch([rows, 1], 256, 0, &params, self.seed);
            }
            Route::Screen { capacity, first } => {
                let (mut waiting, mut lower) = (vec![0u64; rows * capacity], vec![0f32; rows * capacity]);
                self.screen(prepared, &mut waiting, &mut lower, capacity, first, gathered);
                params.keys = at(&waiting);
                params.keys_stride = capacity as i64;
                params.length = -(capacity as i32);
                launch([rows, 1], 256, 0, &params, self.seed);
            }
        }
        (kept, kept_stride)
    }

    fn screen(
        &mut self,
        prepared: &mut Prepared,
        waiting: &mut [u64],
        lower: &mut [f32],
        capacity: usize,
        first: usize,
        gathered: usize,
    ) {
        let (rows, mut start, mut count) = (prepared.tokens.len(), 0, first);
        while start < self.n() {
            count = count.min(self.n() - start);
            let w = if self.copies { at(&self.w_screen) } else { at(self.sae.weights().w_enc.bytes()) };
            let params = ScreenParams {
                x: at(&prepared.rounded),
                w,
                bounds: at(&self.bounds),
                tokens: at_mut(&mut prepared.tokens),
                waiting: at_mut(waiting),
                lower: at_mut(lower),
                x_stride: self.stride() as i64,
                w_stride: self.stride() as i64,
                capacity: capacity as i64,
                rows: rows as i32,
                d: self.d() as i32,
                first: start as i32,
                count: count as i32,
                magnitude: i32::from(self.latents.selection == selection::ABS_TOP_K),
                reserved: 0,
            };
            let tiles = count.div_ceil(SCREEN_LATENTS) * rows.div_ceil(SCREEN_TOKENS);
            launch([tiles, 1], 256, SCREEN_SHARED, &params, self.seed);
            let params = TightenParams {
                tokens: at_mut(&mut prepared.tokens),
                waiting: at_mut(waiting),
                lower: at_mut(lower),
                overflowed: at_mut(&mut prepared.overflowed),
                capacity: capacity as i64,
                rows: rows as i32,
                k: self.latents.k,
            };
            launch([rows, 1], 256, 0, &params, self.seed);
            (start, count) = (start + count, 2 * count);
        }
        let params = RescoreParams {
            latents: self.latents,
            x: at(&prepared.x),
            tokens: at_mut(&mut prepared.tokens),
            waiting: at_mut(waiting),
            lower: at_mut(lower),
            padded: self.padded() as i64,
            capacity: capacity as i64,
            rows: rows as i32,
            reserved: 0,
        };
        // One block for each token, or several.
        launch([rows, 1 + self.seed as usize % 3], 256, 0, &params, self.seed);
        let ranges = if gathered <= EXACT_KEYS { (capacity / gathered.max(1)).clamp(1, 5) } else { 1 };
        let params = ExactParams {
            latents: self.latents,
            x: at(&prepared.x),
            tokens: at_mut(&mut prepared.tokens),
            waiting: at_mut(waiting),
            overflowed: at(&prepared.overflowed),
            padded: self.padded() as i64,
            capacity: capacity as i64,
            gathered: gathered as i32,
            ranges: ranges as i32,
        };
        let together = if gathered <= EXACT_KEYS { EXACT_TOKENS } else { 1 };
        launch([(rows.div_ceil(together) * ranges).min(3), 1], 256, 0, &params, self.seed);
    }
}
