// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A table of records that never move and whose pages are given back.
//!
//! Its memory comes from the kernel in parts, each twice as large as the one before, and stays mapped
//! as long as the table: a reader that takes no lock never faults. What changes the table holds the
//! lock of its owner; its counts are atomics so that the table can be shared all the same.
//!
//! A block is as many records as fill whole pages. Records are taken from the block that was opened
//! last, so that those which were left alone become idle when the last of their records goes; of idle
//! blocks all but a few are given back.

use crate::sys::{Pages, page_size};
use smallvec::SmallVec;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32};
use std::{io, ptr};

/// A stretch is so many records, or 2 to the power of `STRETCH_BITS`, in one piece of memory, with the
/// state of its blocks in the page in front.
const STRETCH: u32 = 1 << STRETCH_BITS;
const STRETCH_BITS: u32 = 15;
/// All stretches together have 2^25 records. A table stays below 16 KiB, so that the heap's reserve can
/// hold it.
const STRETCHES: usize = 1 << 10;
/// Mappings of stretches: the first two have one, each further one as many as all before.
const PARTS: usize = 11;
/// Idle blocks are given back once they have more bytes than `MOST_IDLE`, until they have `KEPT_IDLE`.
const MOST_IDLE: usize = 512 << 10;
const KEPT_IDLE: usize = 128 << 10;
/// So many records that were given back last are taken first, without a look at their blocks.
const RECENT: usize = 16;
/// So many come from a block at once, where there are none.
const REFILL: u32 = RECENT as u32 / 2;

/// A record of a table.
///
/// # Safety
/// Memory that is zero is a value of the type.
pub(crate) unsafe trait Element: Send + Sync {
    /// A field that the table uses while the record is vacant.
    fn link(&self) -> &AtomicU32;

    /// The record's page was given back and is used again: it goes on with this generation.
    fn begin(&self, _generation: u32) {}

    /// How often the record was used, for those that can tell.
    fn generation(&self) -> u32 {
        0
    }
}

/// Where something that is kept in lists begins; 0 is the end, other numbers are one too high.
const END: u32 = 0;

/// The state of a block. Zero is that of one never used.
#[derive(Debug)]
struct Block {
    /// Records in use.
    used: AtomicU32,
    /// List of the vacant ones among the first `begun`.
    vacant: AtomicU32,
    /// The records behind these are zero.
    begun: AtomicU32,
    /// What records begin with.
    generation: AtomicU32,
    /// Neighbours in the list that the block is in.
    next: AtomicU32,
    previous: AtomicU32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Paged<T> {
    /// Where the records of each stretch begin; null where there are none yet.
    stretches: [AtomicPtr<T>; STRETCHES],
    parts: [OnceLock<Pages>; PARTS],
    /// A block has 2 to the power of this many records.
    block_bits: u32,
    /// Bytes in front of a stretch.
    front: usize,
    /// Idle blocks that are worth giving back.
    most_idle: u32,
    /// Records that can be taken without another part.
    spare: AtomicU32,
    /// The records that were given back last, and how many they are. Their blocks count them as in use.
    recent: [AtomicU32; RECENT],
    recent_count: AtomicU32,
    /// Blocks that were used ever.
    begun: AtomicU32,
    /// List of the blocks that have both records in use and others.
    open: AtomicU32,
    /// List of the blocks that have only vacant records.
    idle: AtomicU32,
    idle_blocks: AtomicU32,
    /// List of the blocks whose pages were given back.
    bare: AtomicU32,
}

/// Blocks that are being given back.
pub(crate) type IdleBlocks = SmallVec<[u32; 32]>;

/// How the pages of a table are given back.
pub(crate) trait Table: Send + Sync {
    /// Takes some idle blocks out of use, unless there are few.
    fn take_idle(&self) -> IdleBlocks;

    /// Gives the pages of such blocks to the system. Without the lock: the blocks are out of use.
    fn discard(&self, blocks: &IdleBlocks);

