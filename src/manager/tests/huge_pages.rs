// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memory in huge pages. The system must have them (Linux 6.1), which these tests do not leave open. With pages of
//! 16 KiB a huge page has 32 MiB: too much for tests that fill several.

use super::*;
use std::fs;

const MIB: u64 = 1 << 20;
const KINDS: [Kind; 2] = [TWO_VIEWS, Kind::Shared];

fn with(huge_pages: HugePages) -> Options {
    Options {
        huge_pages,
        ..Options::default()
    }
}

/// Whether the tests can fill huge pages.
fn fill_soon() -> bool {
    let size = sys::huge_page_size().bytes();
    if size > 2 * MIB {
        eprintln!("SKIPPED: a huge page has {size} bytes");
    }
    size == 2 * MIB
}

/// Bytes of a linked function: code, and zero-fill behind it.
const FUNCTION: usize = 8 << 10;
const ZEROS: usize = 24;

/// Links functions, each with content of its own, and checks what the executor has.
fn link(manager: &Manager, bytes: u64) -> Vec<(u64, u64)> {
    let code = [segment(
        (FUNCTION - ZEROS) as u64,
        ZEROS as u64,
        16,
        Protection::READ_EXEC,
    )];
    let linked = (0..bytes / FUNCTION as u64).map(|number| {
        let allocated = allocate(manager, &code).unwrap();
        let content = content(number);
        manager
            .core
            .write(allocated.handle, 0, 0, &content)
            .unwrap();
        let address = allocated.segments[0].address;
        (finalize(manager, allocated.handle).unwrap(), address)
    });
    linked.collect()
}

fn content(number: u64) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().repeat((FUNCTION - ZEROS) / 8);
    *bytes.last_mut().unwrap() = 0xc3;
    bytes
}

fn check(linked: &[(u64, u64)]) {
    for (number, (_, address)) in linked.iter().enumerate() {
        let bytes = read(*address, FUNCTION as u64);
        let (code, zeros) = bytes.split_at(FUNCTION - ZEROS);
        assert_eq!(code, content(number as u64), "{number}");
        assert_eq!(zeros, [0; ZEROS], "{number}");
    }
}

/// Bytes that this process's page tables have as huge pages, in mappings that begin inside a range.
fn mapped_huge(range: AddressRange) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut bytes) = (false, 0);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["ShmemPmdMapped:" | "AnonHugePages:", kib, "kB"] if inside => {
                bytes += kib.parse::<u64>().unwrap() * 1024;
            }
            [first, ..] if !first.ends_with(':') => {
                let start = first.split('-').next().unwrap();
                let start = u64::from_str_radix(start, 16).unwrap();
                inside = AddressRange::new(start, 1).is_some_and(|start| range.contains(start));
            }
            _ => {}
        }
    }
    bytes
}

#[test]
fn a_large_pool_takes_fresh_memory_in_huge_pages() {
    if !fill_soon() {
        return;
    }
    for kind in KINDS {
        let manager = manager(kind, with(HugePages::WhereLarge)).unwrap();
        let linked = link(&manager, 48 * MIB);
        check(&linked);
        let stats = manager.stats();
        let asked = stats.huge_pages + stats.huge_pages_refused;
        assert!(
            (5..=9).contains(&asked) && stats.huge_pages > 0,
            "{kind:?}: {stats:?}"
        );
        assert!(
            stats.committed < stats.live + stats.live / 8,
            "{kind:?}: {stats:?}"
        );
        let window = manager.layout()[0].range;
        assert!(mapped_huge(window) >= 2 * MIB, "{kind:?}");
        // What was freed goes back, and what stays is as it was.
        let gone: Vec<u64> = linked[(16 << 20) / FUNCTION..]
            .iter()
            .map(|(handle, _)| *handle)
            .collect();
        deallocate(&manager, &gone).unwrap();
        manager.trim().unwrap();
        check(&linked[..(16 << 20) / FUNCTION]);
        let stats = manager.stats();
        assert!(
            stats.committed < stats.live + stats.live / 2,
            "{kind:?}: {stats:?}"
        );
    }
}

#[test]
fn a_small_pool_and_large_zero_fill_take_none() {
    for kind in KINDS {
        // Where the windows of other tests leave room for all of it.
        let placement = Placement::Near(0x3100_0000_0000);
        let options = Options {
            placement,
            ..with(HugePages::WhereLarge)
        };
        let manager = manager(kind, options).unwrap();
        link(&manager, 24 * MIB);
        let stats = manager.stats();
        assert_eq!(
            (stats.huge_pages, stats.huge_pages_refused),
            (0, 0),
            "{kind:?}"
        );
        let data = |size| {
            let zeros = [segment(0, size, 16, Protection::READ_WRITE)];
            let allocated = allocate(&manager, &zeros).unwrap();
            finalize(&manager, allocated.handle).unwrap()
        };
        data(300 * MIB);
        data(300 * MIB);
        let stats = manager.stats();
        assert_eq!(
            (stats.huge_pages, stats.huge_pages_refused),
            (0, 0),
            "{kind:?}"
        );
    }
}

#[test]
fn what_is_nearly_full_is_collapsed_on_call() {
    if !fill_soon() {
        return;
    }
    for kind in KINDS {
        let manager = manager(kind, with(HugePages::OnCall)).unwrap();
        let linked = link(&manager, 24 * MIB);
        assert_eq!(manager.stats().huge_pages, 0);
        let bytes = manager.collapse().unwrap();
        assert!(bytes >= 8 * MIB, "{kind:?}: {bytes}");
        assert_eq!(manager.stats().huge_pages, bytes / (2 * MIB));
        check(&linked);
        assert!(
            mapped_huge(manager.layout()[0].range) >= 8 * MIB,
            "{kind:?}"
        );
    }
    let nothing = manager(TWO_VIEWS, Options::default()).unwrap();
    assert_eq!(nothing.collapse().unwrap(), 0);
}

#[test]
fn a_system_that_refuses_leaves_small_pages_and_says_why() {
    if !fill_soon() {
        return;
    }
    let manager = manager(TWO_VIEWS, with(HugePages::WhereLarge)).unwrap();
    let mut linked = link(&manager, 33 * MIB);
    let before = manager.stats().huge_pages;
    let faults = Faults::all_after(0, libc::EINVAL);
    let refused = manager.collapse().unwrap_err();
    assert!(refused.message().contains("huge page"), "{refused}");
    drop(faults);
    linked.extend(link(&manager, MIB));
    assert!(manager.stats().huge_pages >= before);
    assert!(manager.stats().huge_pages_refused > 0);
    check(&linked[..(33 << 20) / FUNCTION]);
}
