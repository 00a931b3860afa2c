// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Random sequences against an oracle, and every system call made to fail.

use super::*;
use crate::completion::wait;
use crate::error::Status;
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::mapper::{InProcess, InProcessKind, WrapperCall};
use crate::page::AddressRange;
use crate::sys::fault::Faults;
use proptest::test_runner::{RngAlgorithm, TestRng};
use std::collections::BTreeMap;

const KINDS: [InProcessKind; 2] = [InProcessKind::TwoViews, InProcessKind::Mprotect];

fn manager(kind: InProcessKind, options: Options) -> Result<Manager> {
    let mapper = Arc::new(InProcess::new(kind)?);
    wait(|done| Manager::create(mapper, options, done))
}

fn segment(content: u64, zero_fill: u64, alignment: u64, protection: Protection) -> Segment {
    let group = AllocGroup {
        protection,
        lifetime: Lifetime::Standard,
    };
    Segment {
        content_size: content,
        zero_fill_size: zero_fill,
        alignment,
        group,
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
    wait(|done| manager.allocate(request, done))
}

fn finalize(manager: &Manager, handle: u64) -> Result<u64> {
    wait(|done| manager.finalize(handle, Vec::new(), done))
}

fn deallocate(manager: &Manager, handles: &[u64]) -> Result<()> {
    wait(|done| manager.deallocate(handles, done))
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

/// What the oracle knows of one allocation.
struct Shadow {
    segments: Vec<Segment>,
    addresses: Vec<u64>,
    pattern: Vec<Vec<u8>>,
    finalized: bool,
}

impl Shadow {
    fn check(&self, what: &str) {
        for ((segment, address), pattern) in
            self.segments.iter().zip(&self.addresses).zip(&self.pattern)
        {
            let seen = read(*address, segment.content_size + segment.zero_fill_size);
            let (content, zero_fill) = seen.split_at(pattern.len());
            assert!(
                content == pattern.as_slice(),
                "{what}: content at {address:#x} changed"
            );
            assert!(
                zero_fill.iter().all(|byte| *byte == 0),
                "{what}: zero-fill at {address:#x}"
            );
        }
    }
}

struct Random(TestRng);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        use proptest::prelude::RngCore;
        self.0.next_u64() % bound
    }
}

