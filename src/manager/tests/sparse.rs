// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Chunks of which little is left, over an executor: their memory is given back, whatever fails on the way.

use super::*;
use crate::callback_queue::Task;
use crate::completion::Completion;
use crate::executor::service::here::functions;
use crate::transport::{Limits, Transport};
use crate::wire::service::{Failure, Reply};
use crate::wire::sps::to_bytes;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const PEAK: usize = 600;
/// One of so many stays.
const LEFT: usize = 30;
/// What is left takes so much more than it has, since each segment shares its pages with nothing.
fn alone_on_pages() -> f64 {
    sys::page_size().bytes() as f64 / 1024.0
}

fn plan() -> [Segment; 3] {
    [
        segment(5000, 100, 16, Protection::READ_EXEC),
        segment(1200, 0, 8, Protection::READ),
        segment(900, 0, 8, Protection::READ_WRITE),
    ]
}

/// Allocations, and the byte that their content consists of.
type Plans = Vec<(Allocated, u8)>;

fn link(manager: &Manager, number: usize) -> Result<(Allocated, u8)> {
    let byte = number as u8 | 1;
    let allocated = allocate(manager, &plan())?;
    for (segment, of) in plan().iter().enumerate() {
        let content = vec![byte; of.content_size as usize];
        manager
            .core
            .write(allocated.handle, segment, 0, &content)
            .unwrap();
    }
    finalize(manager, allocated.handle)?;
    Ok((allocated, byte))
}

/// A manager after a peak, with what is left of it.
fn after_a_peak(mapper: &Mapper) -> (Manager, Plans) {
    let manager = Manager::new(mapper, Options::default()).unwrap();
    let all: Plans = (0..PEAK)
        .map(|number| link(&manager, number).unwrap())
        .collect();
    let gone = all
        .chunks(LEFT)
        .flat_map(|plans| plans[1..].iter())
        .map(|(allocated, _)| allocated.handle);
    let gone: Vec<u64> = gone.collect();
    let left = all.into_iter().step_by(LEFT).collect();
    // No more at a time than idle pages stay for.
    for handle in gone {
        deallocate(&manager, &[handle]).unwrap();
    }
    (manager, left)
}

fn must_be_right(plans: &Plans) {
    for (allocated, byte) in plans {
        for (of, segment) in plan().iter().zip(&allocated.segments) {
            let bytes = read(segment.address, of.content_size);
            assert!(bytes.iter().all(|there| there == byte));
            let zeros = read(segment.address + of.content_size, of.zero_fill_size);
            assert!(zeros.iter().all(|there| *there == 0));
        }
    }
}

/// What can't be told from the rest: the manager goes on as if nothing had been.
fn must_go_on(manager: &Manager, left: &Plans) {
    must_be_right(left);
    let more: Plans = (0..PEAK / 4)
        .map(|number| link(manager, number).unwrap())
        .collect();
    must_be_right(&more);
    must_be_right(left);
    let handles: Vec<u64> = more.iter().map(|(more, _)| more.handle).collect();
    deallocate(manager, &handles).unwrap();
    must_be_right(left);
}

fn committed_over_live(manager: &Manager) -> f64 {
    let stats = manager.stats();
    stats.committed as f64 / stats.live as f64
}

#[test]
fn what_is_left_of_a_peak_takes_little_memory() {
    for kind in [Kind::Shared, Kind::Remote] {
        let (manager, left) = after_a_peak(&mapper(kind).unwrap());
        let before = manager.stats().committed;
        let bytes = manager.trim().unwrap();
        assert!(manager.stats().committed <= before - bytes);
        let ratio = committed_over_live(&manager);
        assert!(ratio < alone_on_pages(), "{kind:?}: {ratio}");
        assert_eq!(manager.trim().unwrap(), 0);
        must_go_on(&manager, &left);
        let handles: Vec<u64> = left.iter().map(|(left, _)| left.handle).collect();
        deallocate(&manager, &handles).unwrap();
        manager.trim().unwrap();
        assert_eq!(manager.stats().committed, 0);
    }
}

#[test]
fn any_system_call_of_a_trim_may_fail() {
    for kind in [Kind::Shared, Kind::Remote] {
        for &errno in cases(&[libc::ENOMEM, libc::EMFILE]) {
            let mut failed_calls = std::collections::BTreeSet::new();
            // In one thread, of which calls fail.
            let here: Arc<dyn Transport> = Arc::new(Flawed::default());
            let mapper = match kind {
                Kind::Shared => ServiceMapper::shared(here, OPEN, 0),
                _ => ServiceMapper::remote(here, OPEN, 0),
            };
            let mapper = Mapper::new(mapper.unwrap());
            // One manager, whose chunks are sparse time and again.
            let (manager, left) = after_a_peak(&mapper);
            for skip in 0.. {
                let more: Plans = (0..PEAK / 4)
                    .map(|number| link(&manager, number).unwrap())
                    .collect();
                let handles: Vec<u64> = more.iter().map(|(more, _)| more.handle).collect();
                let faults = Faults::one(skip, errno);
                deallocate(&manager, &handles).unwrap();
                let _ = manager.trim();
                let failed = faults.failed();
                drop(faults);
                must_be_right(&left);
                let Some(call) = failed else { break };
                failed_calls.insert(call);
            }
            assert!(failed_calls.contains("memfd_create"), "{failed_calls:?}");
            assert!(failed_calls.contains("mremap"), "{failed_calls:?}");
            manager.trim().unwrap();
            assert!(committed_over_live(&manager) < alone_on_pages());
            must_go_on(&manager, &left);
        }
    }
}

