//! The program `sae`: published SAEs looked at, converted, compared and fetched, and new ones trained, from a shell.

mod activations;
mod atlas;
mod convert;
mod doctor;
mod hub;
mod info;
mod open;
mod output;
mod pull;
mod train;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use output::Outcome;

/// Sparse autoencoders for language models: what they are, in which format, and whether they fit each other and a host.
#[derive(Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "\
Exit codes: 0 done; 1 the answer is no (they differ, something is wrong with the inputs); 2 it could not be done, and \
stderr says why and what to do."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Info(info::Info),
    Convert(convert::Convert),
    Verify(verify::Verify),
    Doctor(doctor::Doctor),
    Pull(pull::Pull),
    Train(train::Train),
    Atlas(Box<atlas::Atlas>),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Info(info) => info.run(),
        Command::Convert(convert) => convert.run(),
        Command::Verify(verify) => verify.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Pull(pull) => pull.run(),
        Command::Train(train) => train.run(),
        Command::Atlas(atlas) => atlas.run(),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::from(1),
        Ok(Outcome::CannotTell) => ExitCode::from(2),
        // As a shell counts a program that the signal ended.
        Ok(Outcome::Interrupted(signal)) => ExitCode::from(128 + signal),
        Err(failure) => failure.report(),
    }
}