fn seed() -> u64 {
    std::env::var("JITMEM_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(random)
}

fn random_segments(random: &mut Random) -> Vec<Segment> {
    let protections = [
        Protection::READ_EXEC,
        Protection::READ,
        Protection::READ_WRITE,
    ];
    (0..random.below(4))
        .map(|_| {
            let large = random.below(40) == 0;
            let most = if large { 200_000 } else { 700 };
            let content = random.below(most);
            let zero_fill = if random.below(3) == 0 {
                random.below(9000)
            } else {
                0
            };
            let alignment = {
                let most = if random.below(20) == 0 { 17 } else { 8 };
                1 << random.below(most)
            };
            segment(
                content,
                zero_fill,
                alignment,
                protections[random.below(3) as usize],
            )
        })
        .collect()
}

/// Long random sequences; everything that was handed out is checked for overlap, alignment,
/// distance, and, through both views, for its bytes.
fn random_sequence(kind: InProcessKind, steps: u32, seed: u64) {
    eprintln!("JITMEM_TEST_SEED={seed}");
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &{
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes
    });
    let mut random = Random(rng);
    let options = Options {
        window_size: 64 << 20,
        ..Options::default()
    };
    let manager = manager(kind, options).unwrap();
    let window = manager.layout()[0].range;
    let mut live: BTreeMap<u64, Shadow> = BTreeMap::new();
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    for step in 0..steps {
        let pick = |random: &mut Random, live: &BTreeMap<u64, Shadow>| {
            let index = random.below(live.len() as u64) as usize;
            *live.keys().nth(index).unwrap()
        };
        match random.below(10) {
            0..5 => {
                let segments = random_segments(&mut random);
                let allocated = match allocate(&manager, &segments) {
                    Ok(allocated) => allocated,
                    Err(error) => {
                        assert_eq!(error.status(), Status::WindowFull, "{error}");
                        continue;
                    }
                };
                let mut shadow = Shadow {
                    addresses: allocated
                        .segments
                        .iter()
                        .map(|memory| memory.address)
                        .collect(),
                    pattern: Vec::new(),
                    finalized: false,
                    segments,
                };
                for (index, segment) in shadow.segments.iter().enumerate() {
                    let address = shadow.addresses[index];
                    let size = segment.content_size + segment.zero_fill_size;
                    assert_eq!(address % segment.alignment, 0);
                    assert!(window.contains(AddressRange::new(address, size).unwrap()));
                    let below = taken.range(..=address).next_back();
                    assert!(below.is_none_or(|(start, length)| start + length <= address));
                    let above = taken.range(address..).next();
                    assert!(above.is_none_or(|(start, _)| address + size <= *start));
                    taken.insert(address, size.max(1));
                    let pattern: Vec<u8> = (0..segment.content_size)
                        .map(|_| random.below(256) as u8)
                        .collect();
                    manager.write(allocated.handle, index, 0, &pattern).unwrap();
                    shadow.pattern.push(pattern);
                }
                assert!(live.insert(allocated.handle, shadow).is_none());
            }
            5..7 if !live.is_empty() => {
                let handle = pick(&mut random, &live);
                let shadow = live.get_mut(&handle).unwrap();
                let answer = finalize(&manager, handle);
                assert_eq!(answer.is_err(), shadow.finalized, "finalize of {handle:#x}");
                shadow.finalized = true;
                shadow.check("after finalize");
            }
            7..9 if !live.is_empty() => {
                let handle = pick(&mut random, &live);
                let shadow = &live[&handle];
                if shadow.finalized {
                    shadow.check("before deallocate");
                    deallocate(&manager, &[handle]).unwrap();
                } else {
                    assert!(deallocate(&manager, &[handle]).is_err());
                    wait(|done| manager.abandon(handle, done)).unwrap();
                }
                let shadow = live.remove(&handle).unwrap();
                shadow.addresses.iter().for_each(|address| {
                    taken.remove(address);
                });
                assert!(finalize(&manager, handle).is_err());
            }
            _ if step % 16 == 0 => {
                live.values()
                    .filter(|shadow| shadow.finalized)
                    .for_each(|shadow| {
                        shadow.check("at rest");
                    });
            }
            _ => {}
        }
        let stats = manager.stats();
        assert_eq!(stats.in_flight + stats.finalized, live.len() as u64);
        assert!(stats.live + stats.padding + stats.free <= stats.committed);
        assert!(stats.mappings <= 512, "{}", stats.mappings);
    }
    let finalized: Vec<u64> = live
        .iter()
        .filter(|(_, shadow)| shadow.finalized)
        .map(|(handle, _)| *handle)
        .collect();
    deallocate(&manager, &finalized).unwrap();
    live.iter()
        .filter(|(_, shadow)| !shadow.finalized)
        .for_each(|(handle, _)| {
            wait(|done| manager.abandon(*handle, done)).unwrap();
        });
    let stats = manager.stats();
    assert_eq!(
        (stats.live, stats.padding, stats.in_flight, stats.finalized),
        (0, 0, 0, 0)
    );
    // Hysteresis keeps at most one empty chunk of each group.
    assert!(stats.chunks <= 3, "{}", stats.chunks);
}

#[test]
fn random_sequences_match_the_oracle() {
    for kind in KINDS {
        random_sequence(kind, 4000, seed());
    }
}

/// Every system call of a manager's life fails once, with each of several errors: the error is
/// reported, nothing is lost, and the manager works afterwards.
#[test]
fn any_system_call_may_fail() {
    for kind in KINDS {
        for errno in [libc::ENOMEM, libc::EPERM, libc::EMFILE, libc::EIO] {
            let mut failed_calls = std::collections::BTreeSet::new();
            for skip in 0.. {
                let faults = Faults::one(skip, errno);
                let result = life(kind);
                let Some(call) = faults.failed() else {
                    result.unwrap();
                    break;
                };
                failed_calls.insert(call);
                if let Err(error) = &result {
                    assert_eq!(error.os_code(), Some(errno), "{call}: {error}");
                    assert!(error.to_string().len() > 30, "{call}: {error}");
                }
                drop(faults);
                life(kind).unwrap();
            }
            assert!(failed_calls.contains("mmap"), "{failed_calls:?}");
            let two_views = kind == InProcessKind::TwoViews;
            assert_eq!(
                failed_calls.contains("memfd_create"),
                two_views,
                "{failed_calls:?}"
            );
            assert_eq!(
                failed_calls.contains("mprotect"),
                !two_views,
                "{failed_calls:?}"
            );
        }
    }
}

/// Allocates, finalizes and frees enough to make and give back chunks. After an error the manager
/// must still do the same work.
fn life(kind: InProcessKind) -> Result<()> {
    let manager = manager(
        kind,
        Options {
            window_size: 16 << 20,
            ..Options::default()
        },
    )?;
    let result = work(&manager);
    let stats = manager.stats();
    assert_eq!(
        (stats.live, stats.in_flight, stats.finalized),
        (0, 0, 0),
        "{stats:?}"
    );
    if result.is_err() {
        // The fault was consumed; the same manager goes on.
        work(&manager).unwrap();
    }
    result
}