/// An executor in this process: some of its answers to changes do not come, or it is of an older release.
#[derive(Default)]
struct Flawed {
    lost: AtomicU32,
    /// A version of the service, and those after it.
    refused: Option<u32>,
    /// What does not come yet, while there is a place for it.
    kept: Mutex<Option<Vec<Task>>>,
    limits: Limits,
}

impl Transport for Flawed {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        if function == OPEN
            && self
                .refused
                .is_some_and(|version| u32::from(args[0]) >= version)
        {
            let reply = Reply::<u64>(Err(Failure {
                status: Status::Unsupported as u32,
                message: "another version".to_owned(),
            }));
            return done.complete(Ok(to_bytes(&reply)));
        }
        // So that changes go through this transport.
        let connects = function == functions().attach.0 && args.get(8) == Some(&0);
        if connects && self.refused.is_none() {
            let refusal = Error::new(Status::Unsupported, "no sockets");
            return done.complete(Err(refusal));
        }
        let lose = function == functions().change.0
            && self
                .lost
                .fetch_update(Relaxed, Relaxed, |lost| lost.checked_sub(1))
                .is_ok();
        let done = done.map(move |answer: Result<Vec<u8>>| match lose {
            true => Err(Error::new(Status::MapperFailed, "no answer")),
            false => answer,
        });
        if let (Some(kept), true) = (&mut *self.kept.lock(), function == functions().change.0) {
            return kept.push(Box::new(move || Here.call(function, args, done)));
        }
        Here.call(function, args, done);
    }

    fn limits(&self) -> Limits {
        self.limits
    }
}

/// The allocations of a manager whose executor is giving memory of their chunks back.
fn while_shrinking(limits: Limits) -> (Arc<Flawed>, Manager, Plans) {
    let flawed = Arc::new(Flawed {
        limits,
        ..Flawed::default()
    });
    let mapper = ServiceMapper::shared(Arc::clone(&flawed) as Arc<dyn Transport>, OPEN, 0).unwrap();
    let (manager, left) = after_a_peak(&Mapper::new(mapper));
    *flawed.kept.lock() = Some(Vec::new());
    manager.trim().unwrap();
    (flawed, manager, left)
}

#[test]
fn writing_waits_for_memory_that_is_given_back_within_the_hosts_limit() {
    let limit = Duration::from_millis(300);
    let (flawed, manager, left) = while_shrinking(Limits {
        memory: Some(limit),
        ..Limits::default()
    });
    let scope = |handle| manager.core.write_scope(handle).map(drop);
    let held = left.iter().find_map(|(allocated, _)| {
        let handle = allocated.handle;
        scope(handle).err().map(|error| (handle, error))
    });
    let (handle, error) = held.unwrap();
    assert_eq!(error.status(), Status::TimedOut);
    assert!(error.message().contains("within 300 ms"), "{error}");
    assert!(error.message().contains("\"memory\""), "{error}");
    // It is answered while another thread waits, or before.
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| scope(handle));
        let kept = flawed.kept.lock().take().unwrap();
        assert!(!kept.is_empty());
        kept.into_iter().for_each(|call| call());
        // Its limit may be over before this thread has run.
        if let Err(error) = waits.join().unwrap() {
            assert_eq!(error.status(), Status::TimedOut);
        }
    });
    scope(handle).unwrap();
    must_go_on(&manager, &left);
}

#[test]
fn what_is_linked_after_a_lost_answer_is_seen() {
    let flawed = Arc::new(Flawed::default());
    let mapper = ServiceMapper::shared(Arc::clone(&flawed) as Arc<dyn Transport>, OPEN, 0).unwrap();
    let (manager, left) = after_a_peak(&Mapper::new(mapper));
    assert!(manager.stats().mapper_name.contains("/proc"));
    flawed.lost.store(u32::MAX, Relaxed);
    let bytes = manager.trim().unwrap();
    assert!(bytes > 0);
    flawed.lost.store(0, Relaxed);
    must_go_on(&manager, &left);
}

#[test]
fn executors_of_the_release_before_keep_what_they_have() {
    for shared in [true, false] {
        let old: Arc<dyn Transport> = Arc::new(Flawed {
            refused: Some(crate::wire::service::PARTS_VERSION),
            ..Flawed::default()
        });
        let mapper = match shared {
            true => ServiceMapper::shared(old, OPEN, 0),
            false => ServiceMapper::remote(old, OPEN, 0),
        };
        let (manager, left) = after_a_peak(&Mapper::new(mapper.unwrap()));
        manager.trim().unwrap();
        assert!(committed_over_live(&manager) > 4.0);
        must_go_on(&manager, &left);
    }
}