    /// Puts such blocks into use again.
    fn give_blocks(&self, blocks: &IdleBlocks);
}

fn page_bytes() -> usize {
    page_size().bytes() as usize
}

/// Changes what only one thread changes at a time.
fn change(value: &AtomicU32, how: impl FnOnce(u32) -> u32) {
    value.store(how(value.load(Relaxed)), Relaxed);
}

#[cold]
fn not_mapped(index: u32) -> ! {
    panic!("record {index} was never taken");
}

impl<T: Element> Paged<T> {
    /// No records.
    pub(crate) fn new() -> Self {
        let page = page_bytes();
        let page_bits = page.trailing_zeros();
        let block_bits = page_bits - size_of::<T>().trailing_zeros().min(page_bits);
        debug_assert!(block_bits <= STRETCH_BITS);
        let blocks = (STRETCH >> block_bits) as usize * size_of::<Block>();
        let block_bytes = size_of::<T>() << block_bits;
        Paged {
            stretches: [const { AtomicPtr::new(ptr::null_mut()) }; STRETCHES],
            parts: [const { OnceLock::new() }; PARTS],
            block_bits,
            front: blocks.next_multiple_of(page),
            most_idle: (MOST_IDLE / block_bytes) as u32,
            spare: AtomicU32::new(0),
            recent: [const { AtomicU32::new(0) }; RECENT],
            recent_count: AtomicU32::new(0),
            begun: AtomicU32::new(0),
            open: AtomicU32::new(END),
            idle: AtomicU32::new(END),
            idle_blocks: AtomicU32::new(0),
            bare: AtomicU32::new(END),
        }
    }

    /// Where the records of a stretch begin.
    #[inline]
    fn stretch(&self, index: u32) -> *mut T {
        match self.stretches.get((index >> STRETCH_BITS) as usize) {
            Some(stretch) => stretch.load(Acquire),
            None => ptr::null_mut(),
        }
    }

    /// A record of this index, whether it is in use or not.
    #[inline]
    pub(crate) fn find(&self, index: u32) -> Option<&T> {
        let stretch = self.stretch(index);
        let record = stretch.wrapping_add((index & (STRETCH - 1)) as usize);
        // SAFETY: a stretch has as many records, each of which is zero or what was stored in its
        // atomics, and stays mapped as long as the table, which the reference borrows.
        (!stretch.is_null()).then(|| unsafe { &*record })
    }

    /// Where the records of a stretch begin that has some.
    #[inline]
    fn present_stretch(&self, index: u32) -> *mut T {
        // One that is too large is one that was never taken, and leads to another record.
        debug_assert!((index >> STRETCH_BITS) < STRETCHES as u32);
        let stretch = &self.stretches[(index >> STRETCH_BITS) as usize % STRETCHES];
        let stretch = stretch.load(Acquire);
        if stretch.is_null() {
            not_mapped(index);
        }
        stretch
    }

    /// A record that was taken.
    #[inline]
    pub(crate) fn get(&self, index: u32) -> &T {
        let stretch = self.present_stretch(index);
        let record = stretch.wrapping_add((index & (STRETCH - 1)) as usize);
        // SAFETY: as in `find`.
        unsafe { &*record }
    }

    #[inline]
    fn block(&self, block: u32) -> &Block {
        self.block_of(block << self.block_bits)
    }

    /// The block of a record.
    #[inline]
    fn block_of(&self, index: u32) -> &Block {
        let stretch = self.present_stretch(index);
        let number = (index & (STRETCH - 1)) >> self.block_bits;
        let front = stretch.cast::<u8>().wrapping_sub(self.front);
        // SAFETY: in front of its records a stretch has its blocks, as `add_part` lays it out, from the
        // start of a page; zero is a value of them. They live as long as the table.
        unsafe { &*front.cast::<Block>().wrapping_add(number as usize) }
    }

    fn block_bytes(&self) -> usize {
        size_of::<T>() << self.block_bits
    }

    fn records_per_block(&self) -> u32 {
        1 << self.block_bits
    }

    // ---- taking and giving ----

    /// Makes sure that `count` more records can be taken.
    #[inline]
    pub(crate) fn make_spare(&self, count: u32) -> io::Result<()> {
        while self.spare.load(Relaxed) < count {
            self.add_part()?;
        }
        Ok(())
    }

    #[cold]
    fn add_part(&self) -> io::Result<()> {
        let Some(part) = self.parts.iter().position(|part| part.get().is_none()) else {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        };
        let (first, count) = match part {
            0 => (0, 1),
            part => (1 << (part - 1), 1 << (part - 1)),
        };
        let stretch = self.front + STRETCH as usize * size_of::<T>();
        let pages = Pages::new(count * stretch)?;
        for number in 0..count {
            let records = pages.pointer().wrapping_add(number * stretch + self.front);
            self.stretches[first + number].store(records.cast(), Release);
        }
        let added = self.parts[part].set(pages).is_ok();
        debug_assert!(added, "one thread changes the table");
        change(&self.spare, |spare| spare + count as u32 * STRETCH);
        Ok(())
    }

