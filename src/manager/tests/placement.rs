// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Windows near several addresses.

use super::*;
use crate::memory::placement::{BRANCH_REACH, Placement, REACH, SMALLEST_WINDOW};

fn near(addresses: &[u64]) -> Options {
    Options {
        placement: Placement::near_all(addresses).unwrap(),
        ..Options::default()
    }
}

/// An address with nothing mapped around it, which no two tests have near each other.
const LONELY: u64 = 0x2800_0000_0000;

fn windows(manager: &Manager) -> Vec<AddressRange> {
    let items = manager.layout().into_iter();
    let items = items.filter(|item| item.kind == LayoutKind::Window);
    items.map(|item| item.range).collect()
}

#[test]
fn one_window_reaches_several_addresses() {
    for kind in DIVIDING {
        for apart in [0, 1 << 30, REACH - SMALLEST_WINDOW] {
            let (lowest, highest) = (LONELY, LONELY + apart);
            let manager = manager(kind, near(&[highest, lowest, lowest + apart / 2])).unwrap();
            let window = windows(&manager)[0];
            let (start, end) = (window.start().min(lowest), window.end().max(highest));
            assert!(end - start <= REACH, "{kind:?} {apart:#x} {window:?}");
            assert!(!manager.stats().smaller_window, "it is what can be");
            allocate(&manager, &small_graph()[..1]).unwrap();
        }
    }
}

#[test]
fn further_windows_reach_them_too() {
    let addresses = [LONELY + (8 << 30), LONELY + (9 << 30)];
    let options = Options {
        window_size: 1 << 20,
        growth: GrowthPolicy::AnotherWindow,
        ..near(&addresses)
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let large = [segment(512 << 10, 0, 16, Protection::READ_EXEC)];
    let live: Vec<_> = (0..6)
        .map(|_| allocate(&manager, &large).unwrap())
        .collect();
    let windows = windows(&manager);
    assert!(windows.len() > 1);
    for window in windows {
        let (start, end) = (
            window.start().min(addresses[0]),
            window.end().max(addresses[1]),
        );
        assert!(end - start <= REACH, "{window:?}");
    }
    drop(live);
}

#[test]
fn a_full_window_is_in_reach_of_branches_if_the_host_chose_that() {
    let options = Options {
        window_size: BRANCH_REACH,
        ..Options::default()
    };
    let graph = [
        segment(4 << 20, 0, 16, Protection::READ_EXEC),
        segment(1 << 20, 0, 16, Protection::READ_WRITE),
    ];
    for kind in DIVIDING {
        let manager = manager(kind, options.clone()).unwrap();
        let mut live = Vec::new();
        let error = loop {
            match allocate(&manager, &graph) {
                Ok(allocated) => live.push(allocated),
                Err(error) => break error,
            }
        };
        assert_eq!(error.status(), Status::WindowFull, "{kind:?} {error}");
        assert!(live.len() >= 16, "{kind:?} {}", live.len());
        let memory = || {
            let segments = live.iter().map(|allocated| allocated.segments.iter());
            segments.flat_map(|segments| segments.zip([4 << 20, 1 << 20]))
        };
        let first = memory().map(|(segment, _)| segment.address).min().unwrap();
        let ends = memory().map(|(segment, size): (_, u64)| segment.address + size);
        assert!(ends.max().unwrap() - first <= BRANCH_REACH, "{kind:?}");
        let graph = [segment(BRANCH_REACH, 1, 16, Protection::READ_EXEC)];
        let error = allocate(&manager, &graph).unwrap_err();
        assert!(error.message().contains("134217728"), "{kind:?} {error}");
    }
}

#[test]
fn addresses_too_far_apart_are_named() {
    let (lowest, highest) = (LONELY, LONELY + REACH);
    let options = Options {
        placement: Placement::NearAll { lowest, highest },
        ..Options::default()
    };
    for kind in all_kinds() {
        let error = manager(kind, options.clone()).unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        for address in [lowest, highest] {
            assert!(
                error.message().contains(&format!("{address:#x}")),
                "{error}"
            );
        }
    }
}
