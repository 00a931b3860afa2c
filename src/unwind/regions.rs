// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Indexes of this process's own, for code that is registered here, wherever it lies. Address space is divided
//! into regions, and a region has an index from the first time that code comes into it. What no index can name is
//! left to the unwinder's own registration.

use super::eh_frame::{Bytes, Function, Functions};
use super::index::{ENTRY, Entered, IndexReader, IndexWriter, size_for};
use super::occupancy::Occupancy;
use crate::page::{AddressRange, PACKING_GRANULE};
use crate::sys::{AtForkStatic, Pages, page_size};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::io;
use std::ptr;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

/// Bytes of a region. Its index is a quarter of that, in address space.
const REGION: u64 = 256 << 20;
/// Bits of a region's number, of which each table has half.
const BITS: u32 = 20;
const TABLE: usize = 1 << (BITS / 2);
/// Bytes in which the sections of a region's functions lie, and how much of that is in front of the region.
const SECTIONS: u64 = 8 << 30;
const IN_FRONT: u64 = 4 << 30;

/// A region that has an index. It stays, and gives its idle pages back.
struct Region {
    code: AddressRange,
    entries: Pages,
    writer: IndexWriter,
    reader: IndexReader,
}

type Table = [AtomicPtr<Region>; TABLE];

/// By the upper and the lower half of their numbers.
static REGIONS: [AtomicPtr<Table>; TABLE] = [const { AtomicPtr::new(ptr::null_mut()) }; TABLE];

/// By the regions' numbers. Its lock is held while a region is made or written.
static OCCUPIED: AtForkStatic<BTreeMap<u64, Occupancy>> = AtForkStatic::new(BTreeMap::new());

fn number_of(address: u64) -> u64 {
    address / REGION
}

/// The table that a region is in, and its place there.
fn place_of(number: u64) -> Option<(usize, usize)> {
    let number = number as usize;
    (number < TABLE * TABLE).then_some((number / TABLE, number % TABLE))
}

fn find_region(number: u64) -> Option<&'static Region> {
    let (table, place) = place_of(number)?;
    // SAFETY: NULL or a table, none of which is ever freed.
    let table = unsafe { REGIONS[table].load(Acquire).as_ref() }?;
    // SAFETY: NULL or a region, likewise.
    unsafe { table[place].load(Acquire).as_ref() }
}

/// The region, which is made if it is not there.
fn make_region(
    occupied: &mut BTreeMap<u64, Occupancy>,
    number: u64,
) -> io::Result<&'static Region> {
    if let Some(region) = find_region(number) {
        return Ok(region);
    }
    let none = || io::Error::from_raw_os_error(libc::EFAULT);
    let (table, place) = place_of(number).ok_or_else(none)?;
    let (region, occupancy) = Region::new(number).ok_or_else(none)??;
    if REGIONS[table].load(Acquire).is_null() {
        let new: Box<Table> = Box::new([const { AtomicPtr::new(ptr::null_mut()) }; TABLE]);
        REGIONS[table].store(Box::into_raw(new), Release);
    }
    // SAFETY: a table, none of which is ever freed.
    let table = unsafe { &*REGIONS[table].load(Acquire) };
    occupied.insert(number, occupancy);
    table[place].store(Box::into_raw(Box::new(region)), Release);
    find_region(number).ok_or_else(none)
}

impl Region {
    /// `None` where address space ends.
    fn new(number: u64) -> Option<io::Result<(Region, Occupancy)>> {
        let code = AddressRange::new(number * REGION, REGION)?;
        let sections = AddressRange::new(code.start().saturating_sub(IN_FRONT), SECTIONS)?;
        let size = size_for(code, page_size());
        let make = || {
            let occupancy = Occupancy::new(size)?;
            let entries = Pages::new(size as usize)?;
            let address = entries.pointer().expose_provenance() as u64;
            // SAFETY: the pages are zero, and stay as long as the region.
            let writer = unsafe { IndexWriter::new(code, sections.start(), address) };
            // SAFETY: sections are this process's own memory; what is found is there until it is taken out, which
            // the one who runs its code does not do meanwhile.
            let reader = unsafe {
                let sections = Bytes::new(sections, sections.start());
                IndexReader::new(code, address, sections)
            };
            let region = Region {
                code,
                entries,
                writer,
                reader,
            };
            Ok((region, occupancy))
        };
        Some(make())
    }

    /// Whether a function of another section may end in the granule in which one of these begins. What is there of it
    /// would not be found once that one is taken out. Its description is not read: if that one was never taken out,
    /// its section may be gone.
    fn cuts_off(&self, functions: &[Function]) -> bool {
        functions.iter().any(|function| {
            let begins_inside = !PACKING_GRANULE.divides(function.code.start());
            let (granule, _) = self.writer.granules(function.code);
            begins_inside && self.writer.is_reached(granule)
        })
    }

