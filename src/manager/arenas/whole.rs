// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is done with all arenas, one after the other: no thread has two of their locks.

use super::Arenas;
use crate::error::Result;
use crate::manager::LayoutItem;
use crate::manager::flow::Flow;
use crate::manager::lookup::Location;
use crate::manager::stats::{self, Stats};
use crate::manager::windows::Windows;
use crate::sys::heap;
use std::sync::Arc;

impl Arenas {
    /// See [`Manager::set_quota`](crate::manager::Manager::set_quota).
    pub(in crate::manager) fn set_quota(&self, quota: Option<u64>) -> Result<()> {
        self.first.check_process()?;
        {
            let space = &mut *self.first.space.lock();
            space.usage.quota = quota;
            self.shared.set_only_first(quota.is_some());
        }
        // What began before it was known has got its memory, and counts.
        self.others().for_each(|other| drop(other.space.lock()));
        Ok(())
    }

    /// See [`Manager::collapse`](crate::manager::Manager::collapse).
    pub(in crate::manager) fn collapse(&self) -> Result<u64> {
        self.sum(|flow| flow.collapse())
    }

    /// See [`Manager::trim`](crate::manager::Manager::trim). The first arena is the last one, because it
    /// releases the windows that others have left.
    pub(in crate::manager) fn trim(&self) -> Result<u64> {
        self.sum(|flow| flow.trim())
    }

    /// The bytes of all; the last error if there are none.
    fn sum(&self, each: impl Fn(&Arc<Flow<Windows>>) -> Result<u64>) -> Result<u64> {
        self.first.check_process()?;
        let (mut bytes, mut failure) = (0, None);
        for flow in self.others().chain([&self.first]) {
            match each(flow) {
                Ok(more) => bytes += more,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(error) if bytes == 0 => Err(error),
            _ => Ok(bytes),
        }
    }

    /// See [`Manager::walk`](crate::manager::Manager::walk).
    #[cold]
    pub(in crate::manager) fn walk(&self, visit: &mut dyn FnMut(&Location)) -> Result<()> {
        self.all().try_for_each(|flow| flow.walk(visit))
    }

    pub(in crate::manager) fn stats(&self) -> Stats {
        let mut stats = self.first.stats();
        if self.is_single() {
            return stats;
        }
        let mut spans = self.first.space.lock().memory.spans();
        for other in self.others() {
            stats.add(&other.stats());
            let more = other.space.lock().memory.spans();
            spans.resize(spans.len().max(more.len()), stats::NO_SPAN);
            for (span, more) in spans.iter_mut().zip(more) {
                *span = (span.0.min(more.0), span.1.max(more.1));
            }
        }
        let sizes = spans.iter().map(|span| span.1.saturating_sub(span.0));
        stats.span = sizes.max().unwrap_or(0);
        stats
    }

    pub(in crate::manager) fn layout(&self) -> Result<Vec<LayoutItem>> {
        let mut items = Vec::new();
        self.all()
            .try_for_each(|flow| flow.add_layout(&mut items))?;
        let named = self.first.tracking.name_ranges(&mut items);
        named.map_err(|_| heap::exhausted("layout"))?;
        stats::sort_layout(&mut items);
        Ok(items)
    }

    /// Fails if this thread has a write scope of one of these allocations.
    pub(in crate::manager) fn check_own_scopes(&self, handles: &[u64]) -> Result<()> {
        self.first.check_process()?;
        self.all()
            .try_for_each(|flow| flow.space.lock().scopes.check_own(handles))
    }

    pub(in crate::manager) fn close(&self) {
        self.all().for_each(|flow| flow.close());
    }
}
