//! A session's operations on the processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Kernels;
use super::core::Core;
use super::decode::Decoder;
use super::encoder::Encoder;
use super::merge::merge_row;
use super::prepare::{Prepared, read_row};
use super::rounding::round_rows;
use super::rows::Rows;
use super::scratch::{BLOCK, DENSE_ROWS, Plan, RowScratch, Scratch, ScreenPlan};
use super::select::{capacity, sort};
use super::steer::{EditTable, Steer};
use super::write::{FeatureSink, write_nan};
use crate::backend::operations::Workspace;
use crate::backend::{Input, Limits, Operations, Order, Pool, Run, Screen, Steering, Wanted};
use crate::error::Result;
use crate::features::{FeaturesMut, FeaturesRef};
use crate::sae::int8::Int8Rows;
use crate::sae::{Matrix, Sae, Spec};
use crate::steering::Edit;
use crate::tensor::{Tensor, TensorMut};

/// One session's state on the processor.
pub struct CpuSession {
    core: Core,
    edits: EditTable,
    workspace: Workspace,
}

impl CpuSession {
    /// Reserves everything the calls will need. With `host_workspace` each call brings the working memory itself.
    pub fn new(
        sae: Arc<Sae>,
        limits: Limits,
        pool: Pool,
        kernels: Kernels,
        screen: Screen,
        host_workspace: bool,
    ) -> Result<Self> {
        let screened = screens(&sae, kernels, screen);
        let plan = Self::plan(&sae, limits, screened);
        let size = Self::workspace_bytes(&plan, limits, &pool);
        let round = |w_enc: &Matrix| {
            let mut int8 = Int8Rows::zeroed(w_enc.rows(), w_enc.cols())?;
            round_rows(kernels, &pool, Rows::Matrix(w_enc), w_enc.rows(), &mut int8)?;
            Ok(int8)
        };
        let int8 = screened.then(|| sae.int8_encoder(round)).transpose()?;
        let core = Core { sae, int8, pool, kernels, plan, max_tokens: limits.max_tokens, ignored: AtomicU64::new(0) };
        Ok(Self {
            core,
            edits: EditTable::new(limits.slots, limits.edits_per_slot)?,
            workspace: Workspace::new(size, host_workspace)?,
        })
    }

    /// Bytes of working memory, of everything else a session keeps, and of what it shares with others of the SAE, before
    /// it is made.
    pub fn memory(sae: &Sae, limits: Limits, pool: &Pool, kernels: Kernels, screen: Screen) -> (usize, usize, usize) {
        let screened = screens(sae, kernels, screen);
        let workspace = Self::workspace_bytes(&Self::plan(sae, limits, screened), limits, pool);
        let kept = limits.slots * (limits.edits_per_slot * size_of::<Edit>() + size_of::<usize>());
        let Spec { n_latents, d_in, .. } = *sae.spec();
        (workspace, kept, if screened { Int8Rows::byte_size(n_latents, d_in) } else { 0 })
    }

    fn plan(sae: &Sae, limits: Limits, screened: bool) -> Plan {
        let spec = sae.spec();
        let screen = ScreenPlan::new(spec.d_in, spec.architecture.k().map(|k| k.min(spec.n_latents)));
        Plan {
            d: spec.d_in.max(spec.d_out),
            limit: limits.max_width.min(spec.whole_latents()).max(spec.max_active()),
            width: limits.max_width,
            tokens: limits.max_tokens,
            screen: screened.then_some(screen),
        }
    }

    fn workspace_bytes(plan: &Plan, limits: Limits, pool: &Pool) -> usize {
        (4 * limits.max_tokens).next_multiple_of(64) + pool.threads() * plan.bytes()
    }
}

/// Whether scores are bounded by bytes first.
fn screens(sae: &Sae, kernels: Kernels, screen: Screen) -> bool {
    let encoder = Encoder::of(sae);
    let wanted = match screen {
        Screen::Never => false,
        Screen::Always => true,
        Screen::Auto => kernels.fast_products && !sae.weights().w_enc.is_mapped() && encoder.pays_to_screen(),
    };
    wanted && encoder.can_be_screened()
}

