// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Chunks and windows that come and go, and who waits for whom.

use super::*;

#[test]
fn after_a_peak_the_hot_path_is_without_system_calls_again() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let graph = |size| {
        let allocated = allocate(&manager, &[segment(size, 0, 16, Protection::READ_EXEC)]).unwrap();
        finalize(&manager, allocated.handle).unwrap()
    };
    let peak: Vec<u64> = (0..60_000).map(|_| graph(1024)).collect();
    deallocate(&manager, &peak).unwrap();
    // Fills the spare chunk to its brim, so that each further graph needs another chunk.
    let _kept: Vec<u64> = (0..255).map(|_| graph(1024)).collect();
    (0..20).for_each(|_| deallocate(&manager, &[graph(4096)]).unwrap());
    let faults = Faults::all_after(0, libc::ENOSYS);
    (0..100).for_each(|_| deallocate(&manager, &[graph(4096)]).unwrap());
    assert_eq!(faults.failed(), BARRIER);
}

#[test]
fn a_dylib_begins_where_there_is_room_for_more_of_it() {
    let options = Options {
        window_size: 8 << 20,
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let allocate = |size, dylib| {
        let segments = [segment(size, 0, 16, Protection::READ)];
        let request = manager.request(segments.map(Ok), dylib)?;
        wait(|done| manager.core.allocate(request, done))
    };
    // The first window is nearly full of one JITDylib.
    allocate(7 << 20, 1).unwrap();
    // A graph without memory binds the second to nothing, and a small one not to the remainder.
    let none = manager.request(std::iter::empty(), 2).unwrap();
    wait(|done| manager.core.allocate(none, done)).unwrap();
    let small = allocate(4096, 2).unwrap().segments[0].address;
    let large = allocate(4 << 20, 2).unwrap().segments[0].address;
    assert!(small.abs_diff(large) < 8 << 20);
    assert_eq!(manager.stats().windows, 2);
    // The first goes on in its own window, and what belongs to no JITDylib goes anywhere.
    allocate(4096, 1).unwrap();
    allocate(4096, 0).unwrap();
    assert_eq!(manager.stats().windows, 2);
}

#[test]
fn another_window_is_large_enough_for_what_it_was_opened_for() {
    let options = Options {
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let size = 600 << 20;
    // Tests that run beside this one may leave the first window less room than it asks for.
    let first = manager.layout()[0].range.size();
    for dylib in 1..=4 {
        let segments = [segment(size, 0, 16, Protection::READ)];
        let request = manager.request(segments.map(Ok), dylib).unwrap();
        wait(|done| manager.core.allocate(request, done)).unwrap();
    }
    let useless = u64::from(first < size);
    assert_eq!(manager.stats().windows, 4 + useless);
}

#[test]
fn a_forked_child_is_refused_what_was_in_flight_and_nothing_hangs() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let handle = allocate(&manager, &small_graph()).unwrap().handle;
    // SAFETY: the child calls only what is under test, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = manager.core.write(handle, 0, 0, &[0]).is_err()
            && manager.check_process().is_ok()
            && allocate(&manager, &small_graph()).is_ok()
            && finalize(&manager, handle).is_err();
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = -1;
    // SAFETY: waits for our own child.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    manager.core.write(handle, 0, 0, &[0]).unwrap();
}

type Hook = Box<dyn FnOnce() + Send>;

/// A mapper that hands its `prepare` to a hook, so that tests can do things in the middle.
struct Hooked {
    inner: InProcess,
    hook: Arc<Mutex<Option<Hook>>>,
    later: bool,
}

impl MapperBase for Hooked {
    fn capabilities(&self) -> &crate::mapper::Capabilities {
        self.inner.capabilities()
    }
}

impl MemoryMapper for Hooked {
    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        self.inner.reserve(size, least, placement, done);
    }
    fn changes_chunks_later(&self) -> bool {
        self.later
    }
    fn prepare(&self, chunk: crate::mapper::Chunk) -> Result<crate::mapper::Prepared> {
        let hook = self.hook.lock().take();
        if let Some(hook) = hook {
            hook();
        }
        self.inner.prepare(chunk)
    }
    fn initialize(
        &self,
        segments: SmallVec<[crate::mapper::SegmentContent; 4]>,
        actions: Vec<Action>,
        done: Completion<crate::mapper::Teardown>,
    ) {
        self.inner.initialize(segments, actions, done);
    }
    fn deinitialize(
        &self,
        allocations: Vec<crate::mapper::Deinitialization>,
        done: Completion<()>,
        delivery: &mut crate::callback_queue::Delivery,
    ) {
        self.inner.deinitialize(allocations, done, delivery);
    }
    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.inner.reclaim(chunk)
    }
    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.inner.release(window, done);
    }
}

