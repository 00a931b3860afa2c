// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! From addresses to allocations, with every mapper.

use super::*;
use crate::manager::AllocationPhase::{Deallocated, Finalized};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What the oracle knows of an allocation.
struct Known {
    phase: AllocationPhase,
    dylib: u64,
    tag: u64,
    segments: Vec<(AddressRange, AllocGroup)>,
}

fn requested(segment: &Segment) -> u64 {
    segment.content_size + segment.zero_fill_size
}

fn take(manager: &Manager, segments: &[Segment], dylib: u64, tag: u64) -> (InFlight, Known) {
    let label = Label::new(Dylib(dylib)).tag(tag);
    let graph = manager.allocate(segments.iter().copied(), label).unwrap();
    let place = |(index, segment): (usize, &Segment)| {
        let range = AddressRange::new(graph.address(index), requested(segment)).unwrap();
        (range, segment.group)
    };
    let known = Known {
        phase: AllocationPhase::InFlight,
        dylib,
        tag,
        segments: segments.iter().enumerate().map(place).collect(),
    };
    (graph, known)
}

fn check(known: &Known, handle: Option<AllocationHandle>, found: &Location, at: u64) {
    let part = |(range, _): &&(AddressRange, AllocGroup)| {
        at.checked_sub(range.start())
            .is_some_and(|inside| inside < range.size())
    };
    let (range, group) = known.segments.iter().find(part).unwrap();
    assert_eq!(
        (found.segment(), found.group()),
        (*range, *group),
        "{at:#x}"
    );
    assert_eq!(found.phase(), known.phase);
    assert_eq!((found.dylib().0, found.tag()), (known.dylib, known.tag));
    assert!(found.allocation().is_some());
    if let Some(handle) = handle {
        assert_eq!(found.allocation(), Some(handle));
    }
}

/// Addresses around the edges of a range and inside.
fn edges(range: AddressRange) -> [(u64, bool); 4] {
    let (start, size) = (range.start(), range.size());
    [
        (start, size > 0),
        (start + size.max(1) - 1, size > 0),
        (start + size / 2, size > 0),
        (range.end(), false),
    ]
}