    fn enter(&self, functions: &[Function], occupancy: &mut Occupancy) -> bool {
        let inside = |function: &Function| self.code.contains(function.code);
        // To enter functions that overlap costs time by their code's size, however few bytes describe it.
        let said: u64 = functions.iter().map(|function| function.code.size()).sum();
        let possible = functions.iter().all(inside) && said <= REGION;
        if !possible || !self.writer.is_free(functions) || self.cuts_off(functions) {
            return false;
        }
        let entered = self.writer.enter(functions);
        if let Some(entered) = &entered {
            occupancy.add(entered.iter().map(|one| self.writer.offset_of(*one)));
        }
        entered.is_some()
    }

    fn entered_within(&self, part: AddressRange, occupancy: &Occupancy) -> Entered {
        let mut entered = Entered::new();
        if part.size() == 0 {
            return entered;
        }
        let (mut granule, last) = self.writer.granules(part);
        while granule <= last {
            let offset = self.writer.offset_of(granule);
            if !occupancy.names_any(offset) {
                let page = page_size().bytes();
                granule += ((page - offset % page) / ENTRY) as u32;
                continue;
            }
            if self.writer.first_in(granule).is_some() {
                entered.push(granule);
            }
            granule += 1;
        }
        entered
    }

    fn take_out(&self, entered: &Entered, occupancy: &mut Occupancy) {
        self.writer.take_out(entered);
        let offsets = entered.iter().map(|one| self.writer.offset_of(*one));
        for idle in occupancy.remove(offsets) {
            let start = self.entries.pointer().addr() + idle.start() as usize;
            // SAFETY: entries are numbers. On failure they stay as they are, which is right as well.
            let _ = unsafe { self.entries.discard(start, idle.size() as usize) };
        }
    }
}

type FunctionsOf = SmallVec<[Function; 4]>;

/// The functions of a section, if all of them are known.
///
/// # Safety
/// The section is there, and is not written meanwhile.
unsafe fn functions_of(section: AddressRange) -> Option<FunctionsOf> {
    // SAFETY: as the caller says.
    let bytes = unsafe { Bytes::new(section, section.start()) };
    Functions::from(bytes, section.start())
        .map(Result::ok)
        .collect()
}

/// The region that all of the functions begin in, if it is one.
fn common_region(functions: &[Function]) -> Option<u64> {
    let mut numbers = functions.iter().map(|one| number_of(one.code.start()));
    let first = numbers.next()?;
    numbers.all(|number| number == first).then_some(first)
}

/// Has the unwinder find the functions of a section, or says that it can't. It is asked before whether it
/// asks us.
///
/// # Safety
/// The section is there, and stays as it is until it is taken out.
pub(super) unsafe fn enter(section: AddressRange) -> bool {
    // SAFETY: as the caller says.
    let Some(functions) = (unsafe { functions_of(section) }) else {
        return false;
    };
    let Some(number) = common_region(&functions) else {
        return functions.is_empty();
    };
    let mut occupied = OCCUPIED.lock();
    let Ok(region) = make_region(&mut occupied, number) else {
        return false;
    };
    let occupancy = occupied.get_mut(&number);
    occupancy.is_some_and(|occupancy| region.enter(&functions, occupancy))
}

/// Has it find them no more; `false` if it was not by [`enter`] that it did.
///
/// # Safety
/// The section is there.
pub(super) unsafe fn take_out(section: AddressRange) -> bool {
    // SAFETY: as the caller says.
    let Some(functions) = (unsafe { functions_of(section) }) else {
        return false;
    };
    let Some(number) = common_region(&functions) else {
        return functions.is_empty();
    };
    let mut occupied = OCCUPIED.lock();
    let (Some(region), Some(occupancy)) = (find_region(number), occupied.get_mut(&number)) else {
        return false;
    };
    let mut entered = Entered::new();
    for function in functions
        .iter()
        .filter(|one| region.code.contains(one.code))
    {
        let (granule, _) = region.writer.granules(function.code);
        let first = region.writer.first_in(granule);
        let first = first.and_then(|first| AddressRange::new(first, 1));
        if first.is_some_and(|first| section.contains(first)) {
            entered.push(granule);
        }
    }
    // Several may begin in one.
    entered.sort_unstable();
    entered.dedup();
    region.take_out(&entered, occupancy);
    !entered.is_empty()
}

/// Takes out all that lies in memory that is about to go.
pub(super) fn forget_within(memory: AddressRange) {
    let mut occupied = OCCUPIED.lock();
    let numbers = number_of(memory.start())..=number_of(memory.end());
    for (number, occupancy) in occupied.range_mut(numbers) {
        let Some(region) = find_region(*number) else {
            continue;
        };
        let start = memory.start().max(region.code.start());
        let end = memory.end().min(region.code.end());
        if let Some(part) = AddressRange::new(start, end.saturating_sub(start)) {
            let entered = region.entered_within(part, occupancy);
            region.take_out(&entered, occupancy);
        }
    }
}

/// The function that an address is in. Takes no lock, allocates nothing and waits for nothing.
pub(super) fn find(address: u64) -> Option<Function> {
    find_region(number_of(address))?.reader.find(address)
}

#[cfg(test)]
mod tests {
    use super::super::eh_frame::testing::Section;
    use super::*;

    /// Code and, in the second half, sections.
    const SIZE: u64 = 256 << 10;

    struct World(Pages);

