//! What changes over a run: the learning rate, how many latents are kept, and what their activity costs.

use super::TrainOptions;

/// The rate of optimizer step `step` (from 1), before whose own tokens the run had seen `tokens_before`: linear warm-up
/// over `warmup_steps`, constant, then linear decay to 0 over the last `decay_fraction` of `total_tokens`. Neither the first
/// step nor the last of a run of exactly that length has rate 0.
pub(super) fn learning_rate(options: &TrainOptions, step: u64, tokens_before: u64) -> f64 {
    let warmup = (step as f64 / options.warmup_steps.max(1) as f64).min(1.0);
    let decay = if options.decay_fraction > 0.0 {
        let left = options.total_tokens.saturating_sub(tokens_before) as f64 / options.total_tokens as f64;
        (left / f64::from(options.decay_fraction)).min(1.0)
    } else {
        1.0
    };
    f64::from(options.learning_rate) * warmup * decay
}

/// The coefficient of what holds activations down, at optimizer step `step` (from 1): linear from 0, at all of it with the last
/// step of the warm-up.
pub(super) fn sparsity_coefficient(options: &TrainOptions, step: u64) -> f64 {
    let warmup = (step as f64 / options.sparsity_warmup_steps.max(1) as f64).min(1.0);
    f64::from(options.sparsity_coefficient) * warmup
}

/// How many latents are kept for the tokens of optimizer step `step` (from 1): from `k_start` to `k` in equal steps, rounded.
pub(super) fn k(options: &TrainOptions, step: u64) -> usize {
    let TrainOptions { k, k_start, k_anneal_steps, .. } = *options;
    if step > k_anneal_steps {
        return k;
    }
    let part = (step - 1) as f64 / k_anneal_steps as f64;
    (k_start as f64 + (k as f64 - k_start as f64) * part).round() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_goes_from_start_to_end() {
        let options = TrainOptions { k: 4, k_start: 12, k_anneal_steps: 4, ..TrainOptions::default() };
        assert_eq!([1, 2, 3, 4, 5, 1 << 40].map(|step| k(&options, step)), [12, 10, 8, 6, 4, 4]);
        let up = TrainOptions { k: 3, k_start: 1, k_anneal_steps: 3, ..options };
        assert_eq!([1, 2, 3, 4].map(|step| k(&up, step)), [1, 2, 2, 3]);
        assert_eq!(k(&TrainOptions { k: 4, k_start: 4, ..TrainOptions::default() }, 1), 4);
    }

    #[test]
    fn the_price_rises_and_stays() {
        let options = TrainOptions { sparsity_coefficient: 2.0, sparsity_warmup_steps: 4, ..TrainOptions::default() };
        assert_eq!([1, 2, 4, 5].map(|step| sparsity_coefficient(&options, step)), [0.5, 1.0, 2.0, 2.0]);
        let at_once = TrainOptions { sparsity_warmup_steps: 0, ..options };
        assert_eq!(sparsity_coefficient(&at_once, 1), 2.0);
    }

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let options = TrainOptions {
            learning_rate: 1.0,
            warmup_steps: 4,
            total_tokens: 1000,
            decay_fraction: 0.25,
            ..TrainOptions::default()
        };
        let rates = [(1, 10), (2, 20), (4, 40), (5, 750), (9, 875), (10, 1000), (11, 2000)];
        let expected = [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0];
        for ((step, tokens), rate) in rates.into_iter().zip(expected) {
            assert!((learning_rate(&options, step, tokens) - rate).abs() < 1e-6, "{step} {tokens}");
        }
        let constant = TrainOptions { learning_rate: 0.5, ..TrainOptions::default() };
        assert_eq!(learning_rate(&constant, 1, 0), 0.5);
        assert_eq!(learning_rate(&constant, 1 << 40, u64::MAX), 0.5);
    }
}
