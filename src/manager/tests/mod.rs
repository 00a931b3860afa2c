// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Tests of the manager over this process's own memory.

mod actions;
mod arenas;
mod deferred;
mod delivery;
mod events;
mod faults;
mod forks;
mod gone;
mod growth;
mod hints;
mod huge_pages;
mod in_place;
mod limits;
mod llvm_shared;
mod lookup;
mod oracle;
mod placement;
mod private_data;
mod reservations;
mod simple;
mod sparse;
mod stock;
mod windows;
mod writers;
mod writing;

use super::pool::MOST_SPARE;
use super::*;
use crate::completion::wait;
use crate::error::{Error, Status};
use crate::executor::service::here::{Here, OPEN};
use crate::group::{AllocGroup, CodeHint, Lifetime, Protection};
use crate::lock::Mutex;
use crate::mapper::{
    Action, InProcess, InProcessKind, LlvmSimpleMapper, MapperBase, MapperInterface, MemoryMapper,
    Reserved, ServiceMapper, WrapperCall,
};
use crate::memory::placement::random;
use crate::page::AddressRange;
use crate::sys::{self, fault::Faults};
use proptest::test_runner::{RngAlgorithm, TestRng};
use simple::{GENERATIONS, Generation, SimpleExecutor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Whether everything is slow here, as in an emulated machine.
fn instrumented() -> bool {
    std::env::var_os("JITMEM_TEST_INSTRUMENTED").is_some()
}

/// How often a loop repeats what can go wrong each time.
fn rounds(usual: u64) -> u64 {
    match cfg!(miri) {
        true => usual / 100,
        false if instrumented() => usual / 10,
        false => usual,
    }
}

/// Bytes of a page.
fn page() -> u64 {
    sys::page_size().bytes()
}

/// What is tried of cases that are alike.
fn cases<T>(all: &[T]) -> &[T] {
    if instrumented() { &all[..1] } else { all }
}

/// The mappers that everything is tried with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InProcess(InProcessKind),
    /// Over the executor service, which is in this process too.
    Shared,
    /// The same where data is the executor's own.
    Private,
    Remote,
    /// Over LLVM's memory manager service, which divides nothing.
    Simple(Generation),
}

const TWO_VIEWS: Kind = Kind::InProcess(InProcessKind::TwoViews);
const MPROTECT: Kind = Kind::InProcess(InProcessKind::Mprotect);
const IN_PLACE: Kind = Kind::InProcess(InProcessKind::InPlace);
const DIVIDING: [Kind; 6] = [
    TWO_VIEWS,
    MPROTECT,
    IN_PLACE,
    Kind::Shared,
    Kind::Private,
    Kind::Remote,
];
const RESERVING: [Kind; 2] = [Kind::Simple(GENERATIONS[0]), Kind::Simple(GENERATIONS[1])];

fn all_kinds() -> impl Iterator<Item = Kind> {
    DIVIDING.into_iter().chain(RESERVING)
}

fn mapper(kind: Kind) -> Result<Mapper> {
    Ok(match kind {
        Kind::InProcess(kind) => Mapper::new(InProcess::new(kind)?),
        Kind::Shared => Mapper::new(ServiceMapper::shared(Arc::new(Here), OPEN, 0)?),
        Kind::Private => Mapper::new(ServiceMapper::shared_with(Arc::new(Here), OPEN, 0, true)?),
        Kind::Remote => Mapper::new(ServiceMapper::remote(Arc::new(Here), OPEN, 0)?),
        Kind::Simple(generation) => {
            let executor = Arc::new(SimpleExecutor::new(generation));
            Mapper::reserving(LlvmSimpleMapper::new(executor)?)
        }
    })
}

/// A manager that doesn't freeze anything when another test of this process forks.
fn manager(kind: Kind, options: Options) -> Result<Manager> {
    let fork = ForkPolicy::Reuse;
    Manager::new(&mapper(kind)?, Options { fork, ..options })
}

