// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is known of an executor, in one place for all that goes through its transports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a controller knows of one executor: whether it answers, and which of its answers counted for nothing.
#[derive(Debug, Default)]
pub struct ExecutorState {
    unresponsive: AtomicBool,
    too_large: AtomicU64,
    late: AtomicU64,
    unexpected: AtomicU64,
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

    /// What it has answered for nothing so far.
    pub fn dropped_answers(&self) -> DroppedAnswers {
        DroppedAnswers {
            too_large: self.too_large.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            unexpected: self.unexpected.load(Ordering::Relaxed),
        }
    }
}
