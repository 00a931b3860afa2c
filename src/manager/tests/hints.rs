// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where code lies of which the host has said what it is for.

use super::*;
use crate::manager::pool::FIRST_CHUNK;

/// A graph of data and of code, a page of each, both with the hint.
fn graph(hint: CodeHint) -> [Segment; 2] {
    [Protection::READ_EXEC, Protection::READ_WRITE]
        .map(|protection| segment(page(), 0, 16, protection).hinted(hint))
}

/// Whether nothing is between segments of a page each.
fn are_dense(addresses: &[u64]) -> bool {
    let (first, last) = (addresses.iter().min(), addresses.iter().max());
    last.unwrap() + page() - first.unwrap() == addresses.len() as u64 * page()
}

fn inside(range: AddressRange, address: u64) -> bool {
    (range.start()..range.end()).contains(&address)
}

#[test]
fn code_of_one_hint_is_dense_and_data_is_as_without() {
    const GRAPHS: usize = 80;
    for kind in DIVIDING {
        let manager = manager(kind, Options::default()).unwrap();
        let (mut code, mut data) = (BTreeMap::<u32, Vec<u64>>::new(), Vec::new());
        let mut handles = Vec::new();
        for hint in CodeHint::ALL.into_iter().cycle().take(GRAPHS) {
            let allocated = allocate(&manager, &graph(hint)).unwrap();
            let addresses = [0, 1].map(|index| allocated.segments[index].address);
            code.entry(hint as u32).or_default().push(addresses[0]);
            data.push(addresses[1]);
            handles.push(finalize(&manager, allocated.handle).unwrap());
        }
        let dense = code.values().all(|code| are_dense(code));
        assert!(dense, "{kind:?} {code:x?}");
        assert!(are_dense(&data), "{kind:?} {data:x?}");

        // The layout says what a range's code is for, and its chunk's.
        for item in manager.layout() {
            for (hint, code) in &code {
                let holds = code.iter().any(|start| inside(item.range, *start));
                if holds && item.kind != LayoutKind::Window {
                    assert_eq!(item.hint as u32, *hint, "{kind:?} {item:?}");
                    assert_eq!(item.group, Some(Protection::READ_EXEC.into()));
                }
            }
            let holds = data.iter().any(|start| inside(item.range, *start));
            assert!(!holds || item.hint == CodeHint::Normal, "{kind:?} {item:?}");
        }
        deallocate(&manager, &handles).unwrap();
        manager.trim().unwrap();
        let stats = manager.stats();
        assert_eq!((stats.live, stats.chunks), (0, 0), "{kind:?} {stats:?}");
    }
}

fn code(hint: CodeHint, size: u64) -> [Segment; 1] {
    [segment(size, 0, 16, Protection::READ_EXEC).hinted(hint)]
}

/// The hint of the chunks in which code of one lies.
fn place(manager: &Manager, hint: CodeHint, size: u64) -> CodeHint {
    let address = allocate(manager, &code(hint, size)).unwrap().segments[0].address;
    let mut layout = manager.layout().into_iter();
    let is_it = |item: &LayoutItem| item.kind == LayoutKind::Range && item.range.start() == address;
    layout.find(is_it).unwrap().hint
}

fn window_of(size: u64) -> Manager {
    let options = Options {
        window_size: size,
        ..Options::default()
    };
    manager(TWO_VIEWS, options).unwrap()
}

#[test]
fn a_full_window_is_full_for_code_of_every_hint() {
    const LARGE: u64 = 64 << 10;
    let manager = window_of(32 << 20);
    // A chunk for each hint; then as much of one as there is room for.
    for hint in CodeHint::ALL {
        assert_eq!(place(&manager, hint, 256), hint);
    }
    let full = loop {
        if let Err(error) = allocate(&manager, &code(CodeHint::Hot, LARGE)) {
            break error;
        }
    };
    assert_eq!(full.status(), Status::WindowFull);
    let layout = manager.layout();
    for hint in CodeHint::ALL {
        let large = |item: &LayoutItem| {
            item.kind == LayoutKind::Range && item.hint == hint && item.range.size() == LARGE
        };
        assert!(layout.iter().any(large), "{hint:?}");
        let error = allocate(&manager, &code(hint, LARGE))
            .map(|_| ())
            .unwrap_err();
        assert_eq!(error.status(), Status::WindowFull, "{hint:?}: {error}");
    }
}

