// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A mapper that a Rust host makes and that answers for its chunks later, from another thread.

use jitmem::mapper::{
    Chunk, CustomMapper, Deinitialization, Granularity, Prepared, SegmentContent,
};
use jitmem::{
    Action, AddressRange, Alignment, Completion, Dylib, Error, Manager, Mapper, Options, Placement,
    Protection, Result, Segment, Status,
};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Memory that does not exist, at addresses that mean nothing here.
struct Elsewhere {
    jobs: Mutex<Sender<Job>>,
    seen: Arc<Mutex<Vec<&'static str>>>,
}

impl Elsewhere {
    fn later(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs.lock().unwrap().send(Box::new(job)).unwrap();
    }

    fn see(&self, what: &'static str) {
        self.seen.lock().unwrap().push(what);
    }
}

impl CustomMapper for Elsewhere {
    fn granularity(&self) -> Granularity {
        Granularity {
            page_size: Alignment::new(4096).unwrap(),
            granule: Alignment::new(16).unwrap(),
        }
    }

    fn reserve(&self, size: u64, _: Placement, done: Completion<AddressRange>) {
        done.complete(Ok(AddressRange::new(1 << 40, size).unwrap()));
    }

    fn answers_later(&self) -> bool {
        true
    }

    fn prepare_async(&self, chunk: Chunk, done: Completion<Prepared>) {
        assert!(chunk.commit);
        self.see("prepare");
        let answer = match chunk.group.protection.executable() {
            true => Err(Error::new(Status::Denied, "no code here")),
            false => Ok(Prepared::copied()),
        };
        self.later(|| done.complete(answer));
    }

    fn initialize(&self, _: Vec<SegmentContent>, _: Vec<Action>, done: Completion<u64>) {
        done.complete(Ok(0));
    }

    fn deinitialize(&self, _: Vec<Deinitialization>, done: Completion<()>) {
        done.complete(Ok(()));
    }

    fn reclaim_async(&self, _: AddressRange, done: Completion<()>) {
        self.see("reclaim");
        self.later(|| done.complete(Ok(())));
    }

    fn release(&self, _: AddressRange, done: Completion<()>) {
        self.see("release");
        done.complete(Ok(()));
    }
}

#[test]
fn chunks_of_a_custom_mapper_may_come_later() -> Result<()> {
    let (jobs, work) = channel::<Job>();
    let worker = thread::spawn(move || work.into_iter().for_each(|job| job()));
    let seen = Arc::default();
    let mapper = Mapper::custom(Elsewhere {
        jobs: Mutex::new(jobs),
        seen: Arc::clone(&seen),
    })?;
    let options = Options {
        commit: true,
        window_size: 64 << 20,
        ..Options::default()
    };
    let manager = Manager::new(&mapper, options)?;
    let data = |size| [Segment::new(Protection::READ, size)];
    assert!(manager.try_allocate(data(100), Dylib::NONE).is_none());
    let small = manager.allocate(data(100), Dylib::NONE)?;
    let large = manager.allocate(data(8 << 20), Dylib::NONE)?;
    let code = [Segment::new(Protection::READ_EXEC, 100)];
    let refused = manager.allocate(code, Dylib::NONE).unwrap_err();
    assert_eq!(refused.status(), Status::Denied);
    assert!(refused.message().contains("no code here"), "{refused}");
    assert!(manager.try_allocate(data(100), Dylib::NONE).is_some());
    drop((small, large));
    drop((manager, mapper));
    // All jobs are done, and nothing of the mapper is left that could give more.
    worker.join().unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().filter(|what| **what == "prepare").count(), 3);
    assert!(seen.contains(&"reclaim"), "the large chunk went at once");
    assert_eq!(seen.iter().filter(|what| **what == "release").count(), 1);
    Ok(())
}
