// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From an address of code to its frame description, by window. One process writes an index and another
//! may read it: what one store writes is one entry, and each state between two stores is right for every
//! function that is there, so neither side waits for the other or tries again, and either may end at any point.
//!
//! There is an entry for each granule of the window, which says what begins there: a function or a gap. So a
//! reader goes back from an address to the first entry that says something. Functions of different
//! allocations have no granule in common. So that it goes back no farther than the beginning of a page,
//! another entry for each page names the function that is there already when the page begins.
//! Pages of the index that no code lies in take no memory.

use super::eh_frame::{Bytes, Function, Functions};
use crate::page::{AddressRange, Alignment, PACKING_GRANULE};
use smallvec::SmallVec;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Bytes of the window that have one entry that names the function before.
const PAGE: u64 = 4096;
const GRANULE: u64 = PACKING_GRANULE.bytes();
const GRANULES_PER_PAGE: u32 = (PAGE / GRANULE) as u32;

/// Bytes of an entry.
pub(super) const ENTRY: u64 = size_of::<AtomicU32>() as u64;

/// Nothing begins here.
const NOTHING: u32 = 0;
/// What was here before has ended.
const GAP: u32 = 1;
/// What is above these is a function: where its description is in the window, in words, after [`FIRST`] and the
/// lowest bit, which says that others begin in the same granule; theirs are behind it in the section.
const FIRST: u64 = 1;
const WORD: Alignment = Alignment::new(4).expect("a power of two");

/// The entries of one window.
#[derive(Clone, Copy, Debug)]
struct Table {
    window: AddressRange,
    /// What descriptions are named from.
    sections: u64,
    start: *const AtomicU32,
}

// SAFETY: an address and a range; what is there is accessed as atomics.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

fn pages(window: AddressRange) -> u64 {
    window.size().div_ceil(PAGE)
}

/// Bytes that the index of a window takes, a multiple of `page`. Windows are below 2 GiB.
pub(crate) fn size_for(window: AddressRange, page: Alignment) -> u64 {
    let entries = pages(window) + window.size() / GRANULE;
    page.round_up(entries * ENTRY)
        .expect("windows are below 2 GiB")
}

impl Table {
    fn entry(&self, number: u64) -> &AtomicU32 {
        assert!(number < pages(self.window) + self.granules());
        // SAFETY: the one who made the table says that so many entries are there while it is used.
        unsafe { &*self.start.wrapping_add(number as usize) }
    }

    fn granules(&self) -> u64 {
        self.window.size() / GRANULE
    }

    /// What begins in a granule.
    fn granule(&self, granule: u32) -> &AtomicU32 {
        self.entry(pages(self.window) + u64::from(granule))
    }

    /// One more than the granule in which the function begins that is there when a page begins; 0 if none is.
    fn page(&self, page: u32) -> &AtomicU32 {
        self.entry(page.into())
    }

    fn granule_of(&self, address: u64) -> u32 {
        ((address - self.window.start()) / GRANULE) as u32
    }

    fn entry_for(&self, description: u64) -> Option<u32> {
        let offset = description.checked_sub(self.sections)?;
        let word = WORD.divides(offset).then_some(offset / WORD.bytes())?;
        u32::try_from((word + FIRST).checked_mul(2)?).ok()
    }

    /// The description that an entry names, and whether others follow.
    fn description(&self, entry: u32) -> (u64, bool) {
        let word = u64::from(entry >> 1) - FIRST;
        (self.sections + word * WORD.bytes(), entry & 1 != 0)
    }
}

/// What is to be taken out again: the granules in which functions of an allocation begin.
pub(crate) type Entered = SmallVec<[u32; 3]>;

/// The right to write an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexWriter(Table);

impl IndexWriter {
    /// An index of a window, [`size_for`] which is zero, at an address. Sections lie behind `sections`.
    ///
    /// # Safety
    /// As long as the writer or a copy is used, so many bytes are there to be written, of which each word is
    /// accessed as an atomic only.
    pub(crate) unsafe fn new(window: AddressRange, sections: u64, address: u64) -> IndexWriter {
        let start = std::ptr::with_exposed_provenance(address as usize);
        IndexWriter(Table {
            window,
            sections,
            start,
        })
    }

    /// Whether no function is entered in a granule of theirs.
    pub(crate) fn is_free(&self, functions: &[Function]) -> bool {
        functions.iter().all(|function| {
            let (first, last) = self.granules(function.code);
            (first..=last).all(|granule| self.first_in(granule).is_none())
        })
    }

