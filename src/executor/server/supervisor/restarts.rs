// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How often a child is replaced.

use crate::error::{Error, Result, Status, invalid_argument};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often a child that has ended is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarts {
    /// So many times at most.
    pub most: usize,
    /// In so much time.
    pub within: Duration,
}

impl Restarts {
    pub(in crate::executor::server) fn check(self) -> Result<()> {
        let Restarts { most, within } = self;
        if most > 0 && !within.is_zero() {
            return Ok(());
        }
        Err(invalid_argument(format!(
            "supervise linked code with {most} restarts within {} s: want at least 1 of each; jitmem-executor \
             has 10 within 60 s",
            within.as_secs()
        )))
    }
}

impl Default for Restarts {
    /// 10 within a minute.
    fn default() -> Restarts {
        Restarts {
            most: 10,
            within: Duration::from_secs(60),
        }
    }
}

/// When children were replaced, as far as that counts.
#[derive(Default)]
pub(super) struct Recent(VecDeque<Instant>);

impl Recent {
    /// One more is replaced now, if that may be.
    pub(super) fn add(&mut self, restarts: Restarts, now: Instant) -> Result<()> {
        let Restarts { most, within } = restarts;
        let old = |at: &Instant| now.duration_since(*at) > within;
        while self.0.front().is_some_and(old) {
            self.0.pop_front();
        }
        if self.0.len() >= most {
            let why = format!(
                "no other one takes its place: {most} have ended within {} s and were replaced; see what they ran, \
                 or allow more restarts",
                within.as_secs()
            );
            return Err(Error::new(Status::Disconnected, why));
        }
        self.0.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_long_ago_does_not_count() {
        let within = Duration::from_secs(10);
        let restarts = Restarts { most: 2, within };
        let (start, mut recent) = (Instant::now(), Recent::default());
        let mut at = |seconds| recent.add(restarts, start + Duration::from_secs(seconds));
        at(0).unwrap();
        at(9).unwrap();
        let error = at(10).unwrap_err();
        assert!(
            error.message().contains("2 have ended within 10 s"),
            "{error}"
        );
        at(11).unwrap();
        at(19).unwrap_err();
        at(20).unwrap();
    }

    #[test]
    fn a_bound_of_nothing_is_refused() {
        Restarts::default().check().unwrap();
        let within = Duration::from_secs(1);
        Restarts { most: 0, within }.check().unwrap_err();
        let within = Duration::ZERO;
        Restarts { most: 1, within }.check().unwrap_err();
    }
}
