//! A bar for the run and a line for each SAE, on stderr, if that is a terminal.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sae::training::run::{StepRecord, TrainingRun};

use crate::output::grouped;

/// What is drawn.
pub(super) struct Progress {
    all: MultiProgress,
    bar: ProgressBar,
    lines: Vec<ProgressBar>,
}

impl Progress {
    pub(super) fn new(run: &TrainingRun) -> Self {
        let style = |template: &str| ProgressStyle::with_template(template).expect("the template is ours");
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        let bar = match run.rows_planned() {
            Some(planned) => {
                let style = style("step {msg} {wide_bar} {human_pos}/{human_len} rows, {eta} left");
                all.add(ProgressBar::new(planned)).with_style(style)
            }
            None => all.add(ProgressBar::no_length()).with_style(style("step {msg} {spinner} {human_pos} rows")),
        };
        // The time left is told by this process's own speed.
        bar.set_position(run.rows_given());
        bar.reset_eta();
        bar.set_message(grouped(run.step()));
        bar.enable_steady_tick(Duration::from_millis(500));
        let line = |name: &str| {
            let line = all.add(ProgressBar::no_length()).with_style(style("  {prefix}  {wide_msg}"));
            line.set_prefix(name.to_owned());
            line
        };
        let lines = run.names().map(line).collect();
        Self { all, bar, lines }
    }

    /// Says something above what is drawn.
    pub(super) fn say(&self, text: &str) {
        self.all.suspend(|| eprintln!("{text}"));
    }

    /// Shows a step.
    pub(super) fn show(&self, run: &TrainingRun, records: &[StepRecord]) {
        if self.all.is_hidden() {
            return;
        }
        self.bar.set_position(run.rows_given());
        self.bar.set_message(grouped(run.step()));
        for (line, record) in self.lines.iter().zip(records) {
            line.set_message(format!(
                "loss {:.4}  FVU {:.4}  L0 {:.1}  dead {}  {} tokens/s",
                record.loss,
                record.fvu,
                record.l0,
                grouped(record.dead as u64),
                grouped(record.tokens_per_second as u64)
            ));
        }
    }
}

impl Drop for Progress {
    /// Leaves the terminal as it was.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        self.lines.iter().for_each(ProgressBar::finish_and_clear);
    }
}
