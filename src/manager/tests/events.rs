// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Labels, events and usage.

use super::*;
use crate::sys::testing::wrapper_call;
use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps every event, and what its segments held when it was told.
#[derive(Default)]
struct Journal(Mutex<Vec<(Event, Vec<u8>)>>);

impl Journal {
    fn observer(self: &Arc<Self>) -> Observer {
        let journal = Arc::clone(self);
        Observer::new(move |event| {
            let first = match &event.kind {
                EventKind::Finalized(it) | EventKind::Deallocated(it) => it
                    .lasting_segments()
                    .iter()
                    .map(|segment| read(segment.range.start(), 1)[0])
                    .collect(),
                _ => Vec::new(),
            };
            journal.0.lock().push((event.clone(), first));
        })
    }

    /// What happened, in words, and forgets it.
    fn take(&self) -> Vec<String> {
        let events = std::mem::take(&mut *self.0.lock());
        events
            .iter()
            .map(|(event, first)| told(event, first))
            .collect()
    }
}

fn told(event: &Event, first: &[u8]) -> String {
    let name = |it: &Allocation| it.name().unwrap_or("?").to_owned();
    match &event.kind {
        EventKind::WindowReserved(_) => "window".into(),
        EventKind::WindowReleased(_) => "window released".into(),
        EventKind::ChunkMade(_, group) => format!("chunk {}", group.protection.bits()),
        EventKind::ChunkReclaimed(_, group) => format!("reclaimed {}", group.protection.bits()),
        EventKind::Allocated(it) => format!("allocated {}", name(it)),
        EventKind::Finalized(it) => format!("finalized {} {first:x?}", name(it)),
        EventKind::Deallocated(it) => format!("deallocated {} {first:x?}", name(it)),
        EventKind::Abandoned(it) => format!("abandoned {}", name(it)),
        EventKind::ForkedParent | EventKind::ForkedChild => "forked".into(),
        EventKind::ExecutorRestarted { restarts, .. } => format!("restarted {restarts}"),
    }
}

fn observed(kind: Kind, journal: &Arc<Journal>) -> Manager {
    let options = Options {
        observer: Some(journal.observer()),
        usage: true,
        ..Options::default()
    };
    manager(kind, options).unwrap()
}

fn one(protection: Protection) -> [Segment; 1] {
    [segment(16, 0, 16, protection)]
}

/// A graph that is finalized, full of `byte`.
fn finalized(manager: &Manager, label: Label, byte: u8) -> AllocationHandle {
    let mut graph = manager.allocate(one(Protection::READ), label).unwrap();
    graph.write(0, 0, &[byte; 16]).unwrap();
    graph.finalize([]).unwrap()
}

#[test]
fn events_come_in_the_order_of_an_allocations_life() {
    for kind in DIVIDING {
        let journal = Arc::new(Journal::default());
        let manager = observed(kind, &journal);
        let first = finalized(&manager, Label::default().name("a"), 0xa);
        assert_eq!(
            journal.take(),
            ["window", "chunk 1", "allocated a", "finalized a [a]"],
            "{kind:?}"
        );
        let second = finalized(&manager, Label::default().name("b"), 0xb);
        let third = manager.allocate(one(Protection::READ), Label::default().name("c"));
        third.unwrap().abandon().unwrap();
        manager.deallocate([first, second]).unwrap();
        assert_eq!(
            journal.take(),
            [
                "allocated b",
                "finalized b [b]",
                "allocated c",
                "abandoned c",
                "deallocated b [b]",
                "deallocated a [a]",
            ],
            "{kind:?}"
        );
    }
}

#[test]
fn a_reservation_is_told_as_an_allocation() {
    for kind in RESERVING {
        let journal = Arc::new(Journal::default());
        let manager = observed(kind, &journal);
        let graph = manager.allocate(small_graph(), Label::default().name("a"));
        let handle = graph.unwrap().finalize([]).unwrap();
        let told: Vec<String> = journal.take();
        assert_eq!(told[0], "allocated a");
        assert!(told[1].starts_with("finalized a"), "{}", told[1]);
        manager.deallocate([handle]).unwrap();
        let graph = manager.allocate(small_graph(), Label::default().name("b"));
        drop(graph.unwrap());
        let told: Vec<String> = journal.take();
        assert!(told[0].starts_with("deallocated a"), "{}", told[0]);
        assert_eq!(told[1..], ["allocated b", "abandoned b"]);
    }
}

