// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The JITDylibs that live allocations belong to, by numbers that are half as long as the host's.

use super::space::{heap_is_full, no_pages};
use crate::error::Result;
use crate::memory::slab::Slab;
use crate::memory::words::Words;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

#[derive(Default)]
struct Dylib {
    /// What the host calls it.
    id: u64,
    allocations: u64,
}

/// Numbers of JITDylibs; 0 is no number.
pub(super) struct Dylibs {
    dylibs: Slab<Dylib>,
    /// What the host calls them, by number, for readers without a lock.
    ids: Arc<Words>,
    numbers: HashMap<u64, u32>,
    /// The one that was asked for last: a linker has many graphs of one JITDylib one after the other.
    last: (u64, u32),
}

impl Dylibs {
    pub(super) fn new() -> Dylibs {
        Dylibs {
            dylibs: Slab::new(),
            ids: Arc::new(Words::new()),
            numbers: HashMap::new(),
            last: (0, 0),
        }
    }

    /// What the host calls the JITDylibs, by number, for readers without a lock.
    pub(super) fn ids(&self) -> &Arc<Words> {
        &self.ids
    }

    /// Makes sure that a JITDylib can be noted.
    #[inline]
    pub(super) fn make_spare(&mut self, id: u64) -> Result<()> {
        match id == 0 || id == self.last.0 {
            true => Ok(()),
            false => self.make_room(),
        }
    }

    #[cold]
    fn make_room(&mut self) -> Result<()> {
        let room = self.dylibs.make_spare(1) && self.numbers.try_reserve(1).is_ok();
        if !room {
            return Err(heap_is_full());
        }
        self.ids
            .make_room(self.dylibs.numbers() + 1)
            .map_err(no_pages)
    }

    /// Notes one more allocation of a JITDylib, and gives its number.
    pub(super) fn enter(&mut self, id: u64) -> u32 {
        if self.last.0 != id {
            self.last = (id, self.find(id));
        }
        let number = self.last.1;
        self.dylibs.get_mut(number - 1).allocations += 1;
        number
    }

    #[cold]
    fn find(&mut self, id: u64) -> u32 {
        let (dylibs, ids) = (&mut self.dylibs, &self.ids);
        *self.numbers.entry(id).or_insert_with(|| {
            let number = dylibs.insert(Dylib { id, allocations: 0 }) + 1;
            if let Some(word) = ids.used(number as usize) {
                word.store(id, Relaxed);
            }
            number
        })
    }

    /// An allocation of the JITDylib of this number is gone. Gives what the host calls it.
    pub(super) fn leave(&mut self, number: u32) -> u64 {
        let dylib = self.dylibs.get_mut(number - 1);
        dylib.allocations -= 1;
        let id = dylib.id;
        if dylib.allocations == 0 {
            self.dylibs.remove(number - 1);
            self.numbers.remove(&id);
            if self.last.1 == number {
                self.last = (0, 0);
            }
        }
        id
    }

    /// Bytes of heap.
    pub(super) fn bytes(&self) -> u64 {
        let numbers = self.numbers.capacity() * (size_of::<(u64, u32)>() + 1);
        self.dylibs.bytes() + self.ids.resident_bytes() + numbers as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dylib_has_one_number_while_it_has_allocations() {
        let mut dylibs = Dylibs::new();
        dylibs.make_spare(7).unwrap();
        let one = dylibs.enter(7);
        dylibs.make_spare(8).unwrap();
        let other = dylibs.enter(8);
        let id = |number: u32| dylibs.ids().get(number as usize).unwrap().load(Relaxed);
        assert_eq!((id(one), id(other)), (7, 8));
        assert!(one != 0 && other != 0 && one != other);
        assert_eq!(dylibs.enter(7), one);
        assert_eq!((dylibs.leave(one), dylibs.leave(other)), (7, 8));
        assert_eq!(dylibs.enter(7), one);
        assert_eq!((dylibs.leave(one), dylibs.leave(one)), (7, 7));
        assert_eq!(dylibs.numbers.len(), 0);
        let again = dylibs.enter(9);
        assert_eq!(dylibs.leave(again), 9);
    }
}