    impl World {
        fn new() -> World {
            let world = World(Pages::new(SIZE as usize).unwrap());
            match number_of(world.start()) == number_of(world.start() + SIZE) {
                true => world,
                // The next one lies elsewhere, as long as this one is there.
                false => World::new(),
            }
        }

        fn start(&self) -> u64 {
            self.0.pointer().expose_provenance() as u64
        }

        fn code(&self, offset: u64, size: u64) -> AddressRange {
            AddressRange::new(self.start() + offset, size).unwrap()
        }

        /// Puts a section into the second half that describes functions.
        fn section(&self, offset: u64, functions: &[AddressRange]) -> AddressRange {
            let start = self.start() + SIZE / 2 + offset;
            let mut section = Section::new(start);
            for function in functions {
                section.describe(*function);
            }
            let bytes = section.finish();
            let target = self
                .0
                .pointer()
                .wrapping_add((start - self.start()) as usize);
            // SAFETY: the pages are the world's, and no other section lies there.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
            AddressRange::new(start, bytes.len() as u64).unwrap()
        }
    }

    fn enters(section: AddressRange) -> bool {
        // SAFETY: the test has written it, and keeps it.
        unsafe { enter(section) }
    }

    fn takes_out(section: AddressRange) -> bool {
        // SAFETY: as above.
        unsafe { take_out(section) }
    }

    fn found(address: u64) -> Option<AddressRange> {
        find(address).map(|function| function.code)
    }

    #[test]
    fn a_section_is_known_from_enter_to_take_out() {
        let world = World::new();
        let functions = [world.code(0, 40), world.code(40, 8), world.code(4096, 9000)];
        let section = world.section(0, &functions);
        assert_eq!(found(world.start()), None);
        assert!(!takes_out(section));
        assert!(enters(section));
        for function in functions {
            assert_eq!(found(function.start()), Some(function));
            assert_eq!(found(function.end() - 1), Some(function));
        }
        assert_eq!(found(world.start() + 48), None);
        // Others are not taken for it, and none is entered over it.
        let other = world.section(4096, &[world.code(32, 16)]);
        assert!(!enters(other) && !takes_out(other));
        assert_eq!(found(functions[0].start()), Some(functions[0]));
        assert!(takes_out(section) && !takes_out(section));
        assert_eq!(found(functions[2].start()), None);
        assert!(enters(other) && takes_out(other));
    }

    #[test]
    fn what_no_index_can_name_is_left_to_the_unwinder() {
        let world = World::new();
        let far = AddressRange::new(world.start() ^ (1 << 30), 16).unwrap();
        let both = world.section(0, &[world.code(0, 16), far]);
        assert!(!enters(both));
        assert_eq!(found(world.start()), None);
        let huge = AddressRange::new(world.start(), REGION).unwrap();
        let too_large = world.section(4096, &[huge]);
        assert!(!enters(too_large) && !takes_out(too_large));
        let nothing = world.section(8192, &[]);
        assert!(enters(nothing) && takes_out(nothing));
    }

    #[test]
    fn memory_that_goes_takes_its_functions_along() {
        let world = World::new();
        let sections: Vec<AddressRange> = (0..64)
            .map(|number| world.section(number * 256, &[world.code(number * 1024, 100)]))
            .collect();
        assert!(sections.iter().all(|section| enters(*section)));
        forget_within(world.code(0, 32 * 1024));
        for number in 0..64 {
            let known = found(world.start() + number * 1024 + 99).is_some();
            assert_eq!(known, number >= 32, "{number}");
        }
        forget_within(world.code(0, SIZE));
        assert_eq!(found(world.start() + 63 * 1024), None);
        assert!(sections.iter().all(|section| !takes_out(*section)));
    }
    #[test]
    fn what_goes_takes_no_byte_of_its_neighbour() {
        let world = World::new();
        let first = world.code(0, 20);
        let one = world.section(0, &[first]);
        let other = world.section(4096, &[world.code(20, 44)]);
        assert!(enters(one));
        assert!(!enters(other) && !takes_out(other));
        assert_eq!(found(world.start() + 18), Some(first));
        // In the granule behind it none of it is left.
        let behind = world.code(36, 40);
        assert!(enters(world.section(8192, &[behind])));
        assert_eq!(found(behind.start()), Some(behind));
        assert_eq!(found(world.start() + 18), Some(first));
        forget_within(world.code(0, SIZE));
    }

    #[test]
    fn a_section_that_is_gone_is_not_read() {
        let world = World::new();
        let stale = World::new();
        let functions = [
            world.code(0, 100),
            world.code(4096, 100),
            world.code(4196, 9000),
        ];
        assert!(enters(stale.section(0, &functions)));
        drop(stale);
        for offset in [100, 4200, 3 * 4096 - 3] {
            let next = world.section(0, &[world.code(offset, 8)]);
            assert!(!enters(next), "{offset}");
        }
        forget_within(world.code(0, SIZE));
        let next = world.code(100, 20);
        assert!(enters(world.section(4096, &[next])));
        assert_eq!(found(next.start()), Some(next));
        forget_within(world.code(0, SIZE));
    }
}
