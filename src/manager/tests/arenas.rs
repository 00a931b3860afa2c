// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A manager that several threads divide, each an arena of its own.

use super::*;
use crate::manager::lookup::AllocationPhase;
use crate::sys::testing::wrapper_call;
use std::collections::{BTreeSet, HashMap};
use std::sync::mpsc;

/// Small windows, of which there may be several.
fn small_windows() -> Options {
    Options {
        window_size: 4 << 20,
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    }
}

fn allocate_in(
    manager: &Manager,
    arena: usize,
    segments: &[Segment],
    dylib: u64,
) -> Result<Allocated> {
    manager.core.choose_arena(arena);
    let request = manager.request(segments.iter().copied().map(Ok), dylib)?;
    wait(|done| manager.core.allocate(request, done))
}

/// A finalized graph in an arena.
fn graph_in(manager: &Manager, arena: usize) -> (u64, Vec<u64>) {
    let allocated = allocate_in(manager, arena, &small_graph(), 0).unwrap();
    assert_eq!(manager.core.arena_of(allocated.handle), arena);
    let addresses = allocated.segments.iter().map(|memory| memory.address);
    let handle = finalize(manager, allocated.handle).unwrap();
    (handle, addresses.collect())
}

fn data(size: u64) -> [Segment; 1] {
    [segment(size, 0, 16, Protection::READ_WRITE)]
}

#[test]
fn a_jitdylib_has_one_window_whichever_arena_it_is_in() {
    let manager = manager(TWO_VIEWS, small_windows()).unwrap();
    let mut random = Random::new(seed());
    let mut windows_of: HashMap<u64, BTreeSet<u64>> = HashMap::new();
    let mut live = Vec::new();
    for _ in 0..600 {
        let (arena, dylib) = (random.below(4) as usize, 1 + random.below(6));
        let size = 1 + random.below(8000);
        match allocate_in(&manager, arena, &data(size), dylib) {
            Ok(allocated) => {
                finalize(&manager, allocated.handle).unwrap();
                live.push((allocated.handle, allocated.segments[0].address, dylib));
            }
            Err(error) => assert_eq!(error.status(), Status::WindowFull, "{error}"),
        }
        if random.below(3) == 0 && !live.is_empty() {
            let one = random.below(live.len() as u64) as usize;
            let (handle, ..) = live.swap_remove(one);
            deallocate(&manager, &[handle]).unwrap();
        }
        let windows: Vec<AddressRange> = manager
            .layout()
            .iter()
            .filter(|item| item.kind == LayoutKind::Window)
            .map(|item| item.range)
            .collect();
        windows_of.clear();
        for (_, address, dylib) in &live {
            let at = AddressRange::new(*address, 1).unwrap();
            let window = windows.iter().find(|window| window.contains(at)).unwrap();
            windows_of.entry(*dylib).or_default().insert(window.start());
        }
        assert!(windows_of.values().all(|windows| windows.len() == 1));
        assert_eq!(manager.stats().windows, windows.len() as u64);
    }
    let handles: Vec<u64> = live.iter().map(|(handle, ..)| *handle).collect();
    deallocate(&manager, &handles).unwrap();
    manager.trim().unwrap();
    let stats = manager.stats();
    assert_eq!((stats.windows, stats.chunks, stats.committed), (1, 0, 0));
}

#[test]
fn a_window_that_other_arenas_have_used_is_released() {
    let manager = manager(TWO_VIEWS, small_windows()).unwrap();
    let mut handles = Vec::new();
    // Each fills its window.
    for dylib in 1..=6 {
        let arena = dylib as usize % 3;
        for _ in 0..3 {
            let allocated = allocate_in(&manager, arena, &data(17 << 16), dylib).unwrap();
            handles.push(finalize(&manager, allocated.handle).unwrap());
        }
    }
    assert!(manager.stats().windows >= 5, "{}", manager.stats().windows);
    for handle in &handles {
        deallocate(&manager, &[*handle]).unwrap();
    }
    assert!(manager.stats().windows <= 4, "{}", manager.stats().windows);
    manager.trim().unwrap();
    assert_eq!(manager.stats().windows, 1);
}

