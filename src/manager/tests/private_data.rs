// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Data that is the executor's own once it is finalized.

use super::*;
use crate::sys::testing::writing;

const DATA: usize = 2;

fn private() -> Manager {
    manager(Kind::Private, Options::default()).unwrap()
}

/// Writes one byte all over the content of an allocation.
fn fill(manager: &Manager, allocated: &Allocated, sizes: &[u64], byte: u8) {
    for (index, size) in sizes.iter().enumerate() {
        let content = vec![byte; *size as usize];
        manager
            .core
            .write(allocated.handle, index, 0, &content)
            .unwrap();
    }
}

#[test]
fn only_what_has_data_is_told() {
    let manager = private();
    let messages = || manager.stats().messages;
    let code = [segment(256, 0, 16, Protection::READ_EXEC)];
    let cycle = |segments: &[Segment]| {
        let allocated = allocate(&manager, segments).unwrap();
        finalize(&manager, allocated.handle).unwrap();
        deallocate(&manager, &[allocated.handle]).unwrap();
    };
    cycle(&small_graph());
    // Where caches have to be maintained the executor is told of code as well.
    let of_code = if cfg!(target_arch = "aarch64") { 10 } else { 0 };
    let before = messages();
    (0..10).for_each(|_| cycle(&code));
    assert_eq!(messages(), before + of_code);
    (0..10).for_each(|_| cycle(&small_graph()));
    assert_eq!(messages(), before + of_code + 10);
}

#[test]
fn what_comes_into_a_page_that_linked_code_has_written_is_seen_and_nothing_else_changes() {
    let manager = private();
    let page = sys::page_size().bytes();
    let graph = [segment(64, 3 * page, 16, Protection::READ_WRITE)];
    let neighbour = [segment(64, 0, 16, Protection::READ_WRITE)];
    let first = allocate(&manager, &neighbour).unwrap();
    fill(&manager, &first, &[64], 1);
    finalize(&manager, first.handle).unwrap();
    let at = first.segments[0].address;
    writing().store(at + 8, 7u8).unwrap();
    let mut used: Vec<u64> = Vec::new();
    for byte in 2..20 {
        let next = allocate(&manager, &graph).unwrap();
        fill(&manager, &next, &[64], byte);
        finalize(&manager, next.handle).unwrap();
        let start = next.segments[0].address;
        assert_eq!(read(start, 64), [byte; 64]);
        assert!(read(start + 64, 3 * page).iter().all(|byte| *byte == 0));
        // Linked code uses all of it; then others get it.
        (0..64 + 3 * page).for_each(|offset| writing().store(start + offset, 9u8).unwrap());
        deallocate(&manager, &[next.handle]).unwrap();
        used.push(start);
        assert_eq!(read(at, 9), [1, 1, 1, 1, 1, 1, 1, 1, 7]);
    }
    used.dedup();
    assert_eq!(used.len(), 1, "the memory is used again");
}

#[test]
fn data_that_is_finalized_is_written_by_no_scope() {
    let manager = private();
    let allocated = allocate(&manager, &small_graph()).unwrap();
    finalize(&manager, allocated.handle).unwrap();
    let handle = AllocationHandle(allocated.handle);
    let mut scope = manager.write_scope(handle).unwrap();
    let [code, constants, data] = [0, 1, DATA].map(|index| allocated.segments[index].address);
    for address in [code, constants] {
        scope.store_4(address, 0x0102_0304).unwrap();
        assert_eq!(read(address, 4), 0x0102_0304u32.to_ne_bytes());
    }
    let error = scope.store_4(data, 1).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    assert!(error.message().contains("the executor's own"), "{error}");
    scope.end().unwrap();
}