    /// Takes a record, in the state that it was given back in; after [`Paged::make_spare`].
    #[inline]
    pub(crate) fn take(&self) -> (u32, &T) {
        change(&self.spare, |spare| spare - 1);
        let count = self.recent_count.load(Relaxed) as usize;
        if count == 0 {
            return self.take_from_block();
        }
        let index = self.recent[(count - 1) % RECENT].load(Relaxed);
        self.recent_count.store(count as u32 - 1, Relaxed);
        (index, self.get(index))
    }

    /// Has some records of a block be the recent ones, and takes one of them.
    #[inline(never)]
    fn take_from_block(&self) -> (u32, &T) {
        let number = match self.open.load(Relaxed) {
            END => self.open_block(),
            head => head - 1,
        };
        let first = number << self.block_bits;
        let block = self.block_of(first);
        let used = block.used.load(Relaxed);
        let count = (self.records_per_block() - used).min(REFILL);
        let places = &self.recent[..count as usize];
        places.iter().rev().for_each(|place| {
            let index = match block.vacant.load(Relaxed) {
                END => {
                    let begun = block.begun.load(Relaxed);
                    block.begun.store(begun + 1, Relaxed);
                    let record = self.get(first + begun);
                    record.begin(block.generation.load(Relaxed));
                    first + begun
                }
                head => {
                    let next = self.get(head - 1).link().load(Relaxed);
                    block.vacant.store(next, Relaxed);
                    head - 1
                }
            };
            place.store(index, Relaxed);
        });
        block.used.store(used + count, Relaxed);
        if used + count == self.records_per_block() {
            self.unlink(number);
        }
        self.recent_count.store(count - 1, Relaxed);
        let index = self.recent[count as usize - 1].load(Relaxed);
        (index, self.get(index))
    }

    /// Puts a block without records in use into the list of open ones: the best that there is.
    #[cold]
    fn open_block(&self) -> u32 {
        let pop = |list: &AtomicU32| {
            let head = list.load(Relaxed);
            let number = head.checked_sub(1)?;
            list.store(self.block(number).next.load(Relaxed), Relaxed);
            Some(number)
        };
        let number = if let Some(idle) = pop(&self.idle) {
            change(&self.idle_blocks, |blocks| blocks - 1);
            idle
        } else if let Some(bare) = pop(&self.bare) {
            bare
        } else {
            let begun = self.begun.load(Relaxed);
            self.begun.store(begun + 1, Relaxed);
            begun
        };
        self.link(number);
        number
    }

    /// Puts a block in front of the open ones.
    #[cold]
    fn link(&self, number: u32) {
        let (block, head) = (self.block(number), self.open.load(Relaxed));
        block.next.store(head, Relaxed);
        block.previous.store(END, Relaxed);
        if head != END {
            self.block(head - 1).previous.store(number + 1, Relaxed);
        }
        self.open.store(number + 1, Relaxed);
    }

    /// Takes a block out of the open ones.
    #[cold]
    fn unlink(&self, number: u32) {
        let block = self.block(number);
        let (next, previous) = (block.next.load(Relaxed), block.previous.load(Relaxed));
        if next != END {
            self.block(next - 1).previous.store(previous, Relaxed);
        }
        match previous {
            END => self.open.store(next, Relaxed),
            _ => self.block(previous - 1).next.store(next, Relaxed),
        }
    }

    /// Gives a record back.
    #[inline]
    pub(crate) fn give(&self, index: u32, record: &T) {
        change(&self.spare, |spare| spare + 1);
        let count = self.recent_count.load(Relaxed);
        match self.recent.get(count as usize) {
            Some(place) => {
                place.store(index, Relaxed);
                self.recent_count.store(count + 1, Relaxed);
            }
            None => self.give_to_block(index, record),
        }
    }

    #[inline(never)]
    fn give_to_block(&self, index: u32, record: &T) {
        let number = index >> self.block_bits;
        let block = self.block_of(index);
        // After what its user has stored, for readers without the lock.
        record.link().store(block.vacant.load(Relaxed), Release);
        block.vacant.store(index + 1, Relaxed);
        let used = block.used.load(Relaxed) - 1;
        block.used.store(used, Relaxed);
        if used + 1 == self.records_per_block() {
            self.link(number);
        }
        if used == 0 {
            self.set_idle(number);
        }
    }

