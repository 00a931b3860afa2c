// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Code that stays in the pages that it was read into.

use super::files::{CODE_SIZE, check_linked, executor_sees, large, of_code, pattern};
use super::*;
use crate::image::format::LEAST_IN_PAGES;
use crate::manager::{HugePages, InFlight, LayoutItem, LayoutKind};
use crate::sys;
use crate::sys::fault::Faults;
use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// What this process has mapped at an address, as the system says.
fn mapped_at(address: u64) -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &&str| {
        let (range, _) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        (start..end).contains(&address)
    };
    maps.lines().find(holds).unwrap().to_owned()
}

#[test]
fn code_stays_in_the_pages_that_it_was_read_into_once() {
    let (file, manager) = (large(), manager());
    let image = open(file.clone()).unwrap();
    let is_copy = |address| mapped_at(address).contains("jitmem-image");
    let working_memory = |graph: &InFlight, segment| graph.working_memory(segment).addr() as u64;
    let first = check_linked(&image, &manager);
    let code = first.address(1);
    assert_eq!(code % sys::page_size().bytes(), 0);
    for offset in [0, CODE_SIZE as u64 - 1] {
        let seen = mapped_at(code + offset);
        assert!(seen.contains(" r-xs "), "{seen}");
        assert!(is_copy(code + offset), "{seen}");
        let written = mapped_at(working_memory(&first, 1) + offset);
        assert!(written.contains(" rw-s "), "{written}");
        assert!(is_copy(working_memory(&first, 1) + offset), "{written}");
    }
    assert!(!is_copy(first.address(0)));
    // The pages are gone, so that it is read again.
    let second = check_linked(&image, &manager);
    assert!(!is_copy(second.address(1)) && !is_copy(working_memory(&second, 1)));
    // Each has its own.
    let third = check_linked(&open(file).unwrap(), &manager);
    assert!(is_copy(third.address(1)));
    drop(image);
    assert_eq!(
        executor_sees(code, CODE_SIZE),
        pattern(2_654_435_761, CODE_SIZE)
    );
    // What gets the place is written as ever, and seen.
    first.abandon().unwrap();
    let place = segment(Protection::READ_EXEC, CODE_SIZE as u64, 0).aligned(format::FILE_PAGE);
    let mut again = manager.allocate([place], Dylib::NONE).unwrap();
    assert_eq!(again.address(0), code);
    let bytes = pattern(3, CODE_SIZE);
    again.write(0, 0, &bytes).unwrap();
    assert_eq!(executor_sees(code, CODE_SIZE), bytes);
}

#[test]
fn where_huge_pages_are_wanted_code_is_copied() {
    let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
    let options = Options {
        huge_pages: HugePages::WhereLarge,
        ..Options::default()
    };
    let manager = Manager::new(&mapper, options).unwrap();
    let graph = check_linked(&open(large()).unwrap(), &manager);
    assert!(!mapped_at(graph.address(1)).contains("jitmem-image"));
}

#[test]
fn every_mapper_of_this_process_links_what_was_read_at_once() {
    for kind in [
        InProcessKind::TwoViews,
        InProcessKind::Mprotect,
        InProcessKind::InPlace,
    ] {
        let mapper = Mapper::in_process(kind).unwrap();
        let manager = Manager::new(&mapper, Options::default()).unwrap();
        let image = open(large()).unwrap();
        for _ in 0..2 {
            let linked = image.link(&manager, Dylib::NONE, |_| Ok(vec![1000]));
            let graph = linked.unwrap().graph;
            let code = graph.address(1);
            let allocation = graph.finalize([]).unwrap();
            assert_eq!(
                executor_sees(code, CODE_SIZE),
                pattern(2_654_435_761, CODE_SIZE)
            );
            manager.deallocate([allocation]).unwrap();
        }
    }
}

#[test]
fn a_forked_child_has_the_code_and_links_it_anew() {
    let manager = manager();
    let [linked, opened] = [(); 2].map(|()| open(large()).unwrap());
    let later = Arc::new(open(large()).unwrap());
    let graph = check_linked(&linked, &manager);
    let code = graph.address(1);
    graph.finalize([]).unwrap();
    let (mut childs, mut parents) = UnixStream::pair().unwrap();
    let parent = std::thread::spawn({
        let manager = self::manager();
        let later = Arc::clone(&later);
        move || {
            parents.read_exact(&mut [0]).unwrap();
            let mut graph = check_linked(&later, &manager);
            graph.contents().unwrap().write(1, 0, &[0xcc; CODE_SIZE]);
            parents.write_all(&[0]).unwrap();
            graph
        }
    });
    assert!(sys::in_a_child(|| {
        // What its parent makes of an image that was opened before the fork is nothing to it.
        childs.write_all(&[0]).unwrap();
        childs.read_exact(&mut [0]).unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let is_written = |line: &str| line.contains("jitmem-image") && line.contains(" rw");
        let seen = executor_sees(code, CODE_SIZE);
        // By a manager of its own, and without pages of its parent's.
        let (own, its) = (self::manager(), Cell::new(true));
        for image in [&linked, &opened, &*later] {
            let graph = check_linked(image, &own);
            its.set(its.get() && !mapped_at(graph.address(1)).contains("jitmem-image"));
        }
        drop((linked, opened));
        its.get() && !maps.lines().any(is_written) && seen == pattern(2_654_435_761, CODE_SIZE)
    }));
    let graph = parent.join().unwrap();
    assert!(mapped_at(graph.address(1)).contains("jitmem-image"));
}