#[test]
fn what_one_arena_has_free_serves_others_before_the_window_is_full() {
    let options = Options {
        window_size: 4 << 20,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let mut handles = Vec::new();
    while let Ok(allocated) = allocate_in(&manager, 1, &data(64 << 10), 0) {
        handles.push(finalize(&manager, allocated.handle).unwrap());
    }
    assert!(handles.len() > 40, "{}", handles.len());
    // Every second range is free, in chunks of the other arena.
    let (free, used): (Vec<_>, Vec<_>) = handles.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    for (_, handle) in &free {
        deallocate(&manager, &[**handle]).unwrap();
    }
    let again: Vec<u64> = (0..free.len())
        .map(|_| allocate_in(&manager, 0, &data(64 << 10), 0).unwrap().handle)
        .collect();
    assert_eq!(manager.stats().in_flight, free.len() as u64);
    let failures = manager.stats().failures;
    let full = allocate_in(&manager, 0, &data(64 << 10), 0).unwrap_err();
    assert_eq!(full.status(), Status::WindowFull);
    assert_eq!(manager.stats().failures, failures + 1);
    for handle in again {
        wait(|done| manager.core.abandon(handle, done)).unwrap();
    }
    let used: Vec<u64> = used.into_iter().map(|(_, handle)| *handle).collect();
    deallocate(&manager, &used).unwrap();
    // The other arena's empty chunks are in the way of nothing.
    let large = allocate_in(&manager, 0, &data(3 << 20), 0).unwrap();
    assert_eq!(manager.core.arena_of(large.handle), 0);
}

#[test]
fn a_batch_over_arenas_is_checked_whole() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let graphs: Vec<u64> = (0..200).map(|n| graph_in(&manager, n % 5).0).collect();
    let gone = graph_in(&manager, 3).0;
    deallocate(&manager, &[gone]).unwrap();
    let before = manager.stats();
    for wrong in [gone, graphs[7], 0, u64::MAX, graphs[3] ^ 1 << 40] {
        let mut batch = graphs.clone();
        batch.push(wrong);
        let error = deallocate(&manager, &batch).unwrap_err();
        assert_eq!(error.status(), Status::InvalidHandle, "{wrong:#x}: {error}");
        assert!(manager.core.try_deallocate(&batch).is_none());
        let stats = manager.stats();
        assert_eq!(stats.finalized, 200, "{wrong:#x}");
        assert_eq!(stats.deallocate_calls, before.deallocate_calls);
        assert_eq!(stats.live, before.live);
    }
    manager.core.deallocate_and_wait(&graphs).unwrap();
    let stats = manager.stats();
    assert_eq!((stats.finalized, stats.live, stats.padding), (0, 0, 0));
    assert_eq!(stats.deallocate_calls, before.deallocate_calls + 200);
}

#[test]
fn a_batch_over_arenas_waits_for_write_scopes() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let (first, other) = (graph_in(&manager, 0).0, graph_in(&manager, 1).0);
    for written in [first, other] {
        let scope = manager.core.write_scope(written).unwrap();
        let error = manager
            .core
            .deallocate_and_wait(&[first, other])
            .unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument, "{error}");
        drop(scope);
    }
    let scope = manager.core.write_scope(other).unwrap();
    let (sender, answers) = mpsc::channel();
    let done = Completion::new(move |answer: Result<()>| sender.send(answer.is_ok()).unwrap());
    manager.core.deallocate(&[first, other], done);
    assert!(answers.try_recv().is_err());
    assert_eq!(manager.stats().finalized, 2);
    drop(scope);
    assert_eq!(answers.recv(), Ok(true));
    assert_eq!(manager.stats().finalized, 0);
}

static JOURNAL: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// `CWrapperFunctionResult`.
#[repr(C)]
struct Answer(u64, usize);

/// Notes its number.
extern "C" fn note(args: *const u8, _size: usize) -> Answer {
    // SAFETY: the test passes eight bytes.
    let number = unsafe { args.cast::<u64>().read_unaligned() };
    JOURNAL.lock().push(number);
    Answer(0, 1)
}

