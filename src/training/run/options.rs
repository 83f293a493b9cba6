//! How a run goes, whatever its SAEs are. A zero means the default.

use serde::{Deserialize, Serialize};

use crate::error::{Result, fail};

/// The options of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunOptions {
    /// Rows of a batch, the same for all SAEs. 0: 4096.
    pub batch: usize,
    /// Batches whose gradients make one step together. 0: 1.
    pub accumulate: usize,
    /// Rows after which the run ends, rounded up to whole steps. 0: when the data end.
    pub tokens: u64,
    /// The first rows of the data, from which SAEs are started; they are trained on too. 0: 32,768.
    pub sample: usize,
    /// Steps between checkpoints. 0: 1000.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints are kept. 0: 3.
    pub keep: usize,
    /// Checkpoints of steps that are a multiple of this are kept for good. 0: none.
    pub keep_every: u64,
    /// Steps between measurements on the rows held out. 0: 1000.
    pub evaluate_every: u64,
    /// A loss of more than this times its running median (of the last 101) is beyond its bound. 0: 10; inf: none is.
    pub divergence_factor: f64,
    /// So many steps in a row beyond the bound, or without a row that is fit to train on, end the run. 0: 20.
    pub divergence_steps: u64,
    /// How often the run goes back to its last good state instead, and on from there at a lower rate. 0: never.
    pub divergence_tries: u64,
    /// What the learning rate of the SAE that diverged is multiplied by each time. 0: 0.5.
    pub divergence_rate: f64,
}

/// Rows of a batch at most, which trainers take too.
const MAX_BATCH: usize = 1 << 24;

impl RunOptions {
    /// The same options with every default filled in; refuses what cannot be, naming the option.
    pub fn resolve(&self) -> Result<Self> {
        fn or<T: Default + PartialEq>(value: T, default: T) -> T {
            if value == T::default() { default } else { value }
        }
        let resolved = Self {
            batch: or(self.batch, 4096),
            accumulate: or(self.accumulate, 1),
            sample: or(self.sample, 32_768),
            checkpoint_every: or(self.checkpoint_every, 1000),
            keep: or(self.keep, 3),
            evaluate_every: or(self.evaluate_every, 1000),
            divergence_factor: or(self.divergence_factor, 10.0),
            divergence_steps: or(self.divergence_steps, 20),
            divergence_rate: or(self.divergence_rate, 0.5),
            ..self.clone()
        };
        if resolved.batch > MAX_BATCH {
            let batch = resolved.batch;
            return fail!(
                InvalidArgument,
                "batch must be between 1 and {MAX_BATCH} rows, not {batch}; accumulate makes longer steps"
            );
        }
        if !(resolved.divergence_rate > 0.0 && resolved.divergence_rate < 1.0) {
            let rate = resolved.divergence_rate;
            return fail!(InvalidArgument, "divergence_rate must lie between 0 and 1, not {rate}");
        }
        if resolved.divergence_factor.is_nan() || resolved.divergence_factor <= 1.0 {
            let factor = resolved.divergence_factor;
            return fail!(InvalidArgument, "divergence_factor must be above 1, not {factor}");
        }
        Ok(resolved)
    }

    /// What the numbers depend on.
    pub(super) fn agreed(&self) -> Agreed {
        Agreed { batch: self.batch, accumulate: self.accumulate, sample: self.sample }
    }
}

/// The options that a resumed run must share with its checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreed {
    batch: usize,
    accumulate: usize,
    sample: usize,
}

impl Agreed {
    /// Refuses to go on with others than a checkpoint's.
    pub(super) fn check(&self, stored: &Self) -> Result<()> {
        for (name, now, then) in [
            ("batch", self.batch, stored.batch),
            ("accumulate", self.accumulate, stored.accumulate),
            ("sample", self.sample, stored.sample),
        ] {
            if now != then {
                return fail!(InvalidArgument, "{name} is {now}, but the checkpoint was made with {then}");
            }
        }
        Ok(())
    }
}