#[test]
fn what_is_left_goes_last_to_first_and_then_its_window() {
    for kind in DIVIDING {
        let journal = Arc::new(Journal::default());
        let manager = observed(kind, &journal);
        let _ = finalized(&manager, Label::default().name("a"), 1);
        let _ = finalized(&manager, Label::default().name("b"), 2);
        journal.take();
        drop(manager);
        let told = journal.take();
        assert_eq!(
            told,
            ["deallocated b [2]", "deallocated a [1]", "window released"]
        );
    }
}

#[test]
fn events_are_numbered_and_timed_as_they_happen() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&events);
    let observer = Observer::new(move |event| kept.lock().push(event.clone())).with_times();
    let options = Options {
        observer: Some(observer),
        ..Options::default()
    };
    let before = sys::monotonic_time();
    let manager = manager(TWO_VIEWS, options).unwrap();
    for _ in 0..3 {
        let handle = finalized(&manager, Label::default(), 1);
        manager.deallocate([handle]).unwrap();
    }
    let after = sys::monotonic_time();
    let events = std::mem::take(&mut *events.lock());
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=events.len() as u64).collect::<Vec<u64>>());
    assert_eq!(events.len(), 2 + 3 * 3, "a window, a chunk, three lives");
    let times: Vec<_> = events.iter().map(|event| event.time.unwrap()).collect();
    assert!(times.is_sorted());
    assert!(before <= times[0] && *times.last().unwrap() <= after);
}

#[test]
fn segments_that_served_are_not_among_those_that_last() {
    let journal = Arc::new(Journal::default());
    let manager = observed(TWO_VIEWS, &journal);
    let mut segments = small_graph();
    segments[0].group.lifetime = Lifetime::Finalize;
    let graph = manager.allocate(segments, Dylib(3)).unwrap();
    let addresses: Vec<u64> = (0..3).map(|index| graph.address(index)).collect();
    let handle = graph.finalize([]).unwrap();
    let known = manager.describe(handle).unwrap();
    assert_eq!((known.dylib(), known.handle()), (Dylib(3), handle));
    let layout = manager.layout();
    let ranges = layout.iter().filter(|item| item.kind == LayoutKind::Range);
    assert!(ranges.clone().all(|item| item.allocation == Some(handle)));
    assert_eq!(ranges.count(), 2);
    let starts = |segments: &[AllocatedSegment]| {
        let mut starts: Vec<_> = segments
            .iter()
            .map(|segment| (segment.index, segment.range.start()))
            .collect();
        starts.sort_unstable();
        starts
    };
    let all: Vec<(usize, u64)> = (0..).zip(addresses).collect();
    assert_eq!(starts(known.segments()), all);
    assert_eq!(starts(known.lasting_segments()), all[1..]);
    let usage = manager.usage(UsageBy::Dylib, 3).unwrap();
    assert_eq!((usage.code, usage.constants, usage.data), (0, 64, 64));
}

/// `CWrapperFunctionResult`.
#[repr(C)]
struct Answer(u64, usize);

/// A wrapper function that fails.
extern "C" fn fail(_: *const u8, _: usize) -> Answer {
    // SAFETY: a string of C; the caller frees its copy with free.
    let message = unsafe { libc::strdup(c"no".as_ptr()) };
    Answer(message.expose_provenance() as u64, 0)
}

#[test]
fn errors_name_the_allocation_in_the_hosts_words() {
    for kind in DIVIDING {
        let journal = Arc::new(Journal::default());
        let manager = observed(kind, &journal);
        let label = || Label::default().name("query 7").tag(7).dylib_name("main");
        let words = "\"query 7\", tag 0x7, JITDylib \"main\": ";
        let graph = manager.allocate(one(Protection::READ), label()).unwrap();
        journal.take();
        let action = Action {
            finalize: wrapper_call(fail as *const () as u64, Vec::new()),
            dealloc: WrapperCall::default(),
        };
        let error = graph.finalize([action]).unwrap_err();
        assert!(error.message().starts_with(words), "{error}");
        assert_eq!(error.status(), Status::ActionFailed);
        assert_eq!(journal.take(), ["abandoned query 7"]);

        let handle = finalized(&manager, label(), 1);
        let error = wait(|done| manager.core.abandon(handle.0, done)).unwrap_err();
        assert!(error.message().starts_with(words), "{error}");
        let error = manager.core.try_finalize(handle.0);
        let error = match error {
            Some(answer) => answer.unwrap_err(),
            None => finalize(&manager, handle.0).unwrap_err(),
        };
        assert!(error.message().starts_with(words), "{error}");
        assert!(error.message().contains("finalized already"), "{error}");
        let too_large = [segment(1 << 40, 0, 1, Protection::READ)];
        assert!(manager.allocate(too_large, label()).is_err());
        let name = "x".repeat(5000);
        let refused = manager.allocate(one(Protection::READ), Label::default().name(name));
        let error = refused.unwrap_err();
        assert_eq!(
            error.message(),
            "allocate: name of 5000 bytes: the most is 4096"
        );
        let before = manager.stats().live;
        manager.deallocate([handle]).unwrap();
        assert_eq!(manager.stats().live, before - 16);
        let gone = manager.describe(handle).unwrap_err();
        assert_eq!(gone.status(), Status::InvalidHandle);
    }
}

