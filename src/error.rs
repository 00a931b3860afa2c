// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Status codes and the error that carries one together with its chain of causes.

use std::fmt;
use std::io;

/// What kind of failure an [`Error`] is. The numbers are part of the C ABI and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Status {
    /// An argument can never be right: NULL, overflow, bad alignment, unknown enumerator.
    InvalidArgument = 1,
    /// A handle or allocation that is not live here, or not in the state that the call needs.
    InvalidHandle = 2,
    /// No window may hold the request.
    WindowFull = 3,
    /// The manager's own limit on bytes is reached.
    QuotaExceeded = 4,
    /// The system gave no memory, address space, mapping or descriptor.
    OutOfMemory = 5,
    /// The system forbids the operation (seccomp, SELinux, `vm.memfd_noexec`, …).
    Denied = 6,
    /// An allocation action reported failure.
    ActionFailed = 7,
    /// Not available in this build, on this system or with this mapper.
    Unsupported = 8,
    /// The executor is gone.
    Disconnected = 9,
    /// A host-supplied mapper reported failure or broke its contract.
    MapperFailed = 10,
    /// The system reported something that none of the above names.
    System = 11,
    /// A defect in jitmem; the handle refuses further work.
    Internal = 12,
    /// It can't be done without waiting; nothing was done.
    WouldBlock = 13,
    /// The executor has not answered within a limit that the host has set.
    TimedOut = 14,
    /// The host has cancelled it.
    Cancelled = 15,
}

impl Status {
    /// The enumerator's name in the C API.
    pub fn name(self) -> &'static str {
        match self {
            Status::InvalidArgument => "JITMEM_INVALID_ARGUMENT",
            Status::InvalidHandle => "JITMEM_INVALID_HANDLE",
            Status::WindowFull => "JITMEM_WINDOW_FULL",
            Status::QuotaExceeded => "JITMEM_QUOTA_EXCEEDED",
            Status::OutOfMemory => "JITMEM_OUT_OF_MEMORY",
            Status::Denied => "JITMEM_DENIED",
            Status::ActionFailed => "JITMEM_ACTION_FAILED",
            Status::Unsupported => "JITMEM_UNSUPPORTED",
            Status::Disconnected => "JITMEM_DISCONNECTED",
            Status::MapperFailed => "JITMEM_MAPPER_FAILED",
            Status::System => "JITMEM_SYSTEM",
            Status::Internal => "JITMEM_INTERNAL",
            Status::WouldBlock => "JITMEM_WOULD_BLOCK",
            Status::TimedOut => "JITMEM_TIMED_OUT",
            Status::Cancelled => "JITMEM_CANCELLED",
        }
    }

    /// The status that a host's code means with this number; statuses that only the library gives
    /// count as its failure.
    pub(crate) fn said_by_others(code: u32) -> Status {
        match Status::from_code(code) {
            None | Some(Status::Internal | Status::WouldBlock) => Status::MapperFailed,
            Some(status) => status,
        }
    }

    /// The status with this number; `None` for 0 (success) and for numbers that are no status.
    pub fn from_code(code: u32) -> Option<Status> {
        ALL_STATUSES
            .into_iter()
            .find(|status| *status as u32 == code)
    }
}

/// Every status, in the order of their numbers.
pub(crate) const ALL_STATUSES: [Status; 15] = [
    Status::InvalidArgument,
    Status::InvalidHandle,
    Status::WindowFull,
    Status::QuotaExceeded,
    Status::OutOfMemory,
    Status::Denied,
    Status::ActionFailed,
    Status::Unsupported,
    Status::Disconnected,
    Status::MapperFailed,
    Status::System,
    Status::Internal,
    Status::WouldBlock,
    Status::TimedOut,
    Status::Cancelled,
];