fn work(manager: &Manager) -> Result<()> {
    let segments = [
        segment(100_000, 0, 16, Protection::READ_EXEC),
        segment(100, 100_000, 16, Protection::READ),
        segment(100, 90_000, 16, Protection::READ_WRITE),
    ];
    let mut handles = Vec::new();
    let mut result = Ok(());
    for _ in 0..3 {
        match allocate(manager, &segments).and_then(|a| finalize(manager, a.handle)) {
            Ok(handle) => handles.push(handle),
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // Under the mprotect mapper the traps may fail to be written; the memory is free all the same.
    match deallocate(manager, &handles) {
        Ok(()) => result,
        Err(error) => result.and(Err(error)),
    }
}

#[test]
fn a_refused_memfd_means_the_mprotect_mapper_with_a_reason() {
    let faults = Faults::all_after(2, libc::EPERM);
    let mapper = InProcess::new(InProcessKind::Auto).unwrap();
    assert!(faults.failed().is_some());
    drop(faults);
    let mapper: Arc<dyn Mapper> = Arc::new(mapper);
    let manager = wait(|done| Manager::create(mapper, Options::default(), done)).unwrap();
    let stats = manager.stats();
    assert_eq!(stats.mapper_name, "in-process, mprotect");
    assert!(stats.fallback.unwrap().contains("Operation not permitted"));
    let allocated = allocate(&manager, &small_graph()).unwrap();
    manager.write(allocated.handle, 0, 0, &[0xc3]).unwrap();
    finalize(&manager, allocated.handle).unwrap();
    assert_eq!(read(allocated.segments[0].address, 1), [0xc3]);
}

#[test]
fn the_hot_path_makes_no_system_call() {
    let manager = manager(InProcessKind::TwoViews, Options::default()).unwrap();
    let round = || {
        let allocated = allocate(&manager, &small_graph()).unwrap();
        let handle = finalize(&manager, allocated.handle).unwrap();
        deallocate(&manager, &[handle]).unwrap();
    };
    round();
    // Counting is per process and tests run side by side; a fault is per thread.
    let faults = Faults::all_after(0, libc::ENOSYS);
    (0..1000).for_each(|_| round());
    assert_eq!(faults.failed(), None);
}

#[test]
fn many_small_graphs_take_few_mappings_and_all_memory_comes_back() {
    let manager = manager(InProcessKind::TwoViews, Options::default()).unwrap();
    let handles: Vec<u64> = (0..100_000)
        .map(|_| {
            let allocated = allocate(&manager, &small_graph()).unwrap();
            finalize(&manager, allocated.handle).unwrap()
        })
        .collect();
    let stats = manager.stats();
    assert!(stats.mappings <= 64, "{}", stats.mappings);
    assert_eq!(stats.live, 100_000 * 384);
    assert_eq!(stats.padding, 0);
    assert!(stats.span <= 1 << 30);
    deallocate(&manager, &handles).unwrap();
    assert!(manager.stats().chunks <= 3);
}

#[test]
fn handles_of_other_managers_and_other_times_are_refused() {
    let one = manager(InProcessKind::TwoViews, Options::default()).unwrap();
    let other = manager(InProcessKind::TwoViews, Options::default()).unwrap();
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
}

#[test]
fn quota_and_window_are_limits_that_lift_again() {
    for kind in KINDS {
        let options = Options {
            quota: Some(100_000),
            ..Options::default()
        };
        let manager = manager(kind, options).unwrap();
        let first = allocate(&manager, &[segment(90_000, 0, 1, Protection::READ)]).unwrap();
        let error = allocate(&manager, &[segment(20_000, 0, 1, Protection::READ)]).unwrap_err();
        assert_eq!(error.status(), Status::QuotaExceeded, "{error}");
        wait(|done| manager.abandon(first.handle, done)).unwrap();
        allocate(&manager, &[segment(20_000, 0, 1, Protection::READ)]).unwrap();
    }
}

#[test]
fn an_empty_chunk_of_another_group_makes_room() {
    let options = Options {
        window_size: 8 << 20,
        ..Options::default()
    };
    let manager = manager(InProcessKind::TwoViews, options).unwrap();
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
    let manager = manager(InProcessKind::TwoViews, options).unwrap();
    let megabyte = [segment(1 << 20, 0, 16, Protection::READ_EXEC)];
    let allocate = |dylib| {
        let request = manager.request(megabyte.map(Ok), dylib)?;
        wait(|done| manager.allocate(request, done))
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
    for kind in KINDS {
        let manager = manager(kind, Options::default()).unwrap();
        let mut segments = small_graph();
        segments[0].group.lifetime = Lifetime::Finalize;
        let allocated = allocate(&manager, &segments).unwrap();
        assert_eq!(manager.stats().live, 384);
        let handle = finalize(&manager, allocated.handle).unwrap();
        assert_eq!(manager.stats().live, 128);
        assert_eq!(read(allocated.segments[0].address, 1), sys::TRAP[..1]);
        deallocate(&manager, &[handle]).unwrap();
        assert_eq!(manager.stats().live, 0);
    }
}

// Actions: wrapper functions of this process that keep a journal per test.

static JOURNAL: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// `CWrapperFunctionResult`.
#[repr(C)]
struct Answer(u64, usize);

/// Notes its first argument byte; fails if the second is not zero.
extern "C" fn note(args: *const u8, size: usize) -> Answer {
    // SAFETY: the tests pass two bytes.
    let args = unsafe { std::slice::from_raw_parts(args, size) };
    JOURNAL.lock().push(args[0].into());
    if args[1] == 0 {
        return Answer(0, 1);
    }
    let message = b"\x01\x03\0\0\0\0\0\0\0bad";
    // SAFETY: a block of the message's size, freed by the caller with free.
    let block = unsafe { libc::malloc(message.len()) };
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), block.cast(), message.len()) };
    Answer(block.expose_provenance() as u64, message.len())
}

