// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How long an executor may take.

use super::ExecutorState;
use crate::completion::{Completion, wait_until};
use crate::error::{Error, Result, Status};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long what is asked of an executor may take, by what it is; `None`: as long as the executor takes. And how
/// much it may answer.
///
/// An executor that is stopped, by a debugger or a freezer, is not dead: without a limit what was asked
/// of it is answered when it is continued. A request whose limit is over fails with
/// [`Status::TimedOut`]. What the executor may still do is not undone by that: memory that it may use is
/// not used again before it has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until the executor has introduced itself; then until a mapper has its session and its way to pass
    /// descriptors; then until a manager has its first window. Each of the three may take that long. 30 s
    /// by default.
    pub set_up: Option<Duration>,
    /// A request of a manager's that runs no linked code: memory is reserved, mapped, given back.
    pub memory: Option<Duration>,
    /// What runs linked code: finalize and deallocate with actions, and calls of wrapper functions. An executor that joins a
    /// group runs the actions of up to 16 allocations in as many times the limit.
    pub code: Option<Duration>,
    /// A connection or session as a whole, from its beginning. Afterwards it has ended, whatever the
    /// executor does, and all that waits for it fails.
    pub session: Option<Duration>,
    /// The end of a manager, a session and a connection together. Afterwards they are left as they are; the
    /// executor's memory goes with it. 10 s by default.
    pub close: Option<Duration>,
    /// Bytes that the answer to a call may have, over a connection that jitmem reads itself; 256 MiB by default.
    /// A larger one fails the call and takes no memory. What mappers ask for is bounded further, by what
    /// they ask.
    pub answer: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            set_up: Some(Duration::from_secs(30)),
            close: Some(Duration::from_secs(10)),
            answer: 256 << 20,
            ..Limits::NONE
        }
    }
}

/// What a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    SetUp,
    Memory,
    Code,
}

impl Limits {
    /// Everything may take as long as the executor takes.
    pub const NONE: Limits = Limits {
        set_up: None,
        memory: None,
        code: None,
        session: None,
        close: None,
        answer: u64::MAX,
    };

    /// When what is asked for now must be answered.
    pub(crate) fn deadline(&self, asked: Asked) -> Option<Deadline> {
        let (limit, name) = match asked {
            Asked::SetUp => (self.set_up, "set_up"),
            Asked::Memory => (self.memory, "memory"),
            Asked::Code => (self.code, "code"),
        };
        Deadline::after(limit?, name)
    }

    /// Whether any of them may be over while no thread waits for what it limits.
    pub(crate) fn need_watching(&self) -> bool {
        self.memory.or(self.code).or(self.session).is_some()
    }

    /// When what begins now must have ended.
    pub(crate) fn session_end(&self) -> Option<Deadline> {
        Deadline::after(self.session?, "session")
    }
}

/// The limits of a session that has begun.
#[derive(Clone, Copy)]
pub(crate) struct SessionLimits {
    pub(crate) limits: Limits,
    /// When it ends.
    pub(crate) end: Option<Deadline>,
}

impl SessionLimits {
    pub(crate) fn begin(limits: Limits) -> SessionLimits {
        let end = limits.session_end();
        SessionLimits { limits, end }
    }

    /// When what is asked for now must be answered.
    pub(crate) fn deadline(&self, asked: Asked) -> Option<Deadline> {
        self.deadline_of_many(asked, 1)
    }

    /// When so much that is asked for now must be answered, if one is done after the other.
    pub(crate) fn deadline_of_many(&self, asked: Asked, count: usize) -> Option<Deadline> {
        match self.limits.deadline(asked) {
            Some(deadline) => match deadline.times(count) {
                Some(deadline) => Some(deadline.or(self.end)),
                None => self.end,
            },
            None => self.end,
        }
    }

    /// Fails if it has ended.
    pub(crate) fn check(&self) -> Result<()> {
        match self.end {
            Some(end) if end.is_over() => Err(end.error()),
            _ => Ok(()),
        }
    }
}