/// A failure: its kind, and what happened in words (operation, value, cause, remedy).
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
    os_code: Option<i32>,
}

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of one sentence.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Error {
            status,
            message: message.into(),
            os_code: None,
        }
    }

    /// An operation that the system refused; keeps errno.
    pub(crate) fn system(status: Status, operation: impl fmt::Display, error: io::Error) -> Self {
        let message = format!("{operation}: {error}");
        Error {
            status,
            message,
            os_code: error.raw_os_error(),
        }
    }

    /// Puts the operation that failed in front.
    pub(crate) fn context(mut self, operation: impl fmt::Display) -> Self {
        self.message = format!("{operation}: {}", self.message);
        self
    }

    /// Appends what the person who reads it can do about it.
    pub(crate) fn remedy(mut self, remedy: impl fmt::Display) -> Self {
        self.message = format!("{}; {remedy}", self.message);
        self
    }

    /// Appends another failure that happened on the way out, keeping this one's status. That an
    /// executor is gone is said once, however many allocations it had. What the heap has no room for is left
    /// out: there may be thousands.
    pub(crate) fn join(mut self, other: Error) -> Self {
        const THEN: &str = "; then ";
        let known = other.status == Status::Disconnected && self.message.contains(&other.message);
        let more = THEN.len() + other.message.len();
        if !known && self.message.try_reserve(more).is_ok() {
            self.message.push_str(THEN);
            self.message.push_str(&other.message);
        }
        self
    }

    /// The kind of failure.
    pub fn status(&self) -> Status {
        self.status
    }

    /// Operation, value, cause and remedy in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the system was short of something, which may be there at another time.
    pub(crate) fn is_passing(&self) -> bool {
        use libc::{EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM};
        let passing = [EAGAIN, EINTR, EMFILE, ENFILE, ENOMEM];
        self.os_code.is_some_and(|errno| passing.contains(&errno))
    }

    /// errno of the system call behind it, if there was one.
    pub fn os_code(&self) -> Option<i32> {
        self.os_code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self}", self.status.name())
    }
}

impl std::error::Error for Error {}

/// An argument that can never be right.
pub(crate) fn invalid_argument(message: impl Into<String>) -> Error {
    Error::new(Status::InvalidArgument, message)
}

/// A handle or allocation that is not what the call needs.
pub(crate) fn invalid_handle(message: impl Into<String>) -> Error {
    Error::new(Status::InvalidHandle, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_lists_operation_value_cause_remedy() {
        let io = io::Error::from_raw_os_error(libc::ENOMEM);
        let error = Error::system(Status::OutOfMemory, "mmap of 4096 bytes", io)
            .context("cannot grow")
            .remedy("raise the limit");
        let text = error.to_string();
        assert!(
            text.starts_with("cannot grow: mmap of 4096 bytes: "),
            "{text}"
        );
        assert!(text.ends_with("; raise the limit"), "{text}");
        assert_eq!(error.os_code(), Some(libc::ENOMEM));
        assert_eq!(error.status(), Status::OutOfMemory);
        assert_eq!(error.clone(), error);
    }

    #[test]
    fn joined_errors_keep_the_first_status_and_both_messages() {
        let joined = Error::new(Status::ActionFailed, "first")
            .join(Error::new(Status::MapperFailed, "second"));
        assert_eq!(joined.status(), Status::ActionFailed);
        assert!(joined.to_string().contains("first; then second"));
    }

    #[test]
    fn an_executor_is_lost_once() {
        let gone = |how: &str| Error::new(Status::Disconnected, format!("gone: {how}"));
        let failed = || Error::new(Status::ActionFailed, "failed");
        let joined = gone("a").join(gone("a")).join(gone("b")).join(gone("a"));
        assert_eq!(joined.to_string(), "gone: a; then gone: b");
        let joined = failed().join(failed()).join(gone("a")).join(gone("a"));
        assert_eq!(joined.to_string(), "failed; then failed; then gone: a");
    }

    #[test]
    fn codes_and_statuses_match_one_to_one() {
        for (index, status) in ALL_STATUSES.into_iter().enumerate() {
            assert_eq!(status as usize, index + 1);
            assert_eq!(Status::from_code(status as u32), Some(status));
        }
        assert_eq!(Status::from_code(0), None);
        assert_eq!(Status::from_code(16), None);
    }
}
