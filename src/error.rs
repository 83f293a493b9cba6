//! The one error type: what went wrong, as a stable code, and a message that names the thing, what was expected and
//! what was found.

use std::fmt;

/// The result of every fallible call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure. The numbers are part of the C ABI and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// An option, flag, count or pointer is not acceptable.
    InvalidArgument = 1,
    /// A tensor's data pointer, dtype, shape, strides, device or overlap is not acceptable.
    InvalidTensor = 2,
    /// What was asked for is understood, but this build, model or device does not do it.
    Unsupported = 3,
    /// A file could not be opened, read or written.
    Io = 4,
    /// A file was read, but its content is not what its format promises.
    Format = 5,
    /// Memory could not be had.
    OutOfMemory = 6,
    /// The device asked for is not there: no driver, too old a driver, no such device.
    NoDevice = 7,
    /// The device reported a fault, in this call or an earlier one.
    DeviceFault = 8,
    /// A number that must be finite is not: a weight, a statistic, a loss.
    NotFinite = 9,
    /// The call does not fit the state the object is in.
    BadState = 10,
    /// A fault of the library itself; please report it.
    Internal = 11,
    /// Other processes of the run could not be reached: one was lost, or the host's communicator failed.
    Collective = 12,
}

/// A failure: its kind and a message for people.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    status: Status,
    message: String,
}

impl Error {
    /// An error of the given kind.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// The kind of failure.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The message for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error, its message led by the place where it happened: a path, a tensor's name.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.status, self.message)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let status = if error.kind() == std::io::ErrorKind::OutOfMemory { Status::OutOfMemory } else { Status::Io };
        Self::new(status, error.to_string())
    }
}

/// `Err` of the named [`Status`] with a formatted message: `fail!(InvalidTensor, "x: …")`.
macro_rules! fail {
    ($status:ident, $($arg:tt)*) => {
        Err($crate::error::Error::new($crate::error::Status::$status, format!($($arg)*)))
    };
}
pub(crate) use fail;