/// When something must be done, and which limit says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    limit: Duration,
    name: &'static str,
}

impl Deadline {
    /// None where the clock does not go as far.
    pub(crate) fn after(limit: Duration, name: &'static str) -> Option<Deadline> {
        let at = Instant::now().checked_add(limit)?;
        Some(Deadline { at, limit, name })
    }

    /// [`Deadline::after`] a time that the clock does go on for.
    pub(crate) fn from_now(limit: Duration, name: &'static str) -> Deadline {
        let at = Instant::now() + limit;
        Deadline { at, limit, name }
    }

    /// The same with so many times the limit, from now on.
    fn times(self, count: usize) -> Option<Deadline> {
        let count = u32::try_from(count).ok()?;
        Deadline::after(self.limit.checked_mul(count)?, self.name)
    }

    /// The earlier one of two.
    pub(crate) fn or(self, other: Option<Deadline>) -> Deadline {
        other.filter(|other| other.at < self.at).unwrap_or(self)
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    #[cold]
    pub(crate) fn error(&self) -> Error {
        let (limit, name) = (self.limit.as_millis() as u64, self.name);
        Error::new(
            Status::TimedOut,
            format!(
                "the executor has not answered within {limit} ms; it is stopped, busy or hung: continue \
                 it, end it, or raise the limit \"{name}\""
            ),
        )
    }
}

/// How long the ends of what an executor has are waited for.
pub(crate) struct Patience {
    limit: Option<Duration>,
    /// Where it has not answered an end in time, and nothing since, no further end is waited for.
    executor: Arc<ExecutorState>,
}

impl Patience {
    pub(crate) fn new(limit: Option<Duration>, executor: Arc<ExecutorState>) -> Patience {
        Patience { limit, executor }
    }

    /// Until when it is waited: for ever if that is none, and not at all if there is no patience left.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.executor.is_unresponsive() {
            true => Some(Instant::now()),
            false => Instant::now().checked_add(self.limit?),
        }
    }

    /// Makes the last request of something, and waits for its answer.
    pub(crate) fn wait(self, request: impl FnOnce(Completion<()>)) {
        let answered = Arc::new(AtomicBool::new(false));
        let (late, executor) = (Arc::clone(&answered), Arc::clone(&self.executor));
        let in_time = wait_until(self.deadline(), |done: Completion<()>| {
            request(done.map(move |answer: Result<()>| {
                late.store(true, Ordering::SeqCst);
                executor.set_unresponsive(false);
                answer
            }));
        });
        if in_time.is_none() {
            self.executor.set_unresponsive(true);
            // The answer may have come since.
            if answered.load(Ordering::SeqCst) {
                self.executor.set_unresponsive(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executor_that_answers_no_end_is_waited_for_once_and_again_when_it_answers() {
        let executor = Arc::<ExecutorState>::default();
        let patience = |limit| Patience::new(limit, Arc::clone(&executor));
        let mut kept = None;
        patience(Some(Duration::from_millis(1))).wait(|done| kept = Some(done));
        assert!(executor.is_unresponsive());
        let mut second = None;
        // Were this waited for, it would be for ever.
        patience(None).wait(|done| second = Some(done));
        kept.unwrap().complete(Ok(()));
        assert!(!executor.is_unresponsive());
        second.unwrap().complete(Ok(()));
        patience(None).wait(|done| {
            std::thread::spawn(move || done.complete(Ok(())));
        });
        assert!(!executor.is_unresponsive());
    }

    #[test]
    fn a_session_ends_what_would_take_longer() {
        let limits = Limits {
            code: Some(Duration::from_secs(100)),
            session: Some(Duration::from_secs(10)),
            ..Limits::NONE
        };
        let end = limits.session_end();
        let deadline = limits.deadline(Asked::Code).unwrap().or(end);
        let text = deadline.error().to_string();
        assert!(text.contains("within 10000 ms"), "{text}");
        assert!(text.contains("\"session\""), "{text}");
        assert!(limits.deadline(Asked::Memory).is_none());
    }
}