/// While one request waits for its chunk, another that has no room waits for it too, and is answered
/// once the chunk is there.
#[test]
fn a_request_that_waits_for_a_chunk_is_answered_once_it_is_there() {
    let inner = InProcess::new(InProcessKind::TwoViews).unwrap();
    let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
    let mapper = Mapper::new(Hooked {
        inner,
        hook: Arc::clone(&hook),
        later: false,
    });
    let options = Options {
        window_size: 64 << 10,
        ..Options::default()
    };
    let manager = Arc::new(wait(|done| Manager::create(&mapper, options, done)).unwrap());
    // 20 KiB are left of the window. The chunk for the small request takes 12 of them, and the
    // larger one finds room for no chunk of its own, but in that one.
    allocate(&manager, &[segment(44 << 10, 0, 16, Protection::READ)]).unwrap();
    let code = |size| [segment(size, 0, 16, Protection::READ_EXEC)];
    let (sender, receiver) = std::sync::mpsc::channel();
    let again = Arc::clone(&manager);
    *hook.lock() = Some(Box::new(move || {
        let request = again.request(code(8190).map(Ok), 0).unwrap();
        assert!(
            again.core.try_allocate(&request).is_none(),
            "it would have to wait"
        );
        again.core.allocate(
            request,
            Completion::new(move |answer: Result<Allocated>| {
                sender
                    .send(answer.map(|allocated| allocated.handle))
                    .unwrap();
            }),
        );
    }));
    let first = allocate(&manager, &code(4000)).unwrap().handle;
    let second = receiver.recv().unwrap().unwrap();
    assert_ne!(first, second);
    assert_eq!(manager.stats().chunks, 2);
}

/// A mapper that allocates in its `prepare` gets an answer and never waits for itself.
#[test]
fn a_mapper_may_allocate_while_it_prepares() {
    let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
    let mapper = Mapper::new(Hooked {
        inner: InProcess::new(InProcessKind::TwoViews).unwrap(),
        hook: Arc::clone(&hook),
        later: false,
    });
    let options = Options {
        window_size: 64 << 10,
        ..Options::default()
    };
    let manager = Arc::new(wait(|done| Manager::create(&mapper, options, done)).unwrap());
    let (sender, receiver) = std::sync::mpsc::channel();
    let again = Arc::clone(&manager);
    *hook.lock() = Some(Box::new(move || {
        for size in [100, 60 << 10] {
            let inner = segment(size, 0, 16, Protection::READ);
            let answer = again.allocate([inner], Dylib::NONE);
            sender.send(answer.map(drop)).unwrap();
        }
    }));
    let code = segment(100, 0, 16, Protection::READ_EXEC);
    drop(manager.allocate([code], Dylib::NONE).unwrap());
    receiver.recv().unwrap().unwrap();
    let error = receiver.recv().unwrap().unwrap_err();
    assert_eq!(error.status(), Status::WindowFull, "{error}");
    assert!(error.to_string().contains("prepare"), "{error}");
    // Outside, it waits again as ever.
    let large = segment(20 << 10, 0, 16, Protection::READ);
    drop(manager.allocate([large], Dylib::NONE).unwrap());
}

/// A request of two groups, of which one has no room, is refused and leaves the room to others.
#[test]
fn half_a_request_is_no_request() {
    for kind in all_kinds() {
        let manager = manager(
            kind,
            Options {
                window_size: 64 << 10,
                ..Options::default()
            },
        )
        .unwrap();
        let half = |protection| segment(40_000, 0, 16, protection);
        let both = [half(Protection::READ_EXEC), half(Protection::READ)];
        for _ in 0..3 {
            let error = allocate(&manager, &both).unwrap_err();
            assert_eq!(error.status(), Status::WindowFull, "{error}");
            let one = allocate(&manager, &both[..1]).unwrap().handle;
            wait(|done| manager.core.abandon(one, done)).unwrap();
        }
        // Three groups share what little there is.
        let allocated = allocate(&manager, &small_graph()).unwrap();
        wait(|done| manager.core.abandon(allocated.handle, done)).unwrap();
    }
}