fn segment(content: u64, zero_fill: u64, alignment: u64, protection: Protection) -> Segment {
    let group = AllocGroup {
        protection,
        lifetime: Lifetime::Standard,
    };
    Segment {
        content_size: content,
        zero_fill_size: zero_fill,
        alignment: alignment.try_into().unwrap(),
        group,
        hint: CodeHint::Normal,
    }
}

fn small_graph() -> [Segment; 3] {
    [
        segment(256, 0, 16, Protection::READ_EXEC),
        segment(64, 0, 8, Protection::READ),
        segment(64, 0, 8, Protection::READ_WRITE),
    ]
}

fn allocate(manager: &Manager, segments: &[Segment]) -> Result<Allocated> {
    let request = manager.request(segments.iter().copied().map(Ok), 0)?;
    wait(|done| manager.core.allocate(request, done))
}

fn finalize(manager: &Manager, handle: u64) -> Result<u64> {
    wait(|done| manager.core.finalize(handle, Vec::new(), done))
}

fn deallocate(manager: &Manager, handles: &[u64]) -> Result<()> {
    wait(|done| manager.core.deallocate(handles, done))
}

/// Reads executor memory, as the executor would.
fn read(address: u64, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    let local = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(address as usize),
        iov_len: bytes.len(),
    };
    // SAFETY: both describe valid memory; the kernel checks the remote side.
    let count = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    assert_eq!(count, size as isize, "{address:#x} is not readable");
    bytes
}

/// Random numbers that a seed repeats.
struct Random(TestRng);

