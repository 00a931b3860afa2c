// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a chunk knows of forks: which of its pieces children see, and what was freed of these.
//!
//! Executor views of code and constants are shared with children. A piece that was handed out before
//! the last fork may run in a child, so when it is freed here its bytes stay as they are.

use crate::memory::ranges::RangeId;
use crate::sys::{Forked, ForksInUse};

/// The pieces that no child sees, by the granules that they begin at.
#[derive(Default)]
enum Young {
    /// All: there was no fork since the chunk was made.
    #[default]
    All,
    /// None was handed out since the last fork.
    None,
    Some(Vec<u64>),
}

/// A range that was freed and stays as it is.
struct Frozen {
    id: RangeId,
    size: u32,
    /// The last fork before it was freed.
    epoch: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Forks {
    young: Young,
    frozen: Vec<Frozen>,
    bytes: u64,
    /// The last fork before the chunk was made.
    made: u32,
    /// The parent made the chunk; this process can't write it.
    inherited: bool,
    /// It has served, and goes as a whole.
    going: bool,
}

impl Forks {
    pub(super) fn new(epoch: u32) -> Forks {
        Forks {
            made: epoch,
            ..Forks::default()
        }
    }

    pub(super) fn forked(&mut self, forked: Forked) {
        self.young = Young::None;
        self.inherited |= forked.in_child;
    }

    pub(super) fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// Whether nothing is handed out of it any more.
    pub(super) fn is_going(&self) -> bool {
        self.going
    }

    /// Bytes that were freed and stay as they are.
    pub(super) fn frozen_bytes(&self) -> u64 {
        self.bytes
    }

    /// A piece is handed out that begins at a granule; there are `granules` of them.
    #[inline]
    pub(super) fn hand_out(&mut self, granule: u32, granules: u32) {
        if !matches!(self.young, Young::All) {
            self.note_young(granule, granules);
        }
    }

    /// Where the heap has no room, the piece counts as one that children see.
    #[cold]
    fn note_young(&mut self, granule: u32, granules: u32) {
        if matches!(self.young, Young::None) {
            let words = granules.div_ceil(u64::BITS) as usize;
            let mut bits = Vec::new();
            if bits.try_reserve_exact(words).is_err() {
                return;
            }
            bits.resize(words, 0);
            self.young = Young::Some(bits);
        }
        if let Young::Some(bits) = &mut self.young {
            bits[(granule / u64::BITS) as usize] |= 1 << (granule % u64::BITS);
        }
    }

    /// Whether children may see a piece.
    #[inline]
    pub(super) fn is_old(&self, granule: u32) -> bool {
        match &self.young {
            Young::All => false,
            Young::None => true,
            Young::Some(bits) => {
                bits[(granule / u64::BITS) as usize] & 1 << (granule % u64::BITS) == 0
            }
        }
    }

    /// Keeps a freed range as it is. Without room to note it, it stays so for good.
    #[cold]
    pub(super) fn freeze(&mut self, id: RangeId, size: u32, epoch: u32) {
        self.bytes += u64::from(size);
        if self.frozen.try_reserve(1).is_ok() {
            self.frozen.push(Frozen { id, size, epoch });
        }
    }

    /// Whether the chunk, of which nothing is live, has to go: the ranges of it that are not free.
    pub(super) fn take_all(&mut self) -> Vec<RangeId> {
        self.going = self.inherited || self.bytes > 0;
        self.bytes = 0;
        let frozen = std::mem::take(&mut self.frozen);
        frozen.into_iter().map(|frozen| frozen.id).collect()
    }

    /// Takes out what no other process sees any more.
    pub(super) fn take_thawed(&mut self, forks: &ForksInUse) -> Vec<RangeId> {
        let mut thawed = Vec::new();
        if self.inherited || thawed.try_reserve(self.frozen.len()).is_err() {
            return Vec::new();
        }
        let (made, bytes) = (self.made, &mut self.bytes);
        self.frozen.retain(|frozen| {
            let seen = forks.any_between(made, frozen.epoch);
            if !seen {
                *bytes -= u64::from(frozen.size);
                thawed.push(frozen.id);
            }
            seen
        });
        thawed
    }
}
