//! Whether a run still goes well: losses against their own running median, and against the smallest that it has been, which a
//! steady rise does not take along.

use serde::{Deserialize, Serialize};

use super::RunOptions;
use crate::error::{Result, fail};

/// How many losses the median is of.
const WINDOW: usize = 101;
/// Fewer say nothing yet.
const LEAST: usize = 21;

/// The smallest median's bound is so many times as wide as the running one's.
const WIDER: f64 = 10.0;

/// What is remembered of an SAE's losses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// The latest that were within the bound, oldest first.
    recent: Vec<f64>,
    /// The smallest median so far.
    lowest: Option<f64>,
    /// How many in a row were beyond it.
    beyond: u64,
    /// Steps in a row of which no row was fit to train on.
    #[serde(default)]
    unfit: u64,
}

impl Watch {
    /// Takes in the loss of a step; an error if it is not a number, or if too many in a row were beyond the bound. Losses beyond
    /// it do not move the median.
    pub(super) fn observe(&mut self, step: u64, loss: f64, options: &RunOptions) -> Result<()> {
        self.unfit = 0;
        if !loss.is_finite() {
            return fail!(NotFinite, "step {step}: the loss is {loss}");
        }
        let median = self.median();
        self.lowest = self.lowest.into_iter().chain(median).reduce(f64::min);
        let bounds = [
            (options.divergence_factor, "running median", median),
            (options.divergence_factor * WIDER, "smallest running median so far", self.lowest),
        ];
        let broken = bounds.into_iter().find_map(|(factor, what, of)| {
            let of = of.filter(|of| loss > factor * of)?;
            Some(format!("{factor} times its {what} of {of:.4}"))
        });
        let Some(broken) = broken else {
            self.beyond = 0;
            if self.recent.len() == WINDOW {
                self.recent.remove(0);
            }
            self.recent.push(loss);
            return Ok(());
        };
        self.beyond += 1;
        if self.beyond < options.divergence_steps {
            return Ok(());
        }
        fail!(
            NotFinite,
            "step {step}: the run diverges: the loss is {loss:.4}, above {broken}, and has been beyond its bounds for {} steps \
             (divergence_factor, divergence_steps)",
            self.beyond
        )
    }

    /// Takes in a step of which no row was fit to train on; an error if there were too many in a row.
    pub(super) fn observe_unfit(&mut self, step: u64, options: &RunOptions) -> Result<()> {
        self.unfit += 1;
        if self.unfit < options.divergence_steps {
            return Ok(());
        }
        fail!(
            NotFinite,
            "step {step}: no row of the last {} steps was fit to train on: numbers are not finite, or too large for their squares \
             to be (divergence_steps)",
            self.unfit
        )
    }

    /// Whether the latest loss was within the bound, so that the state is worth keeping.
    pub(super) fn is_well(&self) -> bool {
        self.beyond == 0
    }

    fn median(&self) -> Option<f64> {
        let mut sorted = self.recent.clone();
        sorted.sort_by(f64::total_cmp);
        (sorted.len() >= LEAST).then(|| sorted[sorted.len() / 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    #[test]
    fn what_stays_beyond_the_bound_is_divergence_and_what_returns_is_not() {
        let options = RunOptions { divergence_factor: 4.0, divergence_steps: 3, ..RunOptions::default() };
        let mut watch = Watch::default();
        // The first losses of a run have nothing to be held against.
        for step in 1..=LEAST as u64 {
            watch.observe(step, if step == 5 { 1000.0 } else { 1.0 }, &options).unwrap();
        }
        for (loss, well) in [(4.0, true), (4.1, false), (900.0, false), (3.9, true), (5.0, false), (5.0, false)] {
            watch.observe(50, loss, &options).unwrap();
            assert_eq!(watch.is_well(), well, "{loss}");
        }
        let mut other = watch.clone();
        other.observe(51, 1.0, &options).unwrap();
        let error = watch.observe(51, 6.0, &options).unwrap_err();
        assert_eq!(error.status(), Status::NotFinite);
        for word in ["step 51", "6.0000", "4 times", "median of 1.0000", "3 steps"] {
            assert!(error.message().contains(word), "{word}: {error}");
        }
        let error = other.observe(52, f64::NAN, &options).unwrap_err();
        assert!(error.status() == Status::NotFinite && error.message().contains("step 52: the loss is NaN"), "{error}");
    }

    #[test]
    fn the_median_is_of_the_latest_and_steady_rises_come_to_an_end() {
        let options = RunOptions { divergence_factor: 2.0, divergence_steps: 1, ..RunOptions::default() };
        let mut watch = Watch::default();
        let rise = |step: u64| 1.01f64.powf(step as f64 / 2.0);
        for step in 0..600 {
            watch.observe(step, rise(step), &options).unwrap();
        }
        assert_eq!(watch.recent.len(), WINDOW);
        assert!(watch.clone().observe(600, 2.1 * watch.median().unwrap(), &options).is_err());
        let error = (600..10_000).find_map(|step| watch.observe(step, rise(step), &options).err()).unwrap();
        assert!(error.message().contains("20 times its smallest running median so far of 1.05"), "{error}");
        assert!(error.message().contains("step 613"), "{error}");
        let mut watch = Watch::default();
        let options = RunOptions { divergence_factor: f64::INFINITY, ..options };
        (0..10_000).for_each(|step| watch.observe(step, rise(step), &options).unwrap());
    }
}