#[test]
fn usage_is_counted_by_dylib_and_by_tag() {
    for kind in all_kinds() {
        let options = Options {
            usage: true,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let label = |dylib, tag| Label::new(Dylib(dylib)).tag(tag);
        let mut handles = Vec::new();
        for (dylib, tag) in [(1, 10), (1, 20), (2, 10)] {
            let label = label(dylib, tag).dylib_name(format!("lib{dylib}"));
            let graph = manager.allocate(small_graph(), label).unwrap();
            handles.push(graph.finalize([]).unwrap());
        }
        let flying = manager.allocate(one(Protection::READ_WRITE), label(0, 20));
        let usage = |key, name: Option<&str>, graphs: u64| Usage {
            key,
            name: name.map(str::to_owned),
            live: 384 * graphs,
            code: 256 * graphs,
            constants: 64 * graphs,
            data: 64 * graphs,
            in_flight: 0,
            finalized: graphs,
        };
        let mut flight = usage(0, None, 0);
        (flight.live, flight.data, flight.in_flight) = (16, 16, 1);
        let mut twenty = usage(20, None, 1);
        (twenty.live, twenty.data, twenty.in_flight) = (400, 80, 1);
        let by_dylib = manager.all_usage(UsageBy::Dylib).unwrap();
        let libraries = [usage(1, Some("lib1"), 2), usage(2, Some("lib2"), 1)];
        assert_eq!(by_dylib, [&[flight][..], &libraries].concat(), "{kind:?}");
        let by_tag = manager.all_usage(UsageBy::Tag).unwrap();
        assert_eq!(by_tag, [usage(10, None, 2), twenty.clone()]);
        assert_eq!(manager.usage(UsageBy::Tag, 20).unwrap(), twenty);
        assert_eq!(manager.usage(UsageBy::Tag, 30).unwrap(), usage(30, None, 0));
        drop(flying);
        manager.deallocate(handles).unwrap();
        assert_eq!(manager.all_usage(UsageBy::Dylib).unwrap(), []);
        assert_eq!(manager.all_usage(UsageBy::Tag).unwrap(), []);
    }
}

#[test]
fn nothing_is_noted_of_which_nothing_was_asked() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let plain = finalized(&manager, Label::new(Dylib(1)), 1);
    assert!(!manager.core.tracking().is_active());
    assert!(manager.describe(plain).is_err());
    let error = manager.all_usage(UsageBy::Tag).unwrap_err();
    assert_eq!(error.status(), Status::Unsupported);
    // From the first label on, what has one is.
    let named = finalized(&manager, Label::new(Dylib(1)).name("f"), 1);
    assert_eq!(manager.describe(named).unwrap().name(), Some("f"));
    assert!(manager.describe(plain).is_err());
    manager.deallocate([plain, named]).unwrap();
    assert!(manager.describe(named).is_err());
}