/// A graph in an arena with an action for its end.
fn with_action(manager: &Manager, arena: usize, number: u64) -> u64 {
    let handle = allocate_in(manager, arena, &small_graph(), 0)
        .unwrap()
        .handle;
    let action = Action {
        finalize: WrapperCall::default(),
        dealloc: wrapper_call(note as *const () as u64, number.to_ne_bytes().to_vec()),
    };
    wait(|done| manager.core.finalize(handle, vec![action], done)).unwrap()
}

#[test]
fn actions_run_last_allocation_first_over_all_arenas() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let mut random = Random::new(seed());
    let mut arena = || random.below(4) as usize;
    let handles: Vec<u64> = (0..150)
        .map(|n| with_action(&manager, arena(), n))
        .collect();
    deallocate(&manager, &handles).unwrap();
    let journal = || std::mem::take(&mut *JOURNAL.lock());
    assert!(journal().into_iter().eq((0..150).rev()));
    // What is left when the manager goes, too.
    for number in 0..150 {
        with_action(&manager, arena(), number);
        graph_in(&manager, arena());
    }
    drop(manager);
    assert!(journal().into_iter().eq((0..150).rev()));
}

#[test]
fn a_quota_counts_what_all_arenas_have() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let handles: Vec<u64> = (0..30).map(|n| graph_in(&manager, n % 3).0).collect();
    let taken = |stats: Stats| stats.live + stats.padding;
    let each = taken(manager.stats()) / 30;
    manager.set_quota(Some(31 * each)).unwrap();
    // Whatever the thread has chosen, one arena counts.
    let last = allocate_in(&manager, 2, &small_graph(), 0).unwrap().handle;
    assert_eq!(manager.core.arena_of(last), 0);
    let error = allocate_in(&manager, 1, &small_graph(), 0).unwrap_err();
    assert_eq!(error.status(), Status::QuotaExceeded, "{error}");
    deallocate(&manager, &handles[1..2]).unwrap();
    let again = allocate_in(&manager, 1, &small_graph(), 0).unwrap();
    assert!(allocate_in(&manager, 1, &small_graph(), 0).is_err());
    wait(|done| manager.core.abandon(again.handle, done)).unwrap();
    manager.set_quota(None).unwrap();
    graph_in(&manager, 2);
}

#[test]
fn a_quota_is_exact_while_threads_come_and_go() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let each = {
        let (handle, _) = graph_in(&manager, 0);
        let stats = manager.stats();
        deallocate(&manager, &[handle]).unwrap();
        stats.live + stats.padding
    };
    let held = |stats: &Stats| stats.live + stats.padding;
    std::thread::scope(|scope| {
        for arena in 0..4 {
            let manager = &manager;
            scope.spawn(move || {
                let mut handles = Vec::new();
                for round in 0..2000 {
                    if let Ok(allocated) = allocate_in(manager, arena, &small_graph(), 0) {
                        handles.push(finalize(manager, allocated.handle).unwrap());
                    }
                    if round % 3 == 0 {
                        if let Some(handle) = handles.pop() {
                            deallocate(manager, &[handle]).unwrap();
                        }
                    }
                }
            });
        }
        let quota = 500 * each;
        manager.set_quota(Some(quota)).unwrap();
    });
    // What was there before is there still; nothing came on top of the quota.
    let stats = manager.stats();
    let quota = 500 * each;
    manager.set_quota(Some(held(&stats).max(quota))).unwrap();
    let more = (0..).take_while(|_| allocate_in(&manager, 1, &small_graph(), 0).is_ok());
    let more = more.count() as u64;
    assert_eq!(held(&stats) + more * each, held(&stats).max(quota));
}

