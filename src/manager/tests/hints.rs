// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Where code lies of which the host has said what it is for.

use super::*;

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

#[test]
fn what_has_no_room_with_its_like_lies_with_others() {
    const LARGE: u64 = 4 << 10;
    let options = Options {
        window_size: 1 << 20,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let code = |hint| [segment(LARGE, 0, 16, Protection::READ_EXEC).hinted(hint)];
    // A chunk for each hint; then as much of one as there is room for.
    for hint in CodeHint::ALL {
        allocate(&manager, &graph(hint)).unwrap();
    }
    let full = |hint| loop {
        if let Err(error) = allocate(&manager, &code(hint)) {
            break error;
        }
    };
    assert_eq!(full(CodeHint::Hot).status(), Status::WindowFull);
    let layout = manager.layout();
    for hint in CodeHint::ALL {
        let large = |item: &&LayoutItem| {
            item.kind == LayoutKind::Range && item.hint == hint && item.range.size() == LARGE
        };
        assert!(layout.iter().any(|item| large(&item)), "{hint:?}");
        let error = allocate(&manager, &code(hint)).map(|_| ()).unwrap_err();
        assert_eq!(error.status(), Status::WindowFull, "{hint:?}: {error}");
    }
}

#[test]
fn without_memory_for_another_chunk_code_lies_with_others() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let code = |hint| [segment(256, 0, 16, Protection::READ_EXEC).hinted(hint)];
    let place = |hint| {
        let allocated = allocate(&manager, &code(hint)).unwrap();
        let (address, handle) = (allocated.segments[0].address, allocated.handle);
        let mut layout = manager.layout().into_iter();
        let range =
            layout.find(|item| item.kind == LayoutKind::Range && item.range.start() == address);
        (range.unwrap().hint, handle)
    };
    let (_, first) = place(CodeHint::Normal);
    let shortage = Faults::all_after(0, libc::ENOMEM);
    let (hint, second) = place(CodeHint::Hot);
    assert_eq!(hint, CodeHint::Normal);
    assert!(shortage.failed().is_some());
    drop(shortage);
    // It is tried again once memory was given back.
    let large = [segment(4 << 20, 0, 16, Protection::READ)];
    let large = allocate(&manager, &large).unwrap().handle;
    assert_eq!(place(CodeHint::Hot).0, CodeHint::Normal);
    let large = finalize(&manager, large).unwrap();
    deallocate(&manager, &[large]).unwrap();
    manager.trim().unwrap();
    assert_eq!(place(CodeHint::Hot).0, CodeHint::Hot);
    for handle in [first, second] {
        finalize(&manager, handle).unwrap();
    }
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