impl Operations for CpuSession {
    fn workspace_size(&self) -> usize {
        self.workspace.size()
    }

    fn encode(&mut self, run: Run<'_>, input: Input<'_>, out: FeaturesMut<'_>) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let out = FeatureSink::new(out);
        core.encode(&slots, &input, None, (out.width(), run.order), &|token, _| {
            // SAFETY: each row is given to the sink once.
            unsafe { out.write(token.row, token.keys, token.active, token.prepared) };
        });
        Ok(())
    }

    fn encode_selected(&mut self, run: Run<'_>, input: Input<'_>, ids: Tensor<'_>, out: TensorMut<'_>) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let (encoder, decoder) = (Encoder::of(&core.sae), Decoder::of(&core.sae));
        let ids = ids.row::<i32>(0);
        if input.x.rows() > 0 {
            core.ignore(ids.iter().filter(|&&id| decoder.local(id).is_none()).count() as u64);
        }
        let write = |row: usize, column: usize, value: f32| {
            // SAFETY: each row is worked on by one thread.
            unsafe { out.shared_write_part(row, column, &[value]) };
        };
        if core.sae.spec().architecture.latents_compete() {
            core.encode(&slots, &input, None, (usize::MAX, Order::Value), &|token, _| {
                for (column, &id) in ids.iter().enumerate() {
                    write(token.row, column, token.activation(id));
                }
            });
        } else {
            core.each_row(&slots, input.x.rows(), &|row, scratch| {
                let x = &mut scratch.x[..core.sae.spec().d_in];
                let prepared = core.prepare(&input, row, x, &mut scratch.row.raw[..x.len()]);
                for (column, &id) in ids.iter().enumerate() {
                    let value = match (prepared, decoder.local(id)) {
                        (Prepared::NotFinite, _) => f32::NAN,
                        (_, None) => 0.0,
                        (_, Some(i)) => encoder.score_alone(core.kernels, i, x, Wanted::Activations),
                    };
                    write(row, column, value);
                }
            });
        }
        Ok(())
    }

    fn encode_dense(&mut self, run: Run<'_>, input: Input<'_>, what: Wanted, z: TensorMut<'_>) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let encoder = Encoder::of(&core.sae);
        let rows = input.x.rows();
        if what == Wanted::Activations && core.sae.spec().architecture.latents_compete() {
            core.encode(&slots, &input, None, (usize::MAX, Order::Index), &|token, _| {
                let fill = if token.prepared == Prepared::NotFinite { f32::NAN } else { 0.0 };
                // SAFETY: each row is given to the sink once.
                unsafe {
                    for start in (0..encoder.n()).step_by(BLOCK) {
                        z.shared_write_part(token.row, start, &[fill; BLOCK][..BLOCK.min(encoder.n() - start)]);
                    }
                    for key in token.keys {
                        z.shared_write_part(token.row, key.index() as usize - encoder.first_latent, &[key.value()]);
                    }
                }
            });
            return Ok(());
        }
        core.pool.run_ranges(rows.div_ceil(DENSE_ROWS), &|slot, tiles| {
            // SAFETY: no two ranges run with the same slot at once.
            let mut scratch = unsafe { slots.get(slot) };
            for tile in tiles {
                let first = tile * DENSE_ROWS;
                core.dense_tile(&encoder, &input, what, first..rows.min(first + DENSE_ROWS), &mut scratch, &z);
            }
        });
        Ok(())
    }

    fn decode(
        &mut self,
        run: Run<'_>,
        features: FeaturesRef<'_>,
        x: Option<Tensor<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let decoder = Decoder::of(&core.sae);
        let (d_in, d_out) = (core.sae.spec().d_in, core.sae.spec().d_out);
        let decode = |row: usize, skip: Option<&[f32]>, scratch: &mut RowScratch<'_>| {
            let sum = &mut scratch.sum[..d_out];
            if features.counts.element::<i32>(row) < 0 {
                // SAFETY: each row is worked on by one thread.
                return unsafe { write_nan(&out, row, sum) };
            }
            let values = &mut scratch.values[..features.width()];
            features.values.read_row(row, values);
            decoder.start(sum);
            let listed = features.indices.row::<i32>(row).iter().copied().zip(values.iter().copied());
            core.ignore(decoder.add(core.kernels, listed, sum));
            decoder.finish(core.kernels, features.state(row), scratch.weights, sum);
            if let Some(skip) = skip {
                add(sum, skip);
            }
            // SAFETY: each row is worked on by one thread, and what x holds there was read before.
            unsafe { out.shared_write_row(row, sum) };
        };
        let Some(x) = x.filter(|_| decoder.has_skip()) else {
            core.each_row(&slots, features.rows(), &|row, scratch| decode(row, None, &mut scratch.row));
            return Ok(());
        };
        let rows = features.rows();
        let tile = rows.div_ceil(core.pool.threads()).clamp(1, DENSE_ROWS);
        core.pool.run_ranges(rows.div_ceil(tile), &|slot, tiles| {
            // SAFETY: no two ranges run with the same slot at once.
            let Scratch { x: raw, weights, row: scratch, .. } = &mut unsafe { slots.get(slot) };
            for first in tiles.map(|i| i * tile) {
                let tile = first..rows.min(first + tile);
                let (raw, skip) = (&mut raw[..tile.len() * d_in], &mut weights[..tile.len() * d_out]);
                tile.clone().zip(raw.chunks_exact_mut(d_in)).for_each(|(row, raw)| x.read_row(row, raw));
                decoder.skip(core.kernels, raw, skip);
                tile.zip(skip.chunks_exact(d_out)).for_each(|(row, skip)| decode(row, Some(skip), scratch));
            }
        });
        Ok(())
    }

    fn reconstruct(
        &mut self,
        run: Run<'_>,
        input: Input<'_>,
        features: Option<FeaturesMut<'_>>,
        out: TensorMut<'_>,
    ) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let decoder = Decoder::of(&core.sae);
        let (d_in, d_out) = (core.sae.spec().d_in, core.sae.spec().d_out);
        let width = features.as_ref().map_or(0, FeaturesMut::width);
        let features = features.map(FeatureSink::new);
        core.encode(&slots, &input, None, (usize::MAX, Order::Value), &|token, scratch| {
            let RowScratch { sum, weights, raw, .. } = scratch;
            let sum = &mut sum[..d_out];
            match token.prepared {
                Prepared::NotFinite => sum.fill(f32::NAN),
                Prepared::Ready(state) => {
                    decoder.start(sum);
                    decoder.add(core.kernels, token.keys.iter().map(|key| (key.index(), key.value())), sum);
                    decoder.finish(core.kernels, state, weights, sum);
                    if decoder.has_skip() {
                        let (raw, skip) = (&mut raw[..d_in], &mut weights[..d_in.max(d_out)]);
                        read_row(&input, token.row, &mut skip[..d_in], raw);
                        decoder.skip(core.kernels, raw, &mut skip[..d_out]);
                        add(sum, &skip[..d_out]);
                    }
                }
            }
            // SAFETY: each row is given to the sink once, and its input was read before.
            unsafe { out.shared_write_row(token.row, sum) };
            if let Some(features) = &features {
                let shown = token.keys.len().min(width);
                let shown = &mut token.keys[..shown];
                if run.order == Order::Index {
                    sort(shown, Order::Index);
                }
                // SAFETY: each row is given to the sink once.
                unsafe { features.write(token.row, shown, token.active, token.prepared) };
            }
        });
        Ok(())
    }

    fn set_edits(&mut self, slot: usize, edits: &[Edit]) -> Result<()> {
        self.edits.set(slot, edits);
        Ok(())
    }

    fn steer(&mut self, run: Run<'_>, input: Option<Input<'_>>, steering: Steering<'_>) -> Result<()> {
        let (core, table) = (&self.core, &self.edits);
        let (listed, slots) = core.cut(self.workspace.get(run.workspace)?);
        let input = input.unwrap_or_else(|| steering.out.as_ref().into());
        let call = Steer {
            core,
            table,
            input: &input,
            steering: &steering,
            encoder: Encoder::of(&core.sae),
            decoder: Decoder::of(&core.sae),
        };
        // Rows whose edits need to know which latents won are encoded together; the others need single latents at most.
        let rows = input.x.rows();
        let mut to_encode = 0;
        for row in 0..rows {
            if call.must_encode(row) {
                listed[to_encode] = row as u32;
                to_encode += 1;
            }
        }
        let listed = &listed[..to_encode];
        core.each_row(&slots, rows, &|row, scratch| {
            if listed.binary_search(&(row as u32)).is_err() {
                call.steer_alone(row, scratch);
            }
        });
        core.encode(&slots, &input, Some(listed), (usize::MAX, Order::Value), &|token, scratch| {
            let row = token.row;
            let edits = call.edits(row).unwrap_or(&[]);
            match token.prepared {
                Prepared::NotFinite => call.leave_alone(row),
                Prepared::Ready(state) => {
                    call.apply(row, edits, state, scratch, |feature| token.activation(feature));
                }
            }
        });
        let ignored =
            (0..rows).filter(|&row| matches!(call.slot(row), Some(slot) if slot != -1 && table.get(slot).is_none()));
        core.ignore(ignored.count() as u64);
        Ok(())
    }

    fn merge(&mut self, run: Run<'_>, parts: &[FeaturesRef<'_>], out: FeaturesMut<'_>) -> Result<()> {
        let core = &self.core;
        let (_, slots) = core.cut(self.workspace.get(run.workspace)?);
        let k = core.sae.spec().architecture.k();
        let limit = out.width().min(k.unwrap_or(usize::MAX)).min(core.plan.limit);
        let rows = out.counts.rows();
        let out = FeatureSink::new(out);
        core.each_row(&slots, rows, &|row, scratch| {
            let keys = (limit, &mut scratch.keys[..capacity(limit)]);
            // SAFETY: each row is worked on by one thread.
            core.ignore(unsafe { merge_row(row, parts, k, run.order, keys, &mut scratch.row, &out) });
        });
        Ok(())
    }

    fn ignored_indices(&self) -> u64 {
        self.core.ignored.load(Ordering::Relaxed)
    }
}