fn call(number: u8, fails: bool) -> WrapperCall {
    WrapperCall {
        function: note as *const () as u64,
        args: vec![number, fails.into()],
    }
}

#[test]
fn actions_run_in_order_and_roll_back() {
    let none = WrapperCall::default;
    for kind in KINDS {
        let manager = manager(kind, Options::default()).unwrap();
        let run = |actions| {
            JOURNAL.lock().clear();
            let handle = allocate(&manager, &small_graph()).unwrap().handle;
            wait(|done| manager.finalize(handle, actions, done))
        };
        let journal = || JOURNAL.lock().clone();
        let handle = run(vec![
            Action {
                finalize: call(1, false),
                dealloc: call(101, true),
            },
            Action {
                finalize: none(),
                dealloc: call(102, false),
            },
            Action {
                finalize: call(3, false),
                dealloc: none(),
            },
        ])
        .unwrap();
        assert_eq!(journal(), [1, 3]);
        let error = deallocate(&manager, &[handle]).unwrap_err();
        assert_eq!(error.status(), Status::ActionFailed);
        assert!(error.to_string().ends_with(": bad"), "{error}");
        assert_eq!(journal(), [1, 3, 102, 101]);
        let error = run(vec![
            Action {
                finalize: call(1, false),
                dealloc: call(101, true),
            },
            Action {
                finalize: call(2, false),
                dealloc: call(102, false),
            },
            Action {
                finalize: call(3, true),
                dealloc: call(103, false),
            },
            Action {
                finalize: call(4, false),
                dealloc: call(104, false),
            },
        ])
        .unwrap_err();
        assert_eq!(journal(), [1, 2, 3, 102, 101]);
        assert_eq!(
            error.to_string().matches(": bad").count(),
            2,
            "both are named: {error}"
        );
        let stats = manager.stats();
        assert_eq!((stats.live, stats.in_flight, stats.finalized), (0, 0, 0));
        // What is left when the manager goes, goes last to first.
        run(vec![Action {
            finalize: none(),
            dealloc: call(110, false),
        }])
        .unwrap();
        let handle = allocate(&manager, &small_graph()).unwrap().handle;
        let last = vec![Action {
            finalize: none(),
            dealloc: call(111, false),
        }];
        wait(|done| manager.finalize(handle, last, done)).unwrap();
        drop(manager);
        assert_eq!(journal(), [111, 110]);
    }
}

#[test]
fn threads_allocate_side_by_side_and_from_inside_completions() {
    let manager = Arc::new(manager(InProcessKind::TwoViews, Options::default()).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let manager = Arc::clone(&manager);
            scope.spawn(move || {
                let mut handles = Vec::new();
                for round in 0..500u32 {
                    let allocated = allocate(&manager, &small_graph()).unwrap();
                    let bytes = [thread; 256];
                    manager.write(allocated.handle, 0, 0, &bytes).unwrap();
                    let again = Arc::clone(&manager);
                    let nested = wait(|done| {
                        manager.finalize(
                            allocated.handle,
                            Vec::new(),
                            Completion::new(move |answer: Result<u64>| {
                                answer.unwrap();
                                let request = again.request(small_graph().map(Ok), 0).unwrap();
                                again.allocate(request, done);
                            }),
                        );
                    })
                    .unwrap();
                    wait(|done| manager.abandon(nested.handle, done)).unwrap();
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
