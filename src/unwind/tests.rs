// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The index against libgcc, which is told of the same sections: random functions and addresses, while other threads
//! look for what stays.

use super::eh_frame::testing::Section;
use super::eh_frame::{Bytes, Function, Functions};
use super::index::{Entered, IndexReader, IndexWriter, size_for};
use crate::page::AddressRange;
use crate::sys::{self, Pages, page_size};
use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the window, of which the first half is for code.
const SIZE: u64 = 512 << 10;
const CODE: u64 = SIZE / 2;
/// Each graph has so much of both halves.
const PART: u64 = 8 << 10;
const PARTS: u64 = CODE / PART;
/// The last of them stay.
const STAYING: u64 = 4;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// A window whose sections are where they say, so that libgcc can read them.
struct World {
    window: Pages,
    entries: Pages,
}

/// What is linked in one part.
struct Graph {
    functions: Vec<Function>,
    entered: Entered,
    section: u64,
}

fn address_of(pages: &Pages) -> u64 {
    pages.pointer().expose_provenance() as u64
}

impl World {
    fn new() -> World {
        let window = Pages::new(SIZE as usize).unwrap();
        let range = AddressRange::new(0, SIZE).unwrap();
        let entries = Pages::new(size_for(range, page_size()) as usize).unwrap();
        World { window, entries }
    }

    fn range(&self) -> AddressRange {
        AddressRange::new(address_of(&self.window), SIZE).unwrap()
    }

    fn writer(&self) -> IndexWriter {
        // SAFETY: the entries are there as long as the world.
        unsafe {
            IndexWriter::new(
                self.range(),
                self.range().start(),
                address_of(&self.entries),
            )
        }
    }

    fn reader(&self) -> IndexReader {
        // SAFETY: the window and the entries are there as long as the world; sections are written before their
        // functions are entered, and stay until these are taken out.
        unsafe {
            let sections = Bytes::new(self.range(), self.range().start());
            IndexReader::new(self.range(), address_of(&self.entries), sections)
        }
    }

    fn link(&self, part: u64, random: &mut Random) -> Graph {
        let start = self.range().start();
        let (code, section) = (start + part * PART, start + CODE + part * PART);
        let mut written = Section::new(section);
        let mut place = random.below(64);
        for _ in 0..1 + random.below(40) {
            let most = if random.below(8) == 0 { 5000 } else { 100 };
            let size = 1 + random.below(most);
            if place + size > PART {
                break;
            }
            written.describe(AddressRange::new(code + place, size).unwrap());
            // Often the next one follows at once.
            place += size + random.below(3) * random.below(20);
        }
        let bytes = written.finish();
        assert!(bytes.len() as u64 <= PART);
        let target = self
            .window
            .pointer()
            .wrapping_add((section - start) as usize);
        // SAFETY: the part's own half page, which no function is entered of.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
        // SAFETY: as for the reader.
        let read = unsafe { Bytes::new(self.range(), start) };
        let functions: Vec<Function> = Functions::from(read, section).map(Result::unwrap).collect();
        let entered = self.writer().enter(&functions).unwrap();
        libgcc(c"__register_frame", section);
        Graph {
            functions,
            entered,
            section,
        }
    }

    fn remove(&self, graph: &Graph) {
        self.writer().take_out(&graph.entered);
        libgcc(c"__deregister_frame", graph.section);
    }
}

fn libgcc(function: &std::ffi::CStr, section: u64) {
    let function = sys::symbol(function).expect("Rust's own programs have libgcc_s");
    // SAFETY: libgcc's function, and a section as it takes them.
    unsafe { sys::call_on_frames(function, section) };
}

/// The description that libgcc finds, and the function's beginning.
fn found_by_libgcc(address: u64) -> Option<(u64, u64)> {
    let find = sys::symbol(c"_Unwind_Find_FDE").expect("as above");
    let mut bases = [0u64; 3];
    let pc = ptr::with_exposed_provenance::<c_void>(address as usize);
    // SAFETY: libgcc's function, and three words, as it wants them.
    let found = unsafe { sys::call_unwinder(find, pc, bases.as_mut_ptr().cast()) };
    (!found.is_null()).then(|| (found.expose_provenance() as u64, bases[2]))
}

fn found_by_index(reader: IndexReader, address: u64) -> Option<(u64, u64)> {
    let function = reader.find(address)?;
    Some((function.description, function.code.start()))
}

/// Says, when it is dropped, that there is no more to look for, also if an assertion has failed.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_index_answers_as_libgcc_does_while_functions_come_and_go() {
    let world = World::new();
    let mut random = Random(0x5eed);
    let staying: Vec<Graph> = (PARTS - STAYING..PARTS)
        .map(|part| world.link(part, &mut random))
        .collect();
    let mut graphs: Vec<Option<Graph>> = (0..PARTS - STAYING).map(|_| None).collect();
    let (stopped, reader) = (AtomicBool::new(false), world.reader());
    std::thread::scope(|scope| {
        let stop = Stopped(&stopped);
        for seed in 0..2 {
            let (stopped, staying) = (&stopped, &staying);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !stopped.load(Ordering::Relaxed) {
                    let graph = &staying[random.below(STAYING) as usize];
                    let which = random.below(graph.functions.len() as u64) as usize;
                    let function = graph.functions[which];
                    let address = function.code.start() + random.below(function.code.size());
                    assert_eq!(reader.find(address), Some(function));
                }
            });
        }
        for _ in 0..1500 {
            let part = random.below(PARTS - STAYING);
            let place = &mut graphs[part as usize];
            match place.take() {
                Some(graph) => world.remove(&graph),
                None => *place = Some(world.link(part, &mut random)),
            }
            for _ in 0..10 {
                let near = (part * PART + random.below(PART + 64)).min(CODE - 1);
                let address = world.range().start() + near;
                assert_eq!(found_by_index(reader, address), found_by_libgcc(address));
            }
        }
        drop(stop);
    });
    graphs
        .iter()
        .flatten()
        .chain(&staying)
        .for_each(|graph| world.remove(graph));
}
