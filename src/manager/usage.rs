// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How much each JITDylib, or each tag, has.

use super::events::{AllocatedSegment, Allocation};
use super::label::Name;
use std::collections::{HashMap, TryReserveError};

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

/// Usage by one kind of key. What has nothing left is forgotten.
#[derive(Default)]
pub(super) struct Usages(HashMap<u64, Usage>);

impl Usages {
    /// Makes sure that so many more can be counted.
    pub(super) fn reserve(&mut self, more: usize) -> Result<(), TryReserveError> {
        self.0.try_reserve(more)
    }

    pub(super) fn count(&mut self, key: u64, name: Option<&Name>, it: &Allocation, step: Step) {
        let usage = self.0.entry(key).or_default();
        let (all, lasting) = (it.segments(), it.lasting_segments());
        match step {
            Step::Allocated => {
                usage.key = key;
                if usage.name.is_none() {
                    usage.name = name.map(|name| name.as_str().to_owned());
                }
                usage.add(all);
                usage.in_flight += 1;
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
        let usage = self.0.get(&key).cloned();
        usage.unwrap_or_else(|| Usage {
            key,
            ..Usage::default()
        })
    }

    /// All of them, by key.
    pub(super) fn all(&self) -> Vec<Usage> {
        let mut all: Vec<Usage> = self.0.values().cloned().collect();
        all.sort_by_key(|usage| usage.key);
        all
    }
}