impl Random {
    fn new(seed: u64) -> Random {
        eprintln!("JITMEM_TEST_SEED={seed}");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Random(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn next(&mut self) -> u64 {
        use proptest::prelude::RngCore;
        self.0.next_u64()
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// That of `JITMEM_TEST_SEED`, or another one each time.
fn seed() -> u64 {
    let given = std::env::var("JITMEM_TEST_SEED").ok();
    given
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(random)
}

#[test]
fn a_refused_memfd_means_the_mprotect_mapper_with_a_reason() {
    let faults = Faults::all_after(2, libc::EPERM);
    let mapper = InProcess::new(InProcessKind::Auto).unwrap();
    assert!(faults.failed().is_some());
    drop(faults);
    let mapper = Mapper::new(mapper);
    let manager = wait(|done| Manager::create(&mapper, Options::default(), done)).unwrap();
    let stats = manager.stats();
    assert_eq!(stats.mapper_name, "in-process, mprotect");
    assert!(stats.fallback.unwrap().contains("Operation not permitted"));
    let allocated = allocate(&manager, &small_graph()).unwrap();
    manager.core.write(allocated.handle, 0, 0, &[0xc3]).unwrap();
    finalize(&manager, allocated.handle).unwrap();
    assert_eq!(read(allocated.segments[0].address, 1), [0xc3]);
}

/// The system call that finalizing code takes, where cores must be told to forget what they have fetched.
const BARRIER: Option<&str> = if sys::COHERENT_FETCH {
    None
} else {
    Some("membarrier")
};

#[test]
fn the_hot_path_makes_no_system_call() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let round = || {
        let allocated = allocate(&manager, &small_graph()).unwrap();
        let handle = finalize(&manager, allocated.handle).unwrap();
        deallocate(&manager, &[handle]).unwrap();
    };
    round();
    // Counting is per process and tests run side by side; a fault is per thread.
    let faults = Faults::all_after(0, libc::ENOSYS);
    (0..1000).for_each(|_| round());
    assert_eq!(faults.failed(), BARRIER);
}

#[test]
fn many_small_graphs_take_few_mappings_and_all_memory_comes_back() {
    let manager = manager(TWO_VIEWS, Options::default()).unwrap();
    let graphs = rounds(100_000);
    let handles: Vec<u64> = (0..graphs)
        .map(|_| {
            let allocated = allocate(&manager, &small_graph()).unwrap();
            finalize(&manager, allocated.handle).unwrap()
        })
        .collect();
    let stats = manager.stats();
    assert!(stats.mappings <= 64, "{}", stats.mappings);
    assert_eq!(stats.live, graphs * 384);
    assert_eq!(stats.padding, 0);
    assert!(stats.span <= 1 << 30);
    deallocate(&manager, &handles).unwrap();
    assert!(manager.stats().committed <= 3 * MOST_SPARE);
}

#[test]
fn handles_of_other_managers_and_other_times_are_refused() {
    let one = manager(TWO_VIEWS, Options::default()).unwrap();
    let other = manager(TWO_VIEWS, Options::default()).unwrap();
    let handle = allocate(&one, &small_graph()).unwrap().handle;
    allocate(&other, &small_graph()).unwrap();
    assert_eq!(
        finalize(&other, handle).unwrap_err().status(),
        Status::InvalidHandle
    );
    finalize(&one, handle).unwrap();
    let twice = deallocate(&one, &[handle, handle]).unwrap_err();
    assert_eq!(twice.status(), Status::InvalidHandle);
    assert_eq!(one.stats().finalized, 1, "a refused batch does nothing");
    deallocate(&one, &[handle]).unwrap();
    assert!(deallocate(&one, &[handle]).is_err());
    for handle in [0, 1, u64::MAX] {
        assert!(deallocate(&one, &[handle]).is_err());
    }
    let twice = allocate(&one, &small_graph()).unwrap().handle;
    finalize(&one, twice).unwrap();
    let error = deallocate(&one, &[twice, twice]).unwrap_err();
    assert!(error.message().contains("is named twice"), "{error}");
    deallocate(&one, &[twice]).unwrap();
}

#[test]
fn quota_and_window_are_limits_that_lift_again() {
    for kind in all_kinds() {
        let options = Options {
            quota: Some(100_000),
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let first = allocate(&manager, &[segment(90_000, 0, 1, Protection::READ)]).unwrap();
        let error = allocate(&manager, &[segment(20_000, 0, 1, Protection::READ)]).unwrap_err();
        assert_eq!(error.status(), Status::QuotaExceeded, "{error}");
        manager.set_quota(Some(200_000)).unwrap();
        let second = allocate(&manager, &[segment(20_000, 0, 1, Protection::READ)]).unwrap();
        wait(|done| manager.core.abandon(second.handle, done)).unwrap();
        manager.set_quota(Some(100_000)).unwrap();
        wait(|done| manager.core.abandon(first.handle, done)).unwrap();
        allocate(&manager, &[segment(20_000, 0, 1, Protection::READ)]).unwrap();
        manager.set_quota(None).unwrap();
        allocate(&manager, &[segment(200_000, 0, 1, Protection::READ)]).unwrap();
    }
}

#[test]
fn an_empty_chunk_of_another_group_makes_room() {
    let options = Options {
        window_size: 8 << 20,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let whole = |protection| [segment((8 << 20) - 100_000, 0, 16, protection)];
    for protection in [
        Protection::READ_EXEC,
        Protection::READ,
        Protection::READ_WRITE,
    ] {
        for _ in 0..2 {
            let allocated = allocate(&manager, &whole(protection)).unwrap();
            let error = allocate(&manager, &whole(Protection::READ)).unwrap_err();
            assert_eq!(error.status(), Status::WindowFull, "{error}");
            let handle = finalize(&manager, allocated.handle).unwrap();
            deallocate(&manager, &[handle]).unwrap();
        }
    }
}

#[test]
fn a_dylib_stays_in_its_window_and_others_get_another() {
    let options = Options {
        window_size: 8 << 20,
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    };
    let manager = manager(TWO_VIEWS, options).unwrap();
    let megabyte = [segment(1 << 20, 0, 16, Protection::READ_EXEC)];
    let allocate = |dylib| {
        let request = manager.request(megabyte.map(Ok), dylib)?;
        wait(|done| manager.core.allocate(request, done))
    };
    let first = allocate(1).unwrap().segments[0].address;
    let error = loop {
        match allocate(1) {
            Ok(more) => assert!(more.segments[0].address.abs_diff(first) < 8 << 20),
            Err(error) => break error,
        }
    };
    assert_eq!(error.status(), Status::WindowFull);
    assert!(error.to_string().contains("straddles"), "{error}");
    assert_eq!(manager.stats().windows, 1);
    let second = allocate(2).unwrap().segments[0].address;
    assert!(second.abs_diff(first) >= 8 << 20 || manager.stats().windows == 2);
    for _ in 0..4 {
        let more = allocate(2).unwrap().segments[0].address;
        assert!(more.abs_diff(second) < 8 << 20);
    }
    assert_eq!(manager.stats().windows, 2);
}

#[test]
fn segments_of_finalize_lifetime_are_gone_after_finalize() {
    for kind in DIVIDING {
        let manager = manager(kind, Options::default()).unwrap();
        let mut segments = small_graph();
        segments[0].group.lifetime = Lifetime::Finalize;
        let allocated = allocate(&manager, &segments).unwrap();
        assert_eq!(manager.stats().live, 384);
        let handle = finalize(&manager, allocated.handle).unwrap();
        assert_eq!(manager.stats().live, 128);
        // New memory is not executable, so it needs no traps.
        let after = if kind == IN_PLACE { 0 } else { sys::TRAP[0] };
        assert_eq!(read(allocated.segments[0].address, 1), [after]);
        deallocate(&manager, &[handle]).unwrap();
        assert_eq!(manager.stats().live, 0);
    }
}

#[test]
fn threads_allocate_side_by_side_and_from_inside_completions() {
    let manager = Arc::new(manager(TWO_VIEWS, Options::default()).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let manager = Arc::clone(&manager);
            scope.spawn(move || {
                let mut handles = Vec::new();
                for round in 0..500u32 {
                    let allocated = allocate(&manager, &small_graph()).unwrap();
                    let bytes = [thread; 256];
                    manager.core.write(allocated.handle, 0, 0, &bytes).unwrap();
                    let again = Arc::clone(&manager);
                    let nested = wait(|done| {
                        manager.core.finalize(
                            allocated.handle,
                            Vec::new(),
                            Completion::new(move |answer: Result<u64>| {
                                answer.unwrap();
                                let request = again.request(small_graph().map(Ok), 0).unwrap();
                                again.core.allocate(request, done);
                            }),
                        );
                    })
                    .unwrap();
                    wait(|done| manager.core.abandon(nested.handle, done)).unwrap();
                    handles.push((allocated.handle, allocated.segments[0].address));
                    if round % 3 == 0 {
                        let (handle, address) = handles.swap_remove(round as usize % handles.len());
                        assert_eq!(read(address, 256), bytes);
                        deallocate(&manager, &[handle]).unwrap();
                    }
                }
                for (_, address) in &handles {
                    assert_eq!(read(*address, 256), [thread; 256]);
                }
                let handles: Vec<u64> = handles.into_iter().map(|(handle, _)| handle).collect();
                deallocate(&manager, &handles).unwrap();
            });
        }
    });
    assert_eq!(manager.stats().live, 0);
}

#[test]
fn what_is_in_flight_is_not_finalized_without_its_manager() {
    for kind in all_kinds() {
        let manager = manager(kind, Options::default()).unwrap();
        let [one, other, last] =
            [(); 3].map(|()| manager.allocate(small_graph(), Dylib::NONE).unwrap());
        drop(manager);
        let (sender, answer) = std::sync::mpsc::channel();
        other.finalize_async([], move |answer| sender.send(answer).unwrap());
        for answer in [
            one.finalize([]),
            answer.recv().unwrap(),
            last.try_finalize().unwrap(),
        ] {
            let error = answer.unwrap_err();
            assert_eq!(error.status(), Status::InvalidHandle);
            assert!(error.message().contains("was freed"), "{error}");
        }
    }
}