#[test]
fn an_observer_may_use_the_manager() {
    for kind in DIVIDING {
        let place: Arc<Mutex<Option<std::sync::Weak<Manager>>>> = Arc::default();
        let (inside, rounds) = (Arc::clone(&place), Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&rounds);
        let observer = Observer::new(move |event| {
            let outer = match &event.kind {
                EventKind::Allocated(it)
                | EventKind::Finalized(it)
                | EventKind::Deallocated(it) => it,
                _ => return,
            };
            let manager = inside.lock().as_ref().and_then(std::sync::Weak::upgrade);
            let (Some("outer"), Some(manager)) = (outer.name(), manager) else {
                return;
            };
            let handle = finalized(&manager, Label::default().name("inner"), 1);
            manager.deallocate([handle]).unwrap();
            manager.stats();
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let options = Options {
            observer: Some(observer),
            ..Options::default()
        };
        let manager = Arc::new(manager(kind, options).unwrap());
        *place.lock() = Some(Arc::downgrade(&manager));
        let handle = finalized(&manager, Label::default().name("outer"), 1);
        manager.deallocate([handle]).unwrap();
        assert_eq!(rounds.load(Ordering::Relaxed), 3, "{kind:?}");
    }
}

#[test]
fn an_observer_of_a_chunk_does_not_wait_for_the_chunk() {
    for kind in [TWO_VIEWS, MPROTECT] {
        let place: Arc<Mutex<Option<std::sync::Weak<Manager>>>> = Arc::default();
        let (inside, told) = (Arc::clone(&place), Arc::new(Mutex::new(Vec::new())));
        let answers = Arc::clone(&told);
        let observer = Observer::new(move |event| {
            let manager = inside.lock().as_ref().and_then(std::sync::Weak::upgrade);
            if let (EventKind::ChunkMade(..), Some(manager)) = (&event.kind, manager) {
                let graph = manager.allocate(one(Protection::READ), Dylib(1));
                answers.lock().push(graph.and_then(InFlight::abandon));
            }
        });
        let options = Options {
            observer: Some(observer),
            ..Options::default()
        };
        let manager = Arc::new(manager(kind, options).unwrap());
        *place.lock() = Some(Arc::downgrade(&manager));
        for arena in 0..2 {
            // Threads of an arena that they did not choose have the first one.
            let manager = Arc::clone(&manager);
            let thread = std::thread::spawn(move || {
                manager.core.choose_arena(arena);
                let graph = manager.allocate(one(Protection::READ), Dylib(1)).unwrap();
                let data = manager.allocate(one(Protection::READ_WRITE), Dylib(1));
                data.unwrap().abandon().unwrap();
                graph.abandon().unwrap();
            });
            thread.join().unwrap();
        }
        let told = std::mem::take(&mut *told.lock());
        let refused = told[0].as_ref().unwrap_err();
        assert_eq!(refused.status(), Status::WindowFull, "{kind:?}");
        assert!(
            refused.message().contains("an observer is told"),
            "{refused}"
        );
        // Where there was room meanwhile, it is served.
        assert!(told.last().unwrap().is_ok(), "{told:?}");
    }
}

/// What is allocated, as far as an observer knows.
#[derive(Default)]
struct Known(Mutex<BTreeMap<u64, u64>>);

impl Known {
    fn observer(self: &Arc<Self>) -> Observer {
        let known = Arc::clone(self);
        Observer::new(move |event| match &event.kind {
            EventKind::Allocated(it) => known.add(it.segments()),
            EventKind::Deallocated(it) | EventKind::Abandoned(it) => known.remove(it.segments()),
            _ => {}
        })
    }

    fn add(&self, segments: &[AllocatedSegment]) {
        let mut known = self.0.lock();
        for AllocatedSegment { range, .. } in segments {
            let before = known.range(..range.end()).next_back();
            if let Some((start, end)) = before {
                assert!(*end <= range.start(), "{range:?} is {start:#x}'s still");
            }
            known.insert(range.start(), range.end());
        }
    }

    fn remove(&self, segments: &[AllocatedSegment]) {
        let mut known = self.0.lock();
        for AllocatedSegment { range, .. } in segments {
            assert_eq!(known.remove(&range.start()), Some(range.end()));
        }
    }
}

#[test]
fn no_address_is_told_again_before_it_was_told_as_gone() {
    for kind in DIVIDING {
        let known = Arc::new(Known::default());
        let options = Options {
            observer: Some(known.observer()),
            usage: true,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let manager = &manager;
                scope.spawn(move || {
                    let mut live = Vec::new();
                    for round in 0..rounds(300) {
                        let label = Label::new(Dylib(1)).tag(thread);
                        let graph = manager.allocate(small_graph(), label).unwrap();
                        if round % 5 == 0 {
                            graph.abandon().unwrap();
                            continue;
                        }
                        live.push(graph.finalize([]).unwrap());
                        if live.len() == 8 {
                            manager.deallocate(live.drain(2..)).unwrap();
                        }
                    }
                    manager.deallocate(live).unwrap();
                });
            }
        });
        assert!(known.0.lock().is_empty());
        assert_eq!(manager.all_usage(UsageBy::Tag).unwrap(), []);
        assert_eq!(manager.all_usage(UsageBy::Dylib).unwrap(), []);
    }
}