#[test]
fn a_small_window_has_no_chunks_for_hints() {
    let manager = window_of(1 << 20);
    for hint in CodeHint::ALL {
        assert_eq!(place(&manager, hint, 256), CodeHint::Normal);
    }
    let data = [segment(940 << 10, 0, 16, Protection::READ_WRITE)];
    allocate(&manager, &data).unwrap();
}

#[test]
fn a_chunk_for_a_hint_takes_no_room_that_the_same_graph_needs() {
    const WINDOW: u64 = 64 << 20;
    let manager = window_of(WINDOW);
    place(&manager, CodeHint::Normal, 256);
    let data = segment(WINDOW - (600 << 10), 0, 16, Protection::READ_WRITE);
    let [hot] = code(CodeHint::Hot, 256);
    allocate(&manager, &[hot, data]).unwrap();
}

#[test]
fn without_memory_for_another_chunk_code_lies_with_others() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    // One chunk is full, and another one nearly empty.
    assert_eq!(place(&manager, CodeHint::Hot, 256), CodeHint::Hot);
    let rest = FIRST_CHUNK - 16;
    assert_eq!(place(&manager, CodeHint::Normal, rest), CodeHint::Normal);
    let shortage = Faults::all_after(0, libc::ENOMEM);
    for hint in [CodeHint::Normal, CodeHint::Cold] {
        assert_eq!(place(&manager, hint, 256), CodeHint::Hot);
    }
    assert!(shortage.failed().is_some());
    drop(shortage);
    // The system is not asked for each request.
    let asked = Faults::all_after(0, libc::ENOMEM);
    assert_eq!(place(&manager, CodeHint::Cold, 256), CodeHint::Hot);
    assert_eq!(asked.failed(), None);
    drop(asked);
    // Once a chunk was to be had, hints have their own again.
    allocate(&manager, &[segment(64, 0, 16, Protection::READ)]).unwrap();
    assert_eq!(place(&manager, CodeHint::Cold, 256), CodeHint::Cold);
}

#[test]
fn arenas_with_hints_fill_a_window_as_without() {
    let filled = |hints: &[CodeHint]| {
        let manager = window_of(256 << 20);
        let mut graphs = 0;
        for (arena, hint) in (0..8)
            .cycle()
            .zip(hints.iter().flat_map(|hint| [*hint; 8]).cycle())
        {
            manager.core.choose_arena(arena);
            let [code] = code(hint, 64 << 10);
            let data = segment(16 << 10, 0, 16, Protection::READ_WRITE);
            if allocate(&manager, &[code, data]).is_err() {
                break;
            }
            graphs += 1;
        }
        graphs
    };
    let (with, without) = (filled(&CodeHint::ALL), filled(&[CodeHint::Normal]));
    assert!(
        with * 10 >= without * 9,
        "{with} graphs with hints, {without} without"
    );
}

#[test]
fn hints_are_for_readable_code_that_stays() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let brief = AllocGroup::new(Protection::READ_EXEC, Lifetime::Finalize);
    let only_run = Protection::from_bits(4).unwrap();
    for group in [brief, only_run.into(), Protection::READ.into()] {
        let segments = CodeHint::ALL.map(|hint| Segment::new(group, page()).hinted(hint));
        let allocated = allocate(&manager, &segments).unwrap();
        let addresses = CodeHint::ALL.map(|hint| allocated.segments[hint as usize].address);
        assert!(are_dense(&addresses), "{group:?} {addresses:x?}");
        for item in manager.layout() {
            assert!(item.group != Some(group) || item.hint == CodeHint::Normal);
        }
    }
}
