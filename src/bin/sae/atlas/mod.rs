//! `sae atlas`: what was seen of each feature of an SAE, from recorded activations, as pages to look at.

mod chunk;
mod export;
mod labels;
mod lens;
mod merge;
mod observe;
mod page;
mod recorded;
mod script;
mod site;
mod vocabulary;

use clap::{Args, Subcommand};

use crate::output::Result;

/// See what an SAE's features are active on: watch activations, and make pages of what was seen.
#[derive(Args)]
pub(crate) struct Atlas {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Observe(observe::Observe),
    Merge(merge::Merge),
    Page(page::Page),
    Export(export::Export),
}

impl Atlas {
    pub(crate) fn run(&self) -> Result {
        match &self.command {
            Command::Observe(observe) => observe.run(),
            Command::Merge(merge) => merge.run(),
            Command::Page(page) => page.run(),
            Command::Export(export) => export.run(),
        }
    }
}
