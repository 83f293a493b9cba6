//! The SAE's definition, written plainly: one number at a time, in the order the documentation of `sae::backend` gives.
//! It shares no code with the library.

use sae::sae::{Architecture, Normalization, Sae};
use sae::steering::{Edit, EditOp};

pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for j in 0..a.len().next_multiple_of(16) {
        let at = |v: &[f32]| v.get(j).copied().unwrap_or(0.0);
        lanes[j % 16] = at(a).mul_add(at(b), lanes[j % 16]);
    }
    for w in [8, 4, 2, 1] {
        for l in 0..w {
            lanes[l] += lanes[l + w];
        }
    }
    lanes[0]
}

/// Everything about one token.
pub struct Token {
    pub pre_activations: Vec<f32>,
    /// All active latents, strongest first.
    pub active: Vec<(i32, f32)>,
    pub state: [f32; 2],
}

fn row(matrix: &sae::sae::Matrix, i: usize) -> Vec<f32> {
    let mut scratch = vec![0.0; matrix.cols()];
    matrix.row_f32(i, &mut scratch).to_vec()
}

fn norm(sae: &Sae, i: usize) -> f32 {
    if !sae.spec().rescale_by_decoder_norm {
        return 1.0;
    }
    row(&sae.weights().w_dec, i).iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt() as f32
}

/// `None` if the token is not finite.
pub fn encode(sae: &Sae, x: &[f32]) -> Option<Token> {
    let (spec, weights) = (sae.spec(), sae.weights());
    if x.iter().any(|v| !v.is_finite()) {
        return None;
    }
    let ones = vec![1.0; x.len()];
    let (mut x, state) = match spec.normalization {
        Normalization::None => (x.to_vec(), [0.0; 2]),
        Normalization::LayerNorm => {
            let mean = dot(x, &ones) / x.len() as f32;
            let centred: Vec<f32> = x.iter().map(|v| v - mean).collect();
            let deviation = (dot(&centred, &centred) / (x.len() as f32 - 1.0)).sqrt();
            (centred.iter().map(|v| v / (deviation + 1e-5)).collect(), [mean, deviation])
        }
        Normalization::ConstantNorm => {
            let factor = (x.len() as f32).sqrt() / dot(x, x).sqrt();
            (x.iter().map(|v| v * factor).collect(), [factor, 0.0])
        }
    };
    if state.iter().any(|s| !s.is_finite()) {
        return None;
    }
    if spec.subtract_b_dec {
        x.iter_mut().zip(&weights.b_dec).for_each(|(v, b)| *v -= b);
    }
    let pre_activations: Vec<f32> = (0..spec.n_latents)
        .map(|i| {
            let h = dot(&row(&weights.w_enc, i), &x) + weights.b_enc[i];
            if spec.rescale_by_decoder_norm { h * norm(sae, i) } else { h }
        })
        .collect();
    let passes = |i: usize, h: f32| match spec.architecture {
        Architecture::JumpRelu => h > weights.threshold.as_ref().unwrap()[i],
        _ => true,
    };
    let mut active: Vec<(i32, f32)> = pre_activations
        .iter()
        .enumerate()
        .filter(|(i, h)| h.is_finite() && **h > 0.0 && passes(*i, **h))
        .map(|(i, &h)| ((spec.first_latent + i) as i32, h))
        .collect();
    active.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    if let Architecture::TopK { k } = spec.architecture {
        active.truncate(k);
    }
    Some(Token { pre_activations, active, state })
}

/// Decodes features in their order.
pub fn decode(sae: &Sae, features: &[(i32, f32)], state: [f32; 2], raw: &[f32]) -> Vec<f32> {
    let (spec, weights) = (sae.spec(), sae.weights());
    let mut x_hat = weights.b_dec.clone();
    for &(index, z) in features {
        let i = index as usize - spec.first_latent;
        let z = if spec.rescale_by_decoder_norm { z / norm(sae, i) } else { z };
        x_hat.iter_mut().zip(row(&weights.w_dec, i)).for_each(|(x, w)| *x = z.mul_add(w, *x));
    }
    if spec.denormalize_output {
        match spec.normalization {
            Normalization::None => {}
            Normalization::LayerNorm => x_hat.iter_mut().for_each(|x| *x = x.mul_add(state[1], state[0])),
            Normalization::ConstantNorm => x_hat.iter_mut().for_each(|x| *x /= state[0]),
        }
    }
    if let Some(w_skip) = &weights.w_skip {
        x_hat.iter_mut().enumerate().for_each(|(r, x)| *x += dot(&row(w_skip, r), raw));
    }
    x_hat
}

/// What steering makes of `y`, given the activations of the token.
pub fn steer(sae: &Sae, edits: &[Edit], active: &[(i32, f32)], state: [f32; 2], y: &[f32]) -> Vec<f32> {
    let (spec, weights) = (sae.spec(), sae.weights());
    if y.iter().any(|v| !v.is_finite()) {
        return y.to_vec();
    }
    let mut change = vec![0.0f32; y.len()];
    let mut any = false;
    for edit in edits {
        let z = active.iter().find(|(i, _)| *i == edit.feature).map_or(0.0, |(_, z)| *z);
        let mut delta = match edit.op {
            EditOp::Add => edit.strength,
            EditOp::Set => edit.strength - z,
            EditOp::Scale => (edit.strength - 1.0) * z,
            EditOp::Ablate => -z,
        };
        if edit.only_active && z == 0.0 {
            delta = 0.0;
        }
        if edit.limit > 0.0 {
            delta = delta.max(-edit.limit).min(edit.limit);
        }
        if !delta.is_finite() {
            return y.to_vec();
        }
        if delta != 0.0 {
            any = true;
            let i = edit.feature as usize - spec.first_latent;
            let delta = if spec.rescale_by_decoder_norm { delta / norm(sae, i) } else { delta };
            change.iter_mut().zip(row(&weights.w_dec, i)).for_each(|(c, w)| *c = delta.mul_add(w, *c));
        }
    }
    if !any {
        return y.to_vec();
    }
    let scale = match spec.normalization {
        Normalization::LayerNorm if spec.denormalize_output => state[1],
        Normalization::ConstantNorm if spec.denormalize_output => 1.0 / state[0],
        _ => 1.0,
    };
    change.iter().zip(y).map(|(c, y)| c.mul_add(scale, *y)).collect()
}
