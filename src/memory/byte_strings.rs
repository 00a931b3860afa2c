// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Small byte strings by key, in a table whose pages go back when they are gone.
//!
//! The heap would keep much of their memory: what is freed there stays while anything behind it is in use,
//! and in the arenas of other threads longer. As with [`Paged`], one lock is held by all who change them.

use super::paged::{Element, IdleBlocks, Paged, Table};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};

const WORD: usize = size_of::<u64>();
const WORDS: usize = 5;
const PIECE_BYTES: usize = WORDS * WORD;
/// A key is the index of the string's first piece below the number of strings before it.
const INDEX_BITS: u32 = 25;
const END: u32 = u32::MAX;

/// Part of a string. Zero is a value of it.
#[derive(Debug)]
#[repr(align(64))]
struct Piece {
    /// Of the string that begins here; else 0.
    key: AtomicU64,
    words: [AtomicU64; WORDS],
    /// Bytes from here to the end of the string.
    length: AtomicU32,
    /// The next piece of the string.
    link: AtomicU32,
    /// Of a string's first piece: where the strings begin that were added before and after it.
    before: AtomicU32,
    after: AtomicU32,
}

// SAFETY: zero is a value of atomics.
unsafe impl Element for Piece {
    fn link(&self) -> &AtomicU32 {
        &self.link
    }
}

/// The strings.
#[derive(Debug)]
pub(crate) struct ByteStrings {
    pieces: Paged<Piece>,
    /// Strings that were ever added.
    added: AtomicU64,
    /// Where the string begins that was added last of those that are there.
    last: AtomicU32,
}

impl ByteStrings {
    /// No strings.
    pub(crate) fn new() -> ByteStrings {
        ByteStrings {
            pieces: Paged::new(),
            added: AtomicU64::new(0),
            last: AtomicU32::new(END),
        }
    }

    /// Adds a string and gives its key, which is larger than those before and is given once.
    pub(crate) fn add(&self, bytes: &[u8]) -> io::Result<u64> {
        let count = bytes.len().div_ceil(PIECE_BYTES).max(1);
        let count = u32::try_from(count).map_err(|_| io::ErrorKind::OutOfMemory)?;
        self.pieces.make_spare(count)?;
        // From the end, where the next piece is known.
        let mut next = END;
        for number in (0..count as usize).rev() {
            let (index, piece) = self.pieces.take();
            let rest = &bytes[number * PIECE_BYTES..];
            for (word, bytes) in piece.words.iter().zip(rest.chunks(WORD)) {
                let mut whole = [0; WORD];
                whole[..bytes.len()].copy_from_slice(bytes);
                word.store(u64::from_le_bytes(whole), Relaxed);
            }
            piece.length.store(rest.len() as u32, Relaxed);
            piece.link.store(next, Relaxed);
            next = index;
        }
        let added = self.added.load(Relaxed) + 1;
        self.added.store(added, Relaxed);
        let key = added << INDEX_BITS | u64::from(next);
        let first = self.pieces.get(next);
        first.key.store(key, Relaxed);
        let before = self.last.swap(next, Relaxed);
        self.join(before, next);
        first.after.store(END, Relaxed);
        Ok(key)
    }

    /// Has one string follow another in the order that they were added in.
    fn join(&self, before: u32, after: u32) {
        if before != END {
            self.pieces.get(before).after.store(after, Relaxed);
        }
        match after {
            END => self.last.store(before, Relaxed),
            _ => self.pieces.get(after).before.store(before, Relaxed),
        }
    }

    /// Takes a string out; none if it is not there.
    pub(crate) fn take(&self, key: u64) -> Option<Vec<u8>> {
        let mut index = (key & ((1 << INDEX_BITS) - 1)) as u32;
        let first = self.pieces.find(index)?;
        if key == 0 || first.key.load(Relaxed) != key {
            return None;
        }
        first.key.store(0, Relaxed);
        self.join(first.before.load(Relaxed), first.after.load(Relaxed));
        let length = first.length.load(Relaxed) as usize;
        let mut bytes = Vec::with_capacity(length.next_multiple_of(WORD));
        while index != END {
            let piece = self.pieces.get(index);
            let words = piece.words.iter().map(|word| word.load(Relaxed));
            words.for_each(|word| bytes.extend(word.to_le_bytes()));
            let next = piece.link.load(Relaxed);
            self.pieces.give(index, piece);
            index = next;
        }
        bytes.truncate(length);
        Some(bytes)
    }

    /// The key of the string that was added last of those that are there.
    pub(crate) fn last(&self) -> Option<u64> {
        let last = self.last.load(Relaxed);
        (last != END).then(|| self.pieces.get(last).key.load(Relaxed))
    }
}

impl Table for ByteStrings {
    fn take_idle(&self) -> IdleBlocks {
        self.pieces.take_idle()
    }

    fn discard(&self, blocks: &IdleBlocks) {
        self.pieces.discard(blocks);
    }

    fn give_blocks(&self, blocks: &IdleBlocks) {
        self.pieces.give_blocks(blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn string(number: usize) -> Vec<u8> {
        (0..number % 200)
            .map(|byte| (byte + number) as u8)
            .collect()
    }

    #[test]
    fn strings_come_back_as_they_were_and_their_pages_go() {
        let strings = ByteStrings::new();
        let mut live = BTreeMap::new();
        for number in 0..100_000 {
            let key = strings.add(&string(number)).unwrap();
            assert!(live.insert(key, number).is_none());
            if number % 3 == 0 {
                let (key, number) = live.pop_first().unwrap();
                assert_eq!(strings.take(key).unwrap(), string(number));
                assert!(strings.take(key).is_none());
            }
        }
        let full = strings.pieces.resident_bytes();
        // Every other one first, the rest from the last one on.
        let some: Vec<u64> = live.keys().copied().step_by(2).collect();
        for key in some {
            let number = live.remove(&key).unwrap();
            assert_eq!(strings.take(key).unwrap(), string(number));
        }
        while let Some((key, number)) = live.pop_last() {
            assert_eq!(strings.last(), Some(key));
            assert_eq!(strings.take(key).unwrap(), string(number));
        }
        loop {
            let idle = strings.take_idle();
            if idle.is_empty() {
                break;
            }
            strings.discard(&idle);
            strings.give_blocks(&idle);
        }
        let left = strings.pieces.resident_bytes();
        assert!(left < full / 16, "{left} of {full}");
        assert!(strings.last().is_none());
    }

    #[test]
    fn what_is_no_key_is_told() {
        let strings = ByteStrings::new();
        let key = strings.add(&[7; 1000]).unwrap();
        for wrong in [0, 1, key - 1, key + 1, key + (1 << INDEX_BITS), u64::MAX] {
            assert!(strings.take(wrong).is_none(), "{wrong:#x}");
        }
        assert_eq!(strings.take(key).unwrap(), [7; 1000]);
        let again = strings.add(&[]).unwrap();
        assert!(again > key);
        assert!(strings.take(again).unwrap().is_empty());
    }
}
