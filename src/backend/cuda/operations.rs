//! The hot calls, as sequences of launches.

use super::call::{Call, chunks, normalization, order};
use super::launch::{features, features_or_none, integers, vectors};
use super::params::{self, *};
use super::session::CudaSession;
use crate::backend::{Input, Order, Steering, Wanted};
use crate::error::{Result, fail};
use crate::features::{FeaturesMut, FeaturesRef};
use crate::sae::Spec;
use crate::tensor::Tensor;

impl CudaSession {
    pub(super) fn encode(&self, mut call: Call<'_>, input: &Input<'_>, out: &FeaturesMut<'_>) -> Result<()> {
        let (rows, encoding) = (input.x.rows(), self.plan.encoding(out.width(), input.x.rows()));
        let chunk = call.memory.chunk(&self.plan.encoded(&encoding), rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        let encoded = self.take_encoded(&mut call.memory, chunk, encoding, &mut prepared);
        for rows in chunks(rows, chunk) {
            self.prepare(&call, input, &rows, &prepared)?;
            let out = features(&out.as_ref(), rows.start);
            self.find(&call, rows.len(), &prepared, &encoded, (out, order(call.order)))?;
        }
        Ok(())
    }

    pub(super) fn encode_selected(
        &self,
        mut call: Call<'_>,
        input: &Input<'_>,
        ids: &Tensor<'_>,
        out: &Tensor<'_>,
    ) -> Result<()> {
        let (rows, m) = (input.x.rows(), ids.rows());
        let ((ids, ids_stride), plan) = (integers(ids, 0), &self.plan);
        let competes = plan.k.is_some();
        let encoding = plan.encoding(usize::MAX, rows);
        let need = if competes { plan.encoded(&encoding) } else { plan.prepared() };
        let chunk = call.memory.chunk(&need, rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        let encoded = competes.then(|| self.take_encoded(&mut call.memory, chunk, encoding, &mut prepared));
        for rows in chunks(rows, chunk) {
            self.prepare(&call, input, &rows, &prepared)?;
            // Ids are counted once, whatever the number of tokens.
            let ignored = if rows.start == 0 { self.held.ignored.at() } else { self.held.unread.at() };
            let (out, count) = (vectors(out, rows.start), rows.len());
            let Some(encoded) = &encoded else {
                let params = ScoreSelectedParams {
                    latents: self.latents,
                    x: prepared.x,
                    tokens: prepared.tokens,
                    ids,
                    out,
                    ignored,
                    padded: plan.padded as i64,
                    ids_stride,
                    rows: count as i32,
                    m: m as i32,
                };
                // SAFETY: the tensors were checked, the rest was cut out of the working memory for this chunk.
                unsafe { call.launch((m.div_ceil(64), count), 256, &params)? };
                continue;
            };
            self.find(&call, count, &prepared, encoded, (params::Features::default(), params::order::BY_VALUE))?;
            let params = LookupParams {
                kept: encoded.kept,
                tokens: prepared.tokens,
                ids,
                out,
                ignored,
                kept_stride: encoding.kept_stride as i64,
                ids_stride,
                rows: count as i32,
                m: m as i32,
                n: plan.n as i32,
                first: self.latents.first,
                limit: encoding.limit as i32,
                reserved: 0,
            };
            // SAFETY: as above.
            unsafe { call.launch((count, 1), 128, &params)? };
        }
        Ok(())
    }

    pub(super) fn encode_dense(
        &self,
        mut call: Call<'_>,
        input: &Input<'_>,
        wanted: Wanted,
        z: &Tensor<'_>,
    ) -> Result<()> {
        let (rows, plan) = (input.x.rows(), &self.plan);
        let what = match wanted {
            Wanted::Activations if plan.k.is_some() => return self.scatter(call, input, z),
            Wanted::Activations => what::ACTIVATIONS,
            Wanted::PreActivations => what::PRE_ACTIVATIONS,
        };
        let chunk = call.memory.chunk(&plan.scored(call.fast.is_some()), rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        if call.fast.is_some() {
            self.take_rounded(&mut call.memory, chunk, &mut prepared);
        }
        for rows in chunks(rows, chunk) {
            self.prepare(&call, input, &rows, &prepared)?;
            let out = vectors(z, rows.start);
            match &call.fast {
                Some(screened) => self.product(&call, rows.len(), &prepared, screened, (out, what))?,
                None => self.score(&call, rows.len(), &prepared, out, what)?,
            }
        }
        Ok(())
    }

    /// Activations of latents that compete.
    fn scatter(&self, mut call: Call<'_>, input: &Input<'_>, z: &Tensor<'_>) -> Result<()> {
        let (rows, encoding) = (input.x.rows(), self.plan.encoding(usize::MAX, input.x.rows()));
        let chunk = call.memory.chunk(&self.plan.encoded(&encoding), rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        let encoded = self.take_encoded(&mut call.memory, chunk, encoding, &mut prepared);
        for rows in chunks(rows, chunk) {
            self.prepare(&call, input, &rows, &prepared)?;
            let none = (params::Features::default(), params::order::BY_VALUE);
            self.find(&call, rows.len(), &prepared, &encoded, none)?;
            let params = ScatterParams {
                kept: encoded.kept,
                tokens: prepared.tokens,
                out: vectors(z, rows.start),
                kept_stride: encoding.kept_stride as i64,
                rows: rows.len() as i32,
                n: self.plan.n as i32,
                first: self.latents.first,
                limit: encoding.limit as i32,
            };
            // SAFETY: the tensor was checked, the rest was cut out of the working memory for this chunk.
            unsafe { call.launch((rows.len(), 1), 256, &params)? };
        }
        Ok(())
    }

    pub(super) fn decode(
        &self,
        mut call: Call<'_>,
        given: &FeaturesRef<'_>,
        x: Option<&Tensor<'_>>,
        out: &Tensor<'_>,
    ) -> Result<()> {
        let (rows, plan) = (given.rows(), &self.plan);
        let chunk = call.memory.chunk(&plan.skipped(super::plan::Need::default()), rows);
        let skip = self.skip.zip(x).map(|(latents, x)| {
            let (raw, skipped) = (call.memory.take(4 * chunk * plan.padded), call.memory.take(4 * chunk * plan.d_out));
            (latents, x, raw, skipped)
        });
        for rows in chunks(rows, chunk) {
            let mut skipped = DevicePtr::NULL;
            if let Some((latents, x, raw, to)) = skip {
                let params = PrepareParams {
                    x: vectors(x, rows.start),
                    out: raw,
                    padded: plan.padded as i64,
                    rounded_stride: plan.rounded as i64,
                    rows: rows.len() as i32,
                    d: self.latents.d,
                    ..PrepareParams::default()
                };
                // SAFETY: the tensor was checked, the rest was cut out of the working memory for this chunk.
                unsafe { call.launch((rows.len(), 1), 128, &params)? };
                self.skip(&call, rows.len(), latents, raw, to)?;
                skipped = to;
            }
            let params = DecodeParams {
                features: features(given, rows.start),
                ignored: self.held.ignored.at(),
                skip: skipped,
                out: vectors(out, rows.start),
                rows: rows.len() as i32,
                ..self.decoding()
            };
            // SAFETY: as above.
            unsafe { call.launch((plan.d_out.div_ceil(DECODE_COLUMNS), rows.len()), 128, &params)? };
        }
        Ok(())
    }

    /// What is the same in all decoding.
    fn decoding(&self) -> DecodeParams {
        let spec = self.held.model.sae().spec();
        DecodeParams {
            w_dec: self.held.model.w_dec(),
            b_dec: self.held.model.b_dec(),
            norms: self.held.model.norms(),
            skip_stride: self.plan.d_out as i64,
            d: self.plan.d_out as i32,
            n: self.latents.n,
            first: self.latents.first,
            normalization: normalization(spec.normalization),
            center: i32::from(spec.center),
            denormalize: i32::from(spec.denormalize_output),
            ..DecodeParams::default()
        }
    }

    pub(super) fn reconstruct(
        &self,
        mut call: Call<'_>,
        input: &Input<'_>,
        out: Option<&FeaturesMut<'_>>,
        x_hat: &Tensor<'_>,
    ) -> Result<()> {
        let (rows, plan) = (input.x.rows(), &self.plan);
        let (encoding, width) = (plan.encoding(usize::MAX, rows), out.map_or(0, FeaturesMut::width));
        // Decoding goes by value, so that another order is a second listing.
        let listed_apart = out.is_some() && call.order == Order::Index;
        let listed = if listed_apart { width.min(encoding.limit) } else { 0 };
        let chunk = call.memory.chunk(&plan.reconstructed(&encoding, listed), rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        let encoded = self.take_encoded(&mut call.memory, chunk, encoding, &mut prepared);
        let mut skipped = DevicePtr::NULL;
        if self.skip.is_some() {
            prepared.raw = call.memory.take(4 * chunk * plan.padded);
            skipped = call.memory.take(4 * chunk * plan.d_out);
        }
        let listing = if listed_apart { listed.max(1).next_power_of_two() } else { 0 };
        let shown = call.memory.take(8 * chunk * listing);
        for rows in chunks(rows, chunk) {
            self.prepare(&call, input, &rows, &prepared)?;
            let at_once = features_or_none(out.filter(|_| !listed_apart), rows.start);
            self.find(&call, rows.len(), &prepared, &encoded, (at_once, params::order::BY_VALUE))?;
            if listed_apart {
                let params = SelectParams {
                    latents: Latents { rank_scale: DevicePtr::NULL, ..self.latents },
                    keys: encoded.kept,
                    tokens: prepared.tokens,
                    kept: shown,
                    out: features_or_none(out, rows.start),
                    keys_stride: encoding.kept_stride as i64,
                    kept_stride: listing as i64,
                    rows: rows.len() as i32,
                    length: encoding.limit as i32,
                    gathered: listed as i32,
                    order: params::order::BY_INDEX,
                    counted: 1,
                    ..SelectParams::default()
                };
                // SAFETY: the features were checked, the rest was cut out of the working memory for this chunk.
                unsafe { call.launch((rows.len(), 1), 256, &params)? };
            }
            if let Some(latents) = self.skip {
                self.skip(&call, rows.len(), latents, prepared.raw, skipped)?;
            }
            let params = DecodeParams {
                kept: encoded.kept,
                tokens: prepared.tokens,
                skip: skipped,
                out: vectors(x_hat, rows.start),
                kept_stride: encoding.kept_stride as i64,
                rows: rows.len() as i32,
                limit: encoding.limit as i32,
                ..self.decoding()
            };
            // SAFETY: as above.
            unsafe { call.launch((plan.d_out.div_ceil(DECODE_COLUMNS), rows.len()), 128, &params)? };
        }
        Ok(())
    }

    /// `encodes`: what [`Self::may_encode`] says.
    pub(super) fn steer(
        &self,
        mut call: Call<'_>,
        input: Option<Input<'_>>,
        steering: &Steering<'_>,
        encodes: bool,
    ) -> Result<()> {
        let (plan, out) = (&self.plan, steering.out.as_ref());
        let input = input.unwrap_or_else(|| out.into());
        let (rows, y) = (input.x.rows(), steering.y.unwrap_or(out));
        let encoding = plan.encoding(usize::MAX, rows);
        let chunk = call.memory.chunk(&plan.steered(encodes.then_some(&encoding)), rows);
        let mut prepared = self.take_prepared(&mut call.memory, chunk);
        let encoded = encodes.then(|| self.take_encoded(&mut call.memory, chunk, encoding, &mut prepared));
        if encodes {
            prepared.wanted = call.memory.take(4 * chunk);
        }
        let per_slot = plan.limits.edits_per_slot.max(1);
        let deltas = call.memory.take(4 * chunk * per_slot);
        let Spec { d_out, normalization: normal, center, denormalize_output, .. } = *self.held.model.sae().spec();
        for rows in chunks(rows, chunk) {
            let mut edits = self.held.edits.edits();
            if let Some(row_slot) = &steering.row_slot {
                (edits.row_slot, edits.row_slot_stride) = integers(row_slot, rows.start);
            }
            let known = steering.known.as_ref().map_or_else(Default::default, |known| features(known, rows.start));
            if encodes {
                let params =
                    SteerPlanParams { edits, known, wanted: prepared.wanted, rows: rows.len() as i32, reserved: 0 };
                // SAFETY: the tensors were checked, the rest was cut out of the working memory for this chunk.
                unsafe { call.launch((rows.len().div_ceil(128), 1), 128, &params)? };
            }
            self.prepare(&call, &input, &rows, &prepared)?;
            if let Some(encoded) = &encoded {
                let none = (params::Features::default(), params::order::BY_VALUE);
                self.find(&call, rows.len(), &prepared, encoded, none)?;
            }
            let params = SteerParams {
                latents: self.latents,
                edits,
                known,
                x: prepared.x,
                tokens: prepared.tokens,
                kept: encoded.as_ref().map_or(DevicePtr::NULL, |encoded| encoded.kept),
                w_dec: self.held.model.w_dec(),
                norms: self.held.model.norms(),
                y: vectors(&y, rows.start),
                out: vectors(&out, rows.start),
                deltas,
                ignored: self.held.ignored.at(),
                padded: plan.padded as i64,
                kept_stride: encoding.kept_stride as i64,
                rows: rows.len() as i32,
                d: d_out as i32,
                // Without kept keys none is sought, whatever the edits' table or known features say.
                limit: encoded.as_ref().map_or(0, |encoded| encoded.encoding.limit as i32),
                normalization: normalization(normal),
                center: i32::from(center),
                denormalize: i32::from(denormalize_output),
            };
            // SAFETY: as above.
            unsafe { call.launch((rows.len(), 1), 256, &params)? };
        }
        Ok(())
    }

    /// Whether some row's edits may need to know which of the competing latents won. In a graph that is captured, edits that
    /// are set later count too.
    pub(super) fn may_encode(&self, captured: bool, steering: &Steering<'_>) -> Result<bool> {
        if self.plan.k.is_none() {
            return Ok(false);
        }
        let complete =
            steering.known.as_ref().is_some_and(|known| known.width() >= self.held.model.sae().spec().max_active());
        if complete || self.needs_activations.contains(&true) {
            return Ok(!complete);
        }
        let spec = self.held.model.sae().spec();
        if captured && spec.is_shard() {
            let name = spec.architecture.name();
            return fail!(
                Unsupported,
                "steering by a shard of a {name} SAE is not captured without the whole's features (known), since edits may later need them"
            );
        }
        Ok(captured)
    }

    pub(super) fn merge(&self, mut call: Call<'_>, parts: &[FeaturesRef<'_>], out: &FeaturesMut<'_>) -> Result<()> {
        let (rows, k) = (out.counts.rows(), self.plan.k);
        let keys: usize = parts.iter().map(FeaturesRef::width).sum();
        let limit = out.width().min(k.unwrap_or(usize::MAX)).min(keys);
        let chunk = call.memory.chunk(&self.plan.merged(keys, limit), rows);
        let merged = call.memory.take(8 * chunk * keys.max(1));
        let kept_stride = limit.max(1).next_power_of_two();
        let kept = call.memory.take(8 * chunk * kept_stride);
        let tokens = call.memory.take(chunk * size_of::<Token>());
        let k = k.unwrap_or(0).min(i32::MAX as usize) as i32;
        for rows in chunks(rows, chunk) {
            let mut start = 0;
            for (i, part) in parts.iter().enumerate() {
                let params = MergePartParams {
                    part: features(part, rows.start),
                    keys: merged,
                    tokens,
                    ignored: self.held.ignored.at(),
                    keys_stride: keys as i64,
                    offset: start as i64,
                    rows: rows.len() as i32,
                    is_first: i32::from(i == 0),
                };
                start += part.width();
                // SAFETY: the features were checked, the rest was cut out of the working memory for this chunk.
                unsafe { call.launch((rows.len(), 1), 128, &params)? };
            }
            let params = SelectParams {
                latents: Latents { n: self.latents.n, selection: self.latents.selection, k, ..Latents::default() },
                keys: merged,
                tokens,
                kept,
                out: features(&out.as_ref(), rows.start),
                keys_stride: keys as i64,
                kept_stride: kept_stride as i64,
                rows: rows.len() as i32,
                length: keys as i32,
                gathered: limit as i32,
                order: order(call.order),
                counted: 1,
                ..SelectParams::default()
            };
            // SAFETY: as above.
            unsafe { call.launch((rows.len(), 1), 256, &params)? };
        }
        Ok(())
    }
}
