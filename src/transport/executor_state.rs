// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is known of an executor, in one place for all that goes through its transports.

use crate::sys::AtForkMutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Who is told that another process has taken the place of the one that ran an executor's linked code.
pub(crate) trait ToldOfRestarts: Send + Sync {
    /// It was the `restarts`-th time; `why` is what has ended the one before. No lock is held.
    fn restarted(&self, restarts: u64, why: &str);
}

/// What a controller knows of one executor: whether it answers, which of its answers counted for nothing, and how
/// often another process has taken the place of the one that ran linked code.
#[derive(Debug, Default)]
pub struct ExecutorState {
    unresponsive: AtomicBool,
    too_large: AtomicU64,
    late: AtomicU64,
    unexpected: AtomicU64,
    restarts: AtomicU64,
    told_of_restarts: AtForkMutex<Vec<Weak<dyn ToldOfRestarts>>>,
}

/// Answers of an executor that counted for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedAnswers {
    /// That had more bytes than was asked for, or than [`Limits::answer`](super::Limits::answer); each failed its
    /// call.
    pub too_large: u64,
    /// That came when their call had been given up or its limit was over.
    pub late: u64,
    /// That answered no call; each ended its connection.
    pub unexpected: u64,
}

impl ExecutorState {
    /// Whether it has not answered in time when something of it was closed, and nothing since.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::SeqCst)
    }

    pub(crate) fn set_unresponsive(&self, unresponsive: bool) {
        self.unresponsive.store(unresponsive, Ordering::SeqCst);
    }

    #[cold]
    pub(crate) fn dropped_too_large(&self) {
        self.too_large.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub(crate) fn dropped_late(&self) {
        self.late.fetch_add(1, Ordering::Relaxed);
    }

    #[cold]
    pub(crate) fn dropped_unexpected(&self) {
        self.unexpected.fetch_add(1, Ordering::Relaxed);
    }

    /// Has `whom` told of restarts from now on, while it lives.
    pub(crate) fn tell_of_restarts(&self, whom: Weak<dyn ToldOfRestarts>) {
        let mut told = self.told_of_restarts.lock();
        told.retain(|other| other.strong_count() > 0);
        told.push(whom);
    }

    /// The executor has said that linked code was restarted so often. What is known already is no news: each session
    /// is told.
    #[cold]
    pub(crate) fn restarted(&self, restarts: u64, why: &str) {
        if self.restarts.fetch_max(restarts, Ordering::Relaxed) >= restarts {
            return;
        }
        let told: Vec<Arc<dyn ToldOfRestarts>> = {
            let told = self.told_of_restarts.lock();
            told.iter().filter_map(Weak::upgrade).collect()
        };
        told.iter().for_each(|one| one.restarted(restarts, why));
    }

    /// How often another process has taken the place of the one that ran linked code, as far as the executor has
    /// said.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// What it has answered for nothing so far.
    pub fn dropped_answers(&self) -> DroppedAnswers {
        DroppedAnswers {
            too_large: self.too_large.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            unexpected: self.unexpected.load(Ordering::Relaxed),
        }
    }
}