#[test]
fn addresses_are_looked_up_in_all_arenas() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    manager.core.set_host_handle(0x1230);
    let mut known = Vec::new();
    for n in 0..400 {
        let (handle, addresses) = graph_in(&manager, n % 6);
        known.push((handle, addresses));
    }
    // Gaps, so that searches pass by free ranges.
    for n in (0..400).step_by(3).rev() {
        let (handle, addresses) = known.swap_remove(n);
        deallocate(&manager, &[handle]).unwrap();
        let found = manager.lookup(addresses[0]);
        assert!(found.is_none_or(|found| found.allocation() != Some(AllocationHandle(handle))));
    }
    for (handle, addresses) in &known {
        for address in addresses {
            for found in [manager.lookup(*address), lookup(*address)] {
                let found = found.unwrap();
                assert_eq!(found.allocation(), Some(AllocationHandle(*handle)));
                assert_eq!(found.phase(), AllocationPhase::Finalized);
                assert!(found.is_of(&manager));
                assert_eq!(found.host_handle(), 0x1230);
            }
        }
    }
    let mut shown = BTreeSet::new();
    manager
        .walk(|location| {
            shown.insert((location.allocation().unwrap().0, location.segment().start()));
        })
        .unwrap();
    let all = known
        .iter()
        .flat_map(|(handle, addresses)| addresses.iter().map(move |address| (*handle, *address)));
    assert_eq!(shown, all.collect());
    let layout = manager.layout();
    let ranges = layout.iter().filter(|item| item.kind == LayoutKind::Range);
    assert_eq!(ranges.count(), shown.len());
    let windows = layout.iter().filter(|item| item.kind == LayoutKind::Window);
    assert_eq!(windows.count(), 1);
    let stats = manager.stats();
    assert_eq!(stats.finalized, known.len() as u64);
    assert_eq!(stats.allocate_calls, 400);
    let (lowest, highest) = (
        shown.iter().map(|one| one.1).min(),
        shown.iter().map(|one| one.1).max(),
    );
    assert!(stats.span > highest.unwrap() - lowest.unwrap());
}

#[test]
fn managers_that_can_have_one_arena_have_one() {
    let defer = Options {
        defer_reclamation: true,
        ..Options::default()
    };
    let close = Options {
        close_writers: true,
        ..Options::default()
    };
    let quota = Options {
        quota: Some(1 << 20),
        ..Options::default()
    };
    for options in [defer, close, quota] {
        let manager = manager(TWO_VIEWS, options).unwrap();
        let allocated = allocate_in(&manager, 1, &small_graph(), 0).unwrap();
        assert_eq!(manager.core.arena_of(allocated.handle), 0);
    }
    for kind in DIVIDING.into_iter().filter(|kind| *kind != TWO_VIEWS) {
        let manager = manager(kind, Options::default()).unwrap();
        let allocated = allocate_in(&manager, 1, &small_graph(), 0).unwrap();
        assert_eq!(manager.core.arena_of(allocated.handle), 0, "{kind:?}");
    }
}

/// Each thread has an arena; what one allocates another one finalizes and a third one frees, while the memory
/// is trimmed and looked at.
#[test]
fn threads_pass_allocations_on_while_others_trim_and_look() {
    const THREADS: usize = 6;
    let manager = manager(TWO_VIEWS, small_windows()).unwrap();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS)
        .map(|_| mpsc::channel::<(u64, u64, u8)>())
        .unzip();
    std::thread::scope(|scope| {
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(thread + 1) % THREADS].clone();
            let manager = &manager;
            scope.spawn(move || {
                manager.core.choose_arena(thread);
                for round in 0..600u32 {
                    let dylib = u64::from(round % 5);
                    let allocated = allocate_in(manager, thread, &small_graph(), dylib).unwrap();
                    let byte = (thread as u32 * 31 + round) as u8;
                    let bytes = [byte; 256];
                    manager.core.write(allocated.handle, 0, 0, &bytes).unwrap();
                    next.send((allocated.handle, allocated.segments[0].address, byte))
                        .unwrap();
                    let (handle, address, byte) = receiver.recv().unwrap();
                    finalize(manager, handle).unwrap();
                    assert_eq!(read(address, 256), [byte; 256]);
                    if round % 4 != 0 {
                        deallocate(manager, &[handle]).unwrap();
                    }
                }
            });
        }
        for _ in 0..200 {
            manager.trim().unwrap();
            assert!(manager.stats().windows > 0);
            manager.layout();
            manager.walk(|_| ()).unwrap();
        }
    });
    let mut left = Vec::new();
    manager
        .walk(|location| left.extend(location.allocation().map(|handle| handle.0)))
        .unwrap();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), THREADS * 150);
    deallocate(&manager, &left).unwrap();
    manager.trim().unwrap();
    let stats = manager.stats();
    assert_eq!((stats.live, stats.chunks, stats.windows), (0, 0, 1));
}
