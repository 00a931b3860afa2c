// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a chunk knows of forks: which of its pieces children see, and what was freed of these.
//!
//! Executor views of code and constants are shared with children. A piece that was handed out before
//! the last fork may run in a child, so when it is freed here its bytes stay as they are.

use crate::memory::ranges::RangeId;
use crate::sys::{Forked, ForksInUse};

/// So many generations of a chunk's pieces are told apart; the oldest ones count as one.
const MOST_GENERATIONS: usize = 4;

/// The pieces that were handed out after a fork and before the next, by the granules that they begin at.
struct Generation {
    /// That fork.
    epoch: u32,
    begins: Vec<u64>,
}

impl Generation {
    fn has(&self, granule: u32) -> bool {
        self.begins[(granule / u64::BITS) as usize] & 1 << (granule % u64::BITS) != 0
    }
}

/// A range that was freed and stays as it is.
struct Frozen {
    id: RangeId,
    size: u32,
    /// The last fork before it was handed out, or an earlier one.
    born: u32,
    /// The last fork before it was freed.
    epoch: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Forks {
    /// Latest last. What is in none was there before the first fork that found the chunk.
    generations: Vec<Generation>,
    frozen: Vec<Frozen>,
    bytes: u64,
    /// The last fork before the chunk was made.
    made: u32,
    /// The last fork.
    epoch: u32,
    /// The parent made the chunk; this process can't write it.
    inherited: bool,
    /// It has served, and goes as a whole.
    going: bool,
}

impl Forks {
    pub(super) fn new(epoch: u32) -> Forks {
        Forks {
            made: epoch,
            epoch,
            ..Forks::default()
        }
    }

    pub(super) fn forked(&mut self, forked: Forked) {
        self.epoch = forked.epoch;
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
        if self.epoch != self.made {
            self.note(granule, granules);
        }
    }

    /// Where the heap has no room, the piece counts as one that children see.
    #[cold]
    fn note(&mut self, granule: u32, granules: u32) {
        let known = self.generations.last();
        if known.is_none_or(|latest| latest.epoch != self.epoch)
            && !self.begin_generation(granules.div_ceil(u64::BITS) as usize)
        {
            return;
        }
        if let Some(latest) = self.generations.last_mut() {
            latest.begins[(granule / u64::BITS) as usize] |= 1 << (granule % u64::BITS);
        }
    }

    /// Begins a generation of nothing; `false` if the heap has no room for it.
    fn begin_generation(&mut self, words: usize) -> bool {
        let mut begins = Vec::new();
        if self.generations.len() == MOST_GENERATIONS {
            // A piece may be in several: what begins at its granule now is in the latest.
            let second = self.generations.remove(1);
            let both = self.generations[0].begins.iter_mut();
            both.zip(&second.begins)
                .for_each(|(words, second)| *words |= second);
            begins = second.begins;
            begins.clear();
        }
        let room = begins.try_reserve_exact(words).is_ok();
        let room = room && self.generations.try_reserve(1).is_ok();
        if room {
            begins.resize(words, 0);
            let epoch = self.epoch;
            self.generations.push(Generation { epoch, begins });
        }
        room
    }

    /// The last fork before the live piece that begins at a granule was handed out, or an earlier one.
    fn born(&self, granule: u32) -> u32 {
        let mut generations = self.generations.iter().rev();
        let born = generations.find(|generation| generation.has(granule));
        born.map_or(self.made, |generation| generation.epoch)
    }

    /// Whether children may see a piece.
    #[inline]
    pub(super) fn is_old(&self, granule: u32) -> bool {
        let latest = self.generations.last();
        let since = latest.filter(|generation| generation.epoch == self.epoch);
        self.epoch != self.made && !since.is_some_and(|generation| generation.has(granule))
    }

    /// Keeps a freed range as it is that begins at a granule. Without room to note it, it stays so for
    /// good.
    #[cold]
    pub(super) fn freeze(&mut self, id: RangeId, granule: u32, size: u32) {
        let (born, epoch) = (self.born(granule), self.epoch);
        self.bytes += u64::from(size);
        if self.frozen.try_reserve(1).is_ok() {
            self.frozen.push(Frozen {
                id,
                size,
                born,
                epoch,
            });
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
        let bytes = &mut self.bytes;
        self.frozen.retain(|frozen| {
            let seen = forks.any_between(frozen.born, frozen.epoch);
            if !seen {
                *bytes -= u64::from(frozen.size);
                thawed.push(frozen.id);
            }
            seen
        });
        thawed
    }
}