    /// The description of the first function that begins in a granule.
    pub(crate) fn first_in(&self, granule: u32) -> Option<u64> {
        match self.0.granule(granule).load(Relaxed) {
            NOTHING | GAP => None,
            entry => Some(self.0.description(entry).0),
        }
    }

    /// Whether a function that begins in a granule before may reach into this one. One that ended before has left a
    /// gap; only entries are read.
    pub(crate) fn is_reached(&self, granule: u32) -> bool {
        let page = granule / GRANULES_PER_PAGE;
        for before in (page * GRANULES_PER_PAGE..=granule).rev() {
            match self.0.granule(before).load(Relaxed) {
                NOTHING => {}
                GAP => return false,
                _ => return before < granule,
            }
        }
        let before = self.0.page(page).load(Relaxed).checked_sub(1);
        before.is_some_and(|before| self.first_in(before).is_some())
    }

    /// Where in the index the entry of a granule is, in bytes.
    pub(crate) fn offset_of(&self, granule: u32) -> u64 {
        (pages(self.0.window) + u64::from(granule)) * ENTRY
    }

    /// Enters functions of an allocation, in the order of their section, which readers find from then on. `None` if
    /// a description can't be named.
    ///
    /// No other allocation's functions begin or end in a granule of theirs.
    pub(crate) fn enter(&self, functions: &[Function]) -> Option<Entered> {
        let table = &self.0;
        let known = |function: &Function| {
            table.window.contains(function.code) && table.entry_for(function.description).is_some()
        };
        if !functions.iter().all(known) {
            return None;
        }
        functions
            .iter()
            .for_each(|function| self.end(function.code));
        functions
            .iter()
            .for_each(|function| self.clear(function.code));
        let mut entered = Entered::new();
        for function in functions {
            let granule = table.granule_of(function.code.start());
            let place = table.granule(granule);
            match place.load(Relaxed) {
                NOTHING | GAP => {
                    let entry = table.entry_for(function.description)?;
                    place.store(entry, Release);
                    entered.push(granule);
                }
                other => place.store(other | 1, Release),
            }
        }
        Some(entered)
    }

    /// Where code ends, a gap begins, unless something is known to begin.
    fn end(&self, code: AddressRange) {
        let end = (code.end() - self.0.window.start()).div_ceil(GRANULE);
        if end < self.0.granules() {
            let place = self.0.granule(end as u32);
            let _ = place.compare_exchange(NOTHING, GAP, AcqRel, Relaxed);
        }
    }

    /// Removes what is left from before of gaps inside of code, and names the function to the pages that it
    /// reaches into.
    fn clear(&self, code: AddressRange) {
        let (first, last) = self.granules(code);
        for granule in first + 1..=last {
            let place = self.0.granule(granule);
            if place.load(Relaxed) != NOTHING {
                place.store(NOTHING, Release);
            }
        }
        for page in first / GRANULES_PER_PAGE + 1..=last / GRANULES_PER_PAGE {
            self.0.page(page).store(first + 1, Release);
        }
    }

    /// The first and the last granule of code.
    pub(crate) fn granules(&self, code: AddressRange) -> (u32, u32) {
        let last = code.end().max(code.start() + 1) - 1;
        (self.0.granule_of(code.start()), self.0.granule_of(last))
    }

    /// Takes functions out again: none of them is found from then on.
    pub(crate) fn take_out(&self, entered: &[u32]) {
        let pages = pages(self.0.window);
        for granule in entered {
            self.0.granule(*granule).store(GAP, Release);
            let mut page = granule / GRANULES_PER_PAGE + 1;
            while u64::from(page) < pages && self.0.page(page).load(Relaxed) == granule + 1 {
                self.0.page(page).store(0, Release);
                page += 1;
            }
        }
    }
}

/// The right to read an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexReader {
    table: Table,
    code: Bytes,
}

// SAFETY: `Bytes` is an address and a range; what is there is read only where a function is found.
unsafe impl Send for IndexReader {}
// SAFETY: as above.
unsafe impl Sync for IndexReader {}

impl IndexReader {
    /// An index of a window, which is at an address.
    ///
    /// # Safety
    /// As long as the reader or a copy is used, [`size_for`] bytes are there to be read. The section of a
    /// function that is found is in `sections`, mapped, and is not written while it is read.
    pub(crate) unsafe fn new(window: AddressRange, address: u64, sections: Bytes) -> IndexReader {
        let start = std::ptr::with_exposed_provenance(address as usize);
        IndexReader {
            table: Table {
                window,
                sections: sections.start(),
                start,
            },
            code: sections,
        }
    }