/// One of nothing but code, of a few bytes more than must be.
fn only_code() -> Image {
    open(of_code(&pattern(11, LEAST_IN_PAGES as usize + 70_000))).unwrap()
}

fn link_only_code(manager: &Manager) -> (InFlight, bool) {
    let linked = only_code().link(manager, Dylib::NONE, |_| unreachable!());
    let graph = linked.unwrap().graph;
    let adopted = mapped_at(graph.address(0)).contains("jitmem-image");
    (graph, adopted)
}

#[test]
fn a_chunk_has_so_many_parts_of_other_memory_and_their_mappings_count() {
    let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    let before = manager.stats().mappings;
    let graphs: Vec<_> = (0..120).map(|_| link_only_code(&manager)).collect();
    let adopted = graphs.iter().filter(|(_, adopted)| *adopted).count();
    let layout = manager.layout();
    let chunks = layout.iter().filter(|item| item.kind == LayoutKind::Chunk);
    let in_chunk = |chunk: &LayoutItem| {
        let inside = |graph: &InFlight| {
            let place = AddressRange::new(graph.address(0), 1).unwrap();
            chunk.range.contains(place)
        };
        graphs
            .iter()
            .filter(|(graph, adopted)| *adopted && inside(graph))
            .count()
    };
    let most: Vec<usize> = chunks.map(in_chunk).collect();
    assert_eq!(most.iter().max(), Some(&16));
    assert!((17..120).contains(&adopted));
    let chunks = most.len() as u64;
    let mappings = manager.stats().mappings - before;
    assert!(mappings >= 4 * adopted as u64 + 2 * chunks, "{mappings}");
    assert!(mappings <= 4 * adopted as u64 + 4 * chunks, "{mappings}");
}

#[test]
fn a_part_that_showed_other_memory_may_do_so_any_number_of_times() {
    let manager = manager();
    let beside = segment(Protection::READ_EXEC, 16, 0);
    let _beside = manager.allocate([beside], Dylib::NONE).unwrap();
    let mut mappings = None;
    for _ in 0..40 {
        let (graph, adopted) = link_only_code(&manager);
        assert!(adopted);
        let now = manager.stats().mappings;
        assert_eq!(*mappings.get_or_insert(now), now);
        drop(graph);
    }
}

#[test]
fn what_has_other_memory_gets_no_huge_page() {
    let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
    let manager = Manager::new(&mapper, Options::default()).unwrap();
    // Chunks become larger than huge pages by and by, and there is such a part in each of those.
    let mut beside = Vec::new();
    for _ in 0..24 {
        for _ in 0..8 {
            let code = segment(Protection::READ_EXEC, 60_000, 0);
            let mut graph = manager.allocate([code], Dylib::NONE).unwrap();
            graph.write(0, 0, &[1; 60_000]).unwrap();
            beside.push(graph);
        }
        let (graph, adopted) = link_only_code(&manager);
        assert!(adopted);
        beside.push(graph);
    }
    manager.collapse().unwrap();
    // The system was not asked, which may refuse one for the moment.
    let stats = manager.stats();
    assert_eq!((stats.huge_pages, stats.huge_pages_refused), (0, 0));
}

#[test]
fn memory_that_a_place_had_is_given_back_before_other_pages_show_there() {
    let adopt = ["mmap", "madvise", "madvise", "mprotect", "mremap", "mremap"];
    for commit in [false, true] {
        let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
        let options = Options {
            commit,
            ..Options::default()
        };
        // The first one takes the place when nothing was ever written there, the second one takes it again.
        for times in 1..=2 {
            let mut calls = Vec::new();
            for skip in 0.. {
                let manager = Manager::new(&mapper, options.clone()).unwrap();
                // Chunks that hold nothing would give their memory back.
                let beside = [Protection::READ_EXEC, Protection::READ_WRITE];
                let beside = beside.map(|protection| segment(protection, 16, 0));
                let _beside = manager.allocate(beside, Dylib::NONE).unwrap();
                // What is large would give its memory back when it is freed.
                let small = || segment(Protection::READ_EXEC, 60_000, 0);
                let allocate = || manager.allocate([small()], Dylib::NONE).unwrap();
                let graphs: Vec<InFlight> = (1..times)
                    .flat_map(|_| [(); 12].map(|()| allocate()))
                    .collect();
                drop(graphs);
                let image = open(large()).unwrap();
                let faults = Faults::one(skip, libc::EIO);
                let _linked = image.link(&manager, Dylib::NONE, |_| Ok(vec![1000]));
                match faults.failed() {
                    Some(call) => calls.push(call),
                    None => break,
                }
            }
            let at = calls.windows(adopt.len()).rposition(|calls| calls == adopt);
            let before = calls[..at.unwrap()].iter().rev();
            let given_back = before.take_while(|call| **call == "madvise").count();
            let expected = match (times, commit) {
                (1, false) => 0,
                (_, false) => 1,
                // The pages of a chunk were just taken.
                (_, true) => 2,
            };
            assert_eq!(given_back, expected, "{calls:?}");
        }
    }
}