fn add(sum: &mut [f32], more: &[f32]) {
    sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

impl Core {
    /// Dense pre-activations, or activations of latents that do not compete, for a tile of tokens.
    fn dense_tile(
        &self,
        encoder: &Encoder<'_>,
        input: &Input<'_>,
        what: Wanted,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch<'_>,
        z: &TensorMut<'_>,
    ) {
        let d = self.sae.spec().d_in;
        let mut finite = [false; DENSE_ROWS];
        for (i, row) in rows.clone().enumerate() {
            let x = &mut scratch.x[i * d..(i + 1) * d];
            finite[i] = self.prepare(input, row, x, &mut scratch.row.raw[..d]) != Prepared::NotFinite;
            if !finite[i] {
                x.fill(0.0);
            }
        }
        for first in (0..encoder.n()).step_by(BLOCK) {
            let count = BLOCK.min(encoder.n() - first);
            encoder.score(self.kernels, first..first + count, 0..rows.len(), what, scratch);
            let scores = &mut scratch.scores[..rows.len() * count];
            for (i, scores) in scores.chunks_exact_mut(count).enumerate() {
                if !finite[i] {
                    scores.fill(f32::NAN);
                }
                // SAFETY: each row is worked on by one thread.
                unsafe { z.shared_write_part(rows.start + i, first, scores) };
            }
        }
    }
}