    /// The function that an address is in. Takes no lock, allocates nothing and waits for nothing.
    pub(crate) fn find(&self, address: u64) -> Option<Function> {
        let at = AddressRange::new(address, 1)?;
        if !self.table.window.contains(at) {
            return None;
        }
        let here = self.table.granule_of(address);
        if u64::from(here) >= self.table.granules() {
            return None;
        }
        let page = here / GRANULES_PER_PAGE;
        for granule in (page * GRANULES_PER_PAGE..=here).rev() {
            match self.table.granule(granule).load(Acquire) {
                NOTHING => {}
                GAP => return None,
                entry => match self.describes(entry, at) {
                    // What begins in the same granule may begin behind the address.
                    None if granule == here => {}
                    found => return found,
                },
            }
        }
        let before = self.table.page(page).load(Acquire).checked_sub(1)?;
        if before >= here {
            return None;
        }
        match self.table.granule(before).load(Acquire) {
            NOTHING | GAP => None,
            entry => self.describes(entry, at),
        }
    }

    fn describes(&self, entry: u32, at: AddressRange) -> Option<Function> {
        let (description, several) = self.table.description(entry);
        let most = if several { usize::MAX } else { 1 };
        let mut functions = Functions::from(self.code, description).take(most);
        functions.find_map(|function| function.ok().filter(|function| function.code.contains(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::eh_frame::testing::{Section, bytes_at};
    use super::*;
    use crate::sys::page_size;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const WINDOW: u64 = 0x7000_0000_0000;
    const SIZE: u64 = 64 * PAGE;
    /// Where sections lie in the window.
    const SECTIONS: u64 = 32 * PAGE;

    /// A window without code, and its index.
    struct World {
        entries: Vec<AtomicU32>,
        window: Vec<u8>,
        next: u64,
    }

    impl World {
        fn new() -> World {
            let bytes = size_for(range(0, SIZE), page_size());
            World {
                entries: (0..bytes / 4).map(|_| AtomicU32::new(0)).collect(),
                window: vec![0; SIZE as usize],
                next: SECTIONS,
            }
        }

        fn address(&self) -> u64 {
            self.entries.as_ptr().expose_provenance() as u64
        }

        fn writer(&self) -> IndexWriter {
            // SAFETY: the entries are as many, and live as long.
            unsafe { IndexWriter::new(range(0, SIZE), WINDOW, self.address()) }
        }

        /// Puts a section into the window, and enters its functions.
        fn link(&mut self, functions: &[(u64, u64)]) -> Entered {
            let start = WINDOW + self.next;
            let mut section = Section::new(start);
            for (offset, size) in functions {
                section.describe(range(*offset, *size));
            }
            let bytes = section.finish();
            let place = self.next as usize;
            self.window[place..place + bytes.len()].copy_from_slice(&bytes);
            self.next = (self.next + bytes.len() as u64).next_multiple_of(16);
            let found: Vec<Function> = Functions::from(bytes_at(start, &bytes), start)
                .map(Result::unwrap)
                .collect();
            self.writer().enter(&found).unwrap()
        }

        fn find(&self, offset: u64) -> Option<(u64, u64)> {
            let sections = bytes_at(WINDOW, &self.window);
            // SAFETY: the entries and the window are there.
            let reader = unsafe { IndexReader::new(range(0, SIZE), self.address(), sections) };
            let found = reader.find(WINDOW + offset)?;
            Some((found.code.start() - WINDOW, found.code.size()))
        }
    }

    fn range(offset: u64, size: u64) -> AddressRange {
        AddressRange::new(WINDOW + offset, size).unwrap()
    }

    #[test]
    fn each_byte_of_a_function_is_its_own_and_no_other() {
        let mut world = World::new();
        let functions = [
            (0, 5),
            (5, 3),
            (8, 8),
            (16, 40),
            (56, 1),
            // Nothing is known of 57 to 64.
            (64, 16),
            (96, 3 * PAGE),
            (4 * PAGE - 1, 2),
        ];
        let entered = world.link(&functions);
        let expected = |offset: u64| {
            let inside = |(start, size): &&(u64, u64)| (*start..start + size).contains(&offset);
            functions.iter().find(inside).copied()
        };
        for offset in 0..6 * PAGE {
            assert_eq!(world.find(offset), expected(offset), "{offset}");
        }
        world.writer().take_out(&entered);
        for offset in 0..6 * PAGE {
            assert_eq!(world.find(offset), None, "{offset}");
        }
    }

    #[test]
    fn a_function_without_code_hides_none_that_begins_where_it_lies() {
        let mut world = World::new();
        let before = world.link(&[(0, 16), (16, 0)]);
        world.link(&[(16, 16)]);
        assert_eq!(world.find(20), Some((16, 16)));
        world.writer().take_out(&before);
        assert_eq!(world.find(20), Some((16, 16)));
        // At the end of the window.
        world.link(&[(SIZE - 16, 16), (SIZE, 0)]);
        assert_eq!(world.find(SIZE - 1), Some((SIZE - 16, 16)));
    }

    proptest! {
        /// In an executor the entries are a controller's, and linked code may write where sections lie.
        #[test]
        fn whatever_index_and_sections_hold_a_search_ends(
            entries in vec((0..SIZE / GRANULE + SIZE / PAGE, entry()), 0..200),
            sections in vec((0..SIZE, any::<u32>()), 0..50),
            addresses in vec(0..SIZE + PAGE, 20),
        ) {
            let mut world = World::new();
            for start in (0..SIZE / 2).step_by(512) {
                world.link(&[(start, 100), (start + 100, 12)]);
            }
            for (place, entry) in entries {
                world.entries[place as usize] = AtomicU32::new(entry);
            }
            for (place, word) in sections {
                let bytes = word.to_ne_bytes();
                let place = place as usize & !3;
                world.window[place..place + 4].copy_from_slice(&bytes);
            }
            for address in addresses {
                if let Some((start, size)) = world.find(address) {
                    prop_assert!((start..start + size).contains(&address));
                }
            }
        }
    }

    /// Anything, and what describes something in the window.
    fn entry() -> impl Strategy<Value = u32> {
        prop_oneof![any::<u32>(), 0..4u32, 0..(SIZE / 2) as u32, Just(u32::MAX)]
    }

    #[test]
    fn what_comes_and_goes_is_found_as_long_as_it_is_there() {
        use std::collections::BTreeMap;
        let mut world = World::new();
        /// Size in granules, functions, what was entered.
        type Linked = (u64, Vec<(u64, u64)>, Entered);
        // By first granule.
        let mut live: BTreeMap<u64, Linked> = BTreeMap::new();
        let mut state = 1u64;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for round in 0..2000 {
            let start = random(16 * PAGE / GRANULE);
            let size = match random(8) {
                0 => 1 + random(600),
                _ => 1 + random(12),
            };
            let taken: Vec<u64> = live
                .range(..start + size)
                .filter(|(first, (granules, ..))| *first + granules > start)
                .map(|(first, _)| *first)
                .collect();
            for first in taken {
                let (_, _, entered) = live.remove(&first).unwrap();
                world.writer().take_out(&entered);
            }
            let (mut functions, mut place, end) =
                (Vec::new(), start * GRANULE, (start + size) * GRANULE);
            while place < end {
                let bytes = 1 + random((end - place).min(3 * PAGE));
                if random(4) != 0 {
                    functions.push((place, bytes));
                }
                place += bytes;
            }
            if world.next + 64 * functions.len() as u64 + 64 > SIZE {
                world.next = SECTIONS;
            }
            if random(2) == 0 {
                functions.reverse();
            }
            let entered = world.link(&functions);
            live.insert(start, (size, functions, entered));
            // Sections are overwritten when the room is used up: what they described goes.
            if world.next == SECTIONS || round % 400 == 399 {
                for (_, (_, _, entered)) in std::mem::take(&mut live) {
                    world.writer().take_out(&entered);
                }
                world.next = SECTIONS;
            }
            for _ in 0..50 {
                let offset = random(20 * PAGE);
                let inside = |(start, size): &&(u64, u64)| (*start..start + size).contains(&offset);
                let all = live.values().flat_map(|(_, functions, _)| functions);
                assert_eq!(
                    world.find(offset),
                    all.clone().find(inside).copied(),
                    "{offset}"
                );
            }
        }
    }

    #[test]
    fn what_can_not_be_named_is_refused() {
        let world = World::new();
        let function = |offset, size, description| Function {
            code: range(offset, size),
            description: WINDOW + description,
        };
        assert!(world.writer().enter(&[function(SIZE - 8, 16, 0)]).is_none());
        assert!(world.writer().enter(&[function(0, 16, 2)]).is_none());
        assert!(world.writer().enter(&[function(SIZE - 8, 8, 0)]).is_some());
        let entries = world
            .entries
            .iter()
            .filter(|entry| entry.load(Relaxed) != 0);
        assert_eq!(entries.count(), 1);
    }
}