#[test]
fn what_is_there_is_found_and_what_is_gone_is_not() {
    for kind in all_kinds() {
        let mut random = Random::new(seed());
        let growth = match random.below(2) {
            0 => GrowthPolicy::Error,
            _ => GrowthPolicy::AnotherWindow,
        };
        let options = Options {
            growth,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let here = matches!(kind, Kind::InProcess(_));
        let mut flying: Vec<(InFlight, Known)> = Vec::new();
        let mut live: Vec<(AllocationHandle, Known)> = Vec::new();
        for _ in 0..rounds(600) {
            match random.below(8) {
                0..=2 => {
                    let all = small_graph();
                    let mut segments = all[..random.below(4) as usize].to_vec();
                    for segment in &mut segments {
                        let most = if random.below(30) == 0 { 100_000 } else { 300 };
                        segment.content_size = 1 + random.below(most);
                    }
                    let (dylib, tag) = (random.below(4), random.below(3));
                    flying.push(take(&manager, &segments, dylib, tag));
                }
                3..=5 if !flying.is_empty() => {
                    let at = random.below(flying.len() as u64) as usize;
                    let (graph, mut known) = flying.swap_remove(at);
                    known.phase = Finalized;
                    live.push((graph.finalize([]).unwrap(), known));
                }
                6 if !live.is_empty() => {
                    let at = random.below(live.len() as u64) as usize;
                    let (handle, known) = live.swap_remove(at);
                    manager.deallocate([handle]).unwrap();
                    for (range, _) in known.segments {
                        assert_eq!(manager.lookup(range.start()), None, "{kind:?}");
                    }
                }
                7 if !flying.is_empty() && random.below(3) == 0 => {
                    let at = random.below(flying.len() as u64) as usize;
                    flying.swap_remove(at).0.abandon().unwrap();
                }
                _ => {}
            }
            let all = flying.iter().map(|(_, known)| (None, known));
            let all = all.chain(live.iter().map(|(handle, known)| (Some(*handle), known)));
            let all: Vec<_> = all.collect();
            for (handle, known) in &all {
                if random.below(10) > 0 {
                    continue;
                }
                for (range, _) in &known.segments {
                    for (address, inside) in edges(*range) {
                        let found = manager.lookup(address);
                        if inside {
                            let found = found.unwrap();
                            check(known, *handle, &found, address);
                            assert!(found.is_of(&manager));
                        }
                        assert_eq!(lookup(address), found.filter(|_| here), "{kind:?}");
                    }
                }
            }
        }
        // A walk shows the same.
        let mut walked = BTreeSet::new();
        let shown = |location: &Location| {
            let new = walked.insert((location.allocation().unwrap().0, location.segment().start()));
            assert!(new, "shown twice");
            if location.segment().size() > 0 {
                assert_eq!(manager.lookup(location.segment().start()), Some(*location));
            }
        };
        manager.walk(shown).unwrap();
        let all = flying.iter().map(|(_, known)| known);
        let all = all.chain(live.iter().map(|(_, known)| known));
        let count: usize = all.map(|known| known.segments.len().max(1)).sum();
        assert_eq!(walked.len(), count, "{kind:?}");
        // Any bits at all.
        for _ in 0..20_000 {
            let bits = random.next() >> random.below(64);
            if let Some(found) = lookup(bits) {
                assert!(bits.wrapping_sub(found.segment().start()) < found.segment().size());
            }
        }
        drop(flying);
        let address = live.iter().find_map(|(_, known)| known.segments.first());
        let address = address.map_or(0, |(range, _)| range.start());
        drop(manager);
        assert_eq!(lookup(address), None);
    }
}

#[test]
fn what_waits_to_be_reclaimed_is_no_allocations() {
    for kind in DIVIDING {
        let options = Options {
            defer_reclamation: true,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let (_keep, _) = take(&manager, &small_graph(), 1, 2);
        let (graph, known) = take(&manager, &small_graph(), 3, 4);
        let handle = graph.finalize([]).unwrap();
        manager.deallocate([handle]).unwrap();
        let epoch = manager.advance_epoch().unwrap();
        for (range, group) in &known.segments {
            let found = manager.lookup(range.end() - 1).unwrap();
            assert_eq!((found.phase(), found.allocation()), (Deallocated, None));
            assert_eq!((found.segment(), found.group()), (*range, *group));
            assert!(found.is_of(&manager));
        }
        manager.reclaim(epoch).unwrap();
        for (range, _) in &known.segments {
            assert_eq!(manager.lookup(range.start()), None);
        }
    }
}

#[test]
fn segments_of_finalize_lifetime_are_found_until_they_have_served() {
    for kind in DIVIDING {
        let manager = manager(kind, Options::default()).unwrap();
        let mut segments = small_graph();
        segments[1].group.lifetime = Lifetime::Finalize;
        let (graph, known) = take(&manager, &segments, 0, 0);
        let place = |index: usize| known.segments[index].0.start();
        let found = manager.lookup(place(1)).unwrap();
        assert_eq!(found.group().lifetime, Lifetime::Finalize);
        let handle = graph.finalize([]).unwrap();
        assert_eq!(manager.lookup(place(1)), None);
        for index in [0, 2] {
            let found = manager.lookup(place(index)).unwrap();
            assert_eq!(found.allocation(), Some(handle));
        }
        let mut walked = 0;
        manager.walk(|_| walked += 1).unwrap();
        assert_eq!(walked, 2);
    }
}

#[test]
fn a_walk_may_change_the_manager() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let graphs = (0..1000).map(|_| take(&manager, &small_graph()[..1], 0, 0).0);
    let all: Vec<_> = graphs.map(|graph| graph.finalize([]).unwrap()).collect();
    let (kept, going) = all.split_at(500);
    let mut seen = BTreeSet::new();
    let mut going = going.iter();
    manager
        .walk(|location| {
            assert!(seen.insert(location.allocation().unwrap().0));
            if let Some(handle) = going.next() {
                manager.deallocate([*handle]).unwrap();
            }
            if seen.len() < 2000 {
                let (graph, _) = take(&manager, &small_graph()[..1], 0, 0);
                graph.finalize([]).unwrap();
            }
        })
        .unwrap();
    assert!(kept.iter().all(|handle| seen.contains(&handle.0)));
    assert_eq!(manager.stats().finalized, 500 + seen.len().min(1999) as u64);
}

/// Threads that look up, of which each must find what stays.
fn while_others_look(stays: &[(AllocationHandle, Known)], change: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let stop = &stop;
            scope.spawn(move || {
                let mut next = thread;
                while !stop.load(Relaxed) {
                    next = next
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    let (handle, known) = &stays[(next >> 33) as usize % stays.len()];
                    for (range, _) in &known.segments {
                        let at = range.start() + (next >> 40) % range.size();
                        check(known, Some(*handle), &lookup(at).unwrap(), at);
                    }
                    // Whatever is told of anything else, it holds the address.
                    let (range, _) = &known.segments[0];
                    let near = range.start().wrapping_add(next >> 50);
                    if let Some(found) = lookup(near) {
                        let inside = near.wrapping_sub(found.segment().start());
                        assert!(inside < found.segment().size());
                    }
                }
            });
        }
        change();
        stop.store(true, Relaxed);
    });
}

