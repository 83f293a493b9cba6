//! What every command says, and how it ends.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sae::Status;

/// How a command ended that did what it should.
pub(crate) enum Outcome {
    Done,
    /// The answer is no.
    No,
    /// There is no answer.
    CannotTell,
    /// A signal ended it, as it should.
    Interrupted(u8),
}

/// Why a command did not do it.
pub(crate) enum Failure {
    /// Nobody reads the output any more: no fault, and nothing to say.
    ClosedPipe,
    /// What went wrong, and what to do.
    Message(String),
}

/// The library's options that are the program's too.
const OPTIONS: [&str; 8] =
    ["activation_scale", "normalization", "subtract_b_dec", "member", "selection", "prefix", "k", "latents"];

pub(crate) type Result<T = Outcome> = std::result::Result<T, Failure>;

impl Failure {
    /// The same failure; where the library names one of its options, the program's name of it is added.
    pub(crate) fn hint(self) -> Self {
        let Self::Message(message) = self else { return self };
        let mut words = message.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        let option = words.find(|word| OPTIONS.contains(word)).map(|word| word.replace('_', "-"));
        Self::Message(match option {
            Some(option) => format!("{message} (the option is --{option})"),
            None => message,
        })
    }

    /// Says it on stderr.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            // As a shell counts a program that the closed pipe's signal ended.
            Self::ClosedPipe => ExitCode::from(141),
            Self::Message(message) => {
                // There is nobody to tell if stderr is closed too.
                writeln!(io::stderr(), "sae: {message}").ok();
                ExitCode::from(2)
            }
        }
    }
}

impl From<sae::Error> for Failure {
    fn from(error: sae::Error) -> Self {
        let hint = match error.status() {
            Status::Internal => "; this is a fault of libsae, please report it",
            Status::OutOfMemory => "; `sae info` tells how much is needed, and --dtype bf16 halves it",
            _ => "",
        };
        Self::Message(format!("{}{hint}", error.message()))
    }
}

/// Only output goes through here: errors of reading and writing files have the library's words.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::ClosedPipe,
            _ => Self::Message(format!("the output cannot be written: {error}")),
        }
    }
}

/// Prints a text whole.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints JSON for programs.
pub(crate) fn print_json(value: &serde_json::Value) -> Result<()> {
    print(&format!("{value:#}\n"))
}

/// Lines of a name and a value, aligned.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let fields: Vec<_> = fields.into_iter().collect();
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    fields.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// A number of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{} bytes", grouped(count)),
        _ => indicatif::DecimalBytes(count).to_string(),
    }
}

/// A number with its thousands apart.
pub(crate) fn grouped(count: u64) -> String {
    indicatif::HumanCount(count).to_string()
}

/// A bar on stderr, if that is a terminal.
pub(crate) fn progress(what: &str, total: u64) -> ProgressBar {
    let style = "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(style).expect("the template is ours");
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