/// Page faults of this thread so far.
fn page_faults() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` is a place for the answer, and all zeros are one.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    usage.ru_minflt
}

/// Pages of a segment of 64 MiB, less some that the library's own memory may take.
const UNTOUCHED: i64 = (64 << 20) / (16 << 10);

#[test]
fn code_that_was_not_written_is_freed_without_touching_it() {
    for kind in [TWO_VIEWS, Kind::Shared] {
        let manager = manager(kind, Options::default()).unwrap();
        let code = |size| segment(size, 0, 16, Protection::READ_EXEC);
        let before = page_faults();
        // One piece in a chunk, and several that empty it together.
        for sizes in [&[64 << 20][..], &[20 << 20, 40 << 20, 100]] {
            let segments: Vec<Segment> = sizes.iter().map(|size| code(*size)).collect();
            let allocated = allocate(&manager, &segments).unwrap();
            wait(|done| manager.core.abandon(allocated.handle, done)).unwrap();
            let handle = allocate(&manager, &segments).unwrap().handle;
            let handle = finalize(&manager, handle).unwrap();
            deallocate(&manager, &[handle]).unwrap();
        }
        let touched = page_faults() - before;
        assert!(touched < UNTOUCHED, "{kind:?}: {touched} pages");
        let stats = manager.stats();
        assert!(stats.committed <= 4 * MOST_SPARE, "{kind:?}: {stats:?}");
        assert_eq!((stats.live, stats.padding), (0, 0), "{kind:?}");
    }
}

#[test]
fn zero_fill_of_code_is_freed_without_touching_it() {
    let manager = manager(MPROTECT, Options::default()).unwrap();
    let code = [segment(3 << 20, 64 << 20, 16, Protection::READ_EXEC)];
    let kept = allocate(&manager, &[segment(9, 0, 1, Protection::READ_EXEC)]).unwrap();
    finalize(&manager, kept.handle).unwrap();
    let allocated = allocate(&manager, &code).unwrap();
    let written = vec![0x90; 3 << 20];
    manager
        .core
        .write(allocated.handle, 0, 0, &written)
        .unwrap();
    let handle = finalize(&manager, allocated.handle).unwrap();
    let address = allocated.segments[0].address;
    // As a stray jump would: a page that was only read.
    assert_eq!(read(address + (32 << 20), 1), [0]);
    let before = page_faults();
    // The chunk stays, so that what is left in it can be looked at: the calls before are an open, reads of
    // what 4096 pages are, and 2 changes of protection.
    let reads = ((67 << 20) / sys::page_size().bytes()).div_ceil(4096);
    let faults = Faults::all_after(3 + reads as u32, libc::ENOMEM);
    deallocate(&manager, &[handle]).unwrap();
    assert!(faults.failed().is_some());
    drop(faults);
    let touched = page_faults() - before;
    assert!(touched < UNTOUCHED, "{touched} pages");
    assert_eq!(read(address, 3 << 20), sys::traps(3 << 20));
    assert_eq!(read(address + (40 << 20), 1), [0]);
    // What uses it again finds its zero-fill zero.
    let again = allocate(
        &manager,
        &[segment(16, 64 << 20, 16, Protection::READ_EXEC)],
    )
    .unwrap();
    finalize(&manager, again.handle).unwrap();
    assert_eq!(
        read(again.segments[0].address + 16, 3 << 20),
        vec![0; 3 << 20]
    );
}

#[test]
fn code_beside_others_in_a_large_chunk_traps_when_freed() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let code = |size| segment(size, 0, 16, Protection::READ_EXEC);
    // Chunks grow, so that the last is larger than what is freed of it.
    let fill = || (0..40).for_each(|_| drop(allocate(&manager, &[code(256 << 10)]).unwrap()));
    fill();
    let large = allocate(&manager, &[code(3 << 20)]).unwrap();
    fill();
    let address = large.segments[0].address;
    manager.core.write(large.handle, 0, 0, &[0x90; 64]).unwrap();
    let handle = finalize(&manager, large.handle).unwrap();
    deallocate(&manager, &[handle]).unwrap();
    assert_eq!(read(address, 64), sys::traps(64));
}

#[test]
fn zero_fill_of_a_fresh_chunk_is_not_written_in_whatever_order_segments_come() {
    let data = segment(16, 64 << 20, 16, Protection::READ_WRITE);
    let code = segment(100, 0, 16, Protection::READ_EXEC);
    for segments in [[data, code], [code, data]] {
        let manager = manager(TWO_VIEWS, Options::default()).unwrap();
        let before = page_faults();
        let allocated = allocate(&manager, &segments).unwrap();
        let touched = page_faults() - before;
        assert!(touched < UNTOUCHED, "{touched} pages");
        finalize(&manager, allocated.handle).unwrap();
    }
}

#[test]
fn code_in_a_chunk_that_the_system_does_not_take_back_traps() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let code = segment(3 << 20, 0, 16, Protection::READ_EXEC);
    let allocated = allocate(&manager, &[code]).unwrap();
    manager
        .core
        .write(allocated.handle, 0, 0, &[0x90; 64])
        .unwrap();
    let handle = finalize(&manager, allocated.handle).unwrap();
    let faults = Faults::all_after(0, libc::ENOMEM);
    deallocate(&manager, &[handle]).unwrap();
    assert!(faults.failed().is_some());
    drop(faults);
    assert_eq!(read(allocated.segments[0].address, 64), sys::traps(64));
    assert_eq!(manager.stats().chunks, 1);
}

#[test]
fn what_was_made_for_a_request_that_is_refused_goes() {
    for kind in DIVIDING {
        let options = Options {
            window_size: 64 << 20,
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let most = manager.layout()[0].range.size();
        let one = |size, protection| segment(size, 0, 16, protection);
        let kept = [one(most / 2, Protection::READ)];
        allocate(&manager, &kept).unwrap();
        let chunks = manager.stats().chunks;
        // The first has room, and the second has none.
        let two = [
            one(most / 8, Protection::READ_EXEC),
            one(most / 2, Protection::READ_WRITE),
        ];
        for _ in 0..3 {
            let error = allocate(&manager, &two).err().unwrap();
            assert_eq!(error.status(), Status::WindowFull, "{kind:?}: {error}");
            assert_eq!(manager.stats().chunks, chunks, "{kind:?}");
        }
    }
}

#[test]
fn what_was_made_for_a_request_that_found_room_elsewhere_goes() {
    let manager = Arc::new(manager(TWO_VIEWS, Options::default()).unwrap());
    let large = [segment(300 << 10, 0, 16, Protection::READ_EXEC)];
    let first = allocate(&manager, &large).unwrap();
    let first = finalize(&manager, first.handle).unwrap();
    let freeing = Arc::clone(&manager);
    // While the mapper makes another chunk.
    let faults = Faults::before(0, move || deallocate(&freeing, &[first]).unwrap());
    let second = allocate(&manager, &large).unwrap();
    assert!(faults.failed().is_some());
    drop(faults);
    assert_eq!(manager.stats().chunks, 2);
    wait(|done| manager.core.abandon(second.handle, done)).unwrap();
    manager.trim().unwrap();
    assert_eq!((manager.stats().live, manager.stats().chunks), (0, 0));
}

/// Code of a hint has a chunk of its own, but not where that would keep a mapper waiting for itself.
#[test]
fn a_mapper_that_answers_later_may_allocate_code_of_any_hint_while_it_prepares() {
    let hook: Arc<Mutex<Option<Hook>>> = Arc::default();
    let mapper = Mapper::new(Hooked {
        inner: InProcess::new(InProcessKind::TwoViews).unwrap(),
        hook: Arc::clone(&hook),
        later: true,
    });
    let manager = wait(|done| Manager::create(&mapper, Options::default(), done)).unwrap();
    let manager = Arc::new(manager);
    let code = |hint| segment(256, 0, 16, Protection::READ_EXEC).hinted(hint);
    allocate(&manager, &[code(CodeHint::Normal)]).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let again = Arc::clone(&manager);
    *hook.lock() = Some(Box::new(move || {
        let answer = again.allocate([code(CodeHint::Hot)], Dylib::NONE);
        sender.send(answer.map(|_| ())).unwrap();
    }));
    allocate(&manager, &[segment(64, 0, 16, Protection::READ)]).unwrap();
    receiver.recv().unwrap().unwrap();
}