#[test]
fn what_stays_is_found_while_everything_around_it_changes() {
    for kind in [TWO_VIEWS, MPROTECT] {
        let options = Options {
            growth: GrowthPolicy::AnotherWindow,
            window_size: 2 << 20,
            defer_reclamation: kind == MPROTECT,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        // Pages are not shared here, so that a JITDylib would soon be too large for a window.
        let dylib = |dylib: u64| if kind == MPROTECT { 0 } else { dylib };
        let mut stays = Vec::new();
        let mut holes = Vec::new();
        for index in 0..400 {
            let (graph, mut known) = take(&manager, &small_graph(), dylib(index % 3), index);
            let handle = graph.finalize([]).unwrap();
            known.phase = Finalized;
            match index % 2 {
                0 => stays.push((handle, known)),
                _ => holes.push(handle),
            }
        }
        manager.deallocate(holes).unwrap();
        while_others_look(&stays, || {
            let mut random = Random::new(seed());
            let mut live = Vec::new();
            for step in 0..rounds(20_000) {
                let mut segments = small_graph();
                segments[0].content_size = 1 + random.below(400);
                let (graph, _) = take(&manager, &segments, dylib(7 + random.below(40)), 0);
                match random.below(4) {
                    0 => graph.abandon().unwrap(),
                    _ => live.push(graph.finalize([]).unwrap()),
                }
                if live.len() > 300 {
                    let at = random.below(live.len() as u64) as usize;
                    manager.deallocate([live.swap_remove(at)]).unwrap();
                }
                if step % 2000 == 0 {
                    manager.deallocate(live.drain(..)).unwrap();
                    if kind == MPROTECT {
                        manager.reclaim(manager.advance_epoch().unwrap()).unwrap();
                    }
                    manager.trim().unwrap();
                }
            }
        });
    }
}

#[test]
fn managers_come_and_go_while_others_look() {
    let stable = manager(TWO_VIEWS, Options::default()).unwrap();
    let stays = (0..20).map(|index| {
        let (graph, mut known) = take(&stable, &small_graph(), 0, index);
        known.phase = Finalized;
        (graph.finalize([]).unwrap(), known)
    });
    let stays: Vec<_> = stays.collect();
    while_others_look(&stays, || {
        for _ in 0..rounds(400) {
            let other = manager(TWO_VIEWS, Options::default()).unwrap();
            let (graph, known) = take(&other, &small_graph(), 5, 6);
            let handle = graph.finalize([]).unwrap();
            let address = known.segments[0].0.start();
            let found = lookup(address).unwrap();
            assert_eq!(found.allocation(), Some(handle));
            assert!(found.is_of(&other) && !found.is_of(&stable));
            drop(other);
            assert_eq!(lookup(address), None);
        }
    });
}

#[test]
fn without_an_index_all_is_found_all_the_same() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let (graph, known) = take(&manager, &small_graph(), 1, 2);
    let graph = graph.finalize([]).unwrap();
    let (range, _) = known.segments[0];
    for wrong in [0, 1, 77, u32::MAX - 1, u32::MAX] {
        manager.core.note_in_index(range.start(), wrong);
        assert_eq!(lookup(range.start()).unwrap().allocation(), Some(graph));
    }
}

#[test]
fn a_forked_child_looks_up() {
    unsafe extern "C" {
        fn _Fork() -> libc::pid_t;
    }
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let (graph, mut known) = take(&manager, &small_graph(), 1, 2);
    let handle = graph.finalize([]).unwrap();
    known.phase = Finalized;
    let at = known.segments[0].0.start();
    for fork in [libc::fork, _Fork] {
        // SAFETY: the child looks up and leaves.
        unsafe {
            let child = fork();
            if child == 0 {
                let right = lookup(at).and_then(|found| found.allocation()) == Some(handle);
                libc::_exit(i32::from(!right));
            }
            let mut status = -1;
            libc::waitpid(child, &mut status, 0);
            assert_eq!(status, 0);
        }
    }
    // What children see and the parent has freed is deallocated.
    manager.deallocate([handle]).unwrap();
    let found = lookup(at);
    assert!(found.is_none_or(|found| found.allocation().is_none()));
}