    #[cold]
    fn set_idle(&self, number: u32) {
        self.unlink(number);
        let head = self.idle.load(Relaxed);
        self.block(number).next.store(head, Relaxed);
        self.idle.store(number + 1, Relaxed);
        change(&self.idle_blocks, |blocks| blocks + 1);
    }

    // ---- giving pages back ----

    fn idle_bytes(&self) -> usize {
        self.idle_blocks.load(Relaxed) as usize * self.block_bytes()
    }

    /// Whether pages are worth giving back.
    #[inline]
    pub(crate) fn has_idle(&self) -> bool {
        self.idle_blocks.load(Relaxed) > self.most_idle
    }

    // ---- looking ----

    /// All records that are in use or were used, with their indices.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let blocks = 0..self.begun.load(Relaxed);
        blocks.flat_map(move |number| {
            let first = number << self.block_bits;
            let records = first..first + self.block(number).begun.load(Relaxed);
            records.map(|index| (index, self.get(index)))
        })
    }

    /// Records for which there is address space.
    pub(crate) fn mapped(&self) -> usize {
        let stretches = self.stretches.iter();
        let mapped = stretches.take_while(|stretch| !stretch.load(Acquire).is_null());
        mapped.count() * STRETCH as usize
    }

    /// What `look` answers for the first record that was ever used for which it answers anything, from an
    /// index on. Needs no lock, and fails for no change that is under way.
    pub(crate) fn find_map_from<R>(
        &self,
        from: u32,
        mut look: impl FnMut(u32, &T) -> Option<R>,
    ) -> Option<R> {
        for number in (from >> self.block_bits)..self.begun.load(Acquire) {
            let first = number << self.block_bits;
            if self.stretch(first).is_null() {
                return None;
            }
            let begun = self.block(number).begun.load(Acquire);
            let end = first + begun.min(self.records_per_block());
            for index in from.max(first)..end {
                if let Some(found) = look(index, self.get(index)) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// Bytes of the pages that were written.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let blocks = self.begun.load(Relaxed);
        let bytes = (0..blocks).map(|number| {
            let begun = self.block(number).begun.load(Relaxed);
            (begun as usize * size_of::<T>()).next_multiple_of(page_bytes())
        });
        let states = blocks as usize * size_of::<Block>();
        (bytes.sum::<usize>() + states.next_multiple_of(page_bytes())) as u64
    }
}

impl<T: Element> Table for Paged<T> {
    fn take_idle(&self) -> IdleBlocks {
        let recent = self.recent_count.load(Relaxed) as usize;
        self.recent_count.store(0, Relaxed);
        for index in self.recent[..recent]
            .iter()
            .map(|index| index.load(Relaxed))
        {
            self.give_to_block(index, self.get(index));
        }
        let mut taken = IdleBlocks::new();
        while self.idle_bytes() > KEPT_IDLE && taken.len() < taken.inline_size() {
            let number = self.idle.load(Relaxed) - 1;
            self.idle
                .store(self.block(number).next.load(Relaxed), Relaxed);
            change(&self.idle_blocks, |blocks| blocks - 1);
            change(&self.spare, |spare| spare - self.records_per_block());
            taken.push(number);
        }
        taken.sort_unstable();
        taken
    }

    fn discard(&self, blocks: &IdleBlocks) {
        for number in blocks {
            let block = self.block(*number);
            let first = number << self.block_bits;
            let records = first..first + block.begun.load(Relaxed);
            // A record that begins again is as far as any of its block was.
            let generations = records.map(|index| self.get(index).generation());
            if let Some(generation) = generations.max() {
                block.generation.store(generation, Relaxed);
            }
        }
        let stretch = |number: u32| (number << self.block_bits) >> STRETCH_BITS;
        let follows = |a: &u32, b: &u32| a + 1 == *b && stretch(*a) == stretch(*b);
        for run in blocks.chunk_by(follows) {
            let first = std::ptr::from_ref(self.get(run[0] << self.block_bits));
            let (start, size) = (first.addr(), run.len() * self.block_bytes());
            let mut parts = self.parts.iter().filter_map(|part| part.get());
            let part = parts.find(|part| part.contains(start));
            // SAFETY: zero is a value of records.
            let gone = unsafe {
                part.unwrap_or_else(|| not_mapped(run[0]))
                    .discard(start, size)
            };
            for number in run.iter().filter(|_| gone.is_ok()) {
                self.block(*number).begun.store(0, Relaxed);
                self.block(*number).vacant.store(END, Relaxed);
            }
        }
    }

    fn give_blocks(&self, blocks: &IdleBlocks) {
        for number in blocks {
            let block = self.block(*number);
            block.next.store(self.bare.load(Relaxed), Relaxed);
            self.bare.store(number + 1, Relaxed);
            change(&self.spare, |spare| spare + self.records_per_block());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    struct Number {
        value: AtomicU32,
        link: AtomicU32,
        uses: AtomicU32,
    }

    // SAFETY: zero is a value of atomics.
    unsafe impl Element for Number {
        fn link(&self) -> &AtomicU32 {
            &self.link
        }

        fn begin(&self, generation: u32) {
            self.uses.store(generation, Relaxed);
        }

        fn generation(&self) -> u32 {
            self.uses.load(Relaxed)
        }
    }

    fn take(table: &Paged<Number>, value: u32) -> u32 {
        table.make_spare(1).unwrap();
        let (index, number) = table.take();
        number.value.store(value, Relaxed);
        number.uses.store(number.uses.load(Relaxed) + 1, Relaxed);
        index
    }

    fn give_idle(table: &Paged<Number>) {
        loop {
            let idle = table.take_idle();
            if idle.is_empty() {
                return;
            }
            table.discard(&idle);
            table.give_blocks(&idle);
        }
    }

    #[test]
    fn records_keep_their_index_and_their_place() {
        let table: Paged<Number> = Paged::new();
        let first = take(&table, 0);
        let place = std::ptr::from_ref(table.get(first));
        let mut seen = HashSet::from([first]);
        for value in 1..100_000 {
            let index = take(&table, value);
            assert!(seen.insert(index));
        }
        assert_eq!(std::ptr::from_ref(table.get(first)), place);
        let values: HashSet<u32> = table
            .iter()
            .map(|(_, number)| number.value.load(Relaxed))
            .collect();
        assert_eq!(values.len(), 100_000);
        assert!(table.find(99_999).is_some());
        for index in [1 << 18, 1 << 27, 1 << 30, u32::MAX] {
            assert!(table.find(index).is_none());
        }
    }

    #[test]
    fn pages_are_given_back_and_generations_never_sink() {
        let table: Paged<Number> = Paged::new();
        let mut most = 0;
        for round in 1..4 {
            let mut taken: Vec<u32> = (0..200_000).map(|value| take(&table, value)).collect();
            let uses = |index: &u32| table.get(*index).uses.load(Relaxed);
            let least = taken.iter().map(uses).min().unwrap();
            assert!(least >= round, "{least}");
            most = taken.iter().map(uses).max().unwrap().max(most);
            let full = table.resident_bytes();
            assert!(full >= 2_400_000, "{full}");
            // Every third first, so that blocks become idle late and out of order.
            for step in [2, 0, 1] {
                taken
                    .iter()
                    .skip(step)
                    .step_by(3)
                    .for_each(|index| table.give(*index, table.get(*index)));
            }
            taken.clear();
            give_idle(&table);
            let left = table.resident_bytes();
            assert!(left <= (KEPT_IDLE + 64 * 1024) as u64, "{left}");
        }
        assert!(most >= 3);
    }

    #[test]
    fn the_heaps_reserve_can_hold_a_table() {
        assert!(size_of::<Paged<Number>>() <= 12 << 10);
        let all: u32 = (1..PARTS as u32).map(|part| 1 << (part - 1)).sum();
        assert_eq!(all as usize + 1, STRETCHES);
    }

    #[test]
    fn a_few_idle_pages_are_kept() {
        let table: Paged<Number> = Paged::new();
        for _ in 0..3 {
            let taken: Vec<u32> = (0..20_000).map(|value| take(&table, value)).collect();
            taken
                .iter()
                .for_each(|index| table.give(*index, table.get(*index)));
            assert!(!table.has_idle());
        }
    }

    #[test]
    fn a_shortage_is_told_before_anything_is_taken() {
        let _faults = crate::sys::fault::Faults::all_after(0, libc::ENOMEM);
        let table: Paged<Number> = Paged::new();
        assert!(table.make_spare(1).is_err());
    }
}
