// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How much each JITDylib, or each tag, has.

use super::events::{AllocatedSegment, Allocation};
use super::label::Label;
use std::collections::{HashMap, TryReserveError};
use std::sync::Arc;

/// What [`Usage`] is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum UsageBy {
    /// The JITDylib; 0 for what has none.
    Dylib = 0,
    /// The host's tag; 0 for what has none.
    Tag = 1,
}

/// What the allocations of one JITDylib, or with one tag, have at one moment. Sizes in bytes as asked
/// for, without rounding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The JITDylib or the tag.
    pub key: u64,
    /// The name of the JITDylib, if its allocations have one.
    pub name: Option<String>,
    /// Everything: the sum of the next three.
    pub live: u64,
    /// Executable segments.
    pub code: u64,
    /// Segments that can only be read.
    pub constants: u64,
    /// Writable segments.
    pub data: u64,
    /// Allocations that are not finalized.
    pub in_flight: u64,
    /// Allocations that are finalized.
    pub finalized: u64,
}

impl Usage {
    /// The number for segments like this one.
    fn kind(&mut self, segment: &AllocatedSegment) -> &mut u64 {
        let protection = segment.group.protection;
        if protection.executable() {
            &mut self.code
        } else if protection.writable() {
            &mut self.data
        } else {
            &mut self.constants
        }
    }

    fn add(&mut self, segments: &[AllocatedSegment]) {
        for segment in segments {
            self.live += segment.range.size();
            *self.kind(segment) += segment.range.size();
        }
    }

    fn subtract(&mut self, segments: &[AllocatedSegment]) {
        for segment in segments {
            self.live -= segment.range.size();
            *self.kind(segment) -= segment.range.size();
        }
    }
}

/// A step of an allocation's life.
#[derive(Clone, Copy)]
pub(super) enum Step {
    Allocated,
    Finalized,
    /// It goes; whether it was finalized.
    Gone(bool),
}

/// What one key has, and the label that says how it is called.
#[derive(Default)]
struct Counted {
    usage: Usage,
    label: Option<Arc<Label>>,
}

impl Counted {
    fn usage(&self) -> Usage {
        let name = self.label.as_ref().and_then(|label| label.name_of_dylib());
        Usage {
            name: name.map(|name| name.as_str().to_owned()),
            ..self.usage.clone()
        }
    }
}

/// Usage by one kind of key. What has nothing left is forgotten.
#[derive(Default)]
pub(super) struct Usages(HashMap<u64, Counted>);

impl Usages {
    /// Makes sure that so many more can be counted.
    pub(super) fn reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve(more)
    }

    /// Counts a step of an allocation of `key`, which is called as `label` says.
    pub(super) fn count(
        &mut self,
        key: u64,
        label: Option<&Arc<Label>>,
        it: &Allocation,
        step: Step,
    ) {
        let counted = self.0.entry(key).or_default();
        let usage = &mut counted.usage;
        let (all, lasting) = (it.segments(), it.lasting_segments());
        match step {
            Step::Allocated => {
                usage.key = key;
                usage.add(all);
                usage.in_flight += 1;
                if counted.label.is_none() {
                    counted.label = label.cloned();
                }
            }
            Step::Finalized => {
                usage.subtract(&all[lasting.len()..]);
                usage.in_flight -= 1;
                usage.finalized += 1;
            }
            Step::Gone(true) => {
                usage.subtract(lasting);
                usage.finalized -= 1;
            }
            Step::Gone(false) => {
                usage.subtract(all);
                usage.in_flight -= 1;
            }
        }
        if usage.in_flight + usage.finalized == 0 {
            self.0.remove(&key);
        }
    }

    pub(super) fn of(&self, key: u64) -> Usage {
        let counted = self.0.get(&key).map(Counted::usage);
        counted.unwrap_or_else(|| Usage {
            key,
            ..Usage::default()
        })
    }

    /// All of them, by key.
    pub(super) fn all(&self) -> Result<Vec<Usage>, TryReserveError> {
        let mut all = Vec::new();
        all.try_reserve_exact(self.0.len())?;
        all.extend(self.0.values().map(Counted::usage));
        all.sort_unstable_by_key(|usage: &Usage| usage.key);
        Ok(all)
    }
}
