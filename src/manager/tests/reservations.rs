// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocations that have a reservation each: what is said to the executor, where they may lie, and what
//! is left when something fails.

use super::simple::{GENERATIONS, PREFIX, Trouble};
use super::*;
use crate::memory::placement::BRANCH_REACH;
use crate::sys::testing::wrapper_call;
use crate::transport::Transport;
use crate::wire::sps::{ActionPair, Bytes, ExecutorAddr, Expected, Outcome, from_bytes, to_bytes};
use std::sync::mpsc::{Receiver, channel};

fn over(executor: &Arc<SimpleExecutor>, options: Options) -> Manager {
    let mapper = LlvmSimpleMapper::new(Arc::clone(executor) as Arc<dyn Transport>).unwrap();
    wait(|done| Manager::create(&Mapper::reserving(mapper), options, done)).unwrap()
}

/// A completion whose answer a test waits for.
fn later<T: Send + 'static>() -> (Completion<T>, Receiver<Result<T>>) {
    let (sender, receiver) = channel();
    let done = Completion::new(move |answer| sender.send(answer).unwrap());
    (done, receiver)
}

// ---- an executor that only says what it would do ----

/// A segment as it was sent: group, address, size, content.
type Sent = (u8, u64, u64, Vec<u8>);
/// A pair of calls as it was sent.
type SentPair = [(u64, Vec<u8>); 2];

/// Answers with addresses that a test chose, has no memory, and keeps what it was told.
struct Paper {
    generation: Generation,
    bases: Mutex<Vec<u64>>,
    reserved: Mutex<Vec<u64>>,
    segments: Mutex<Vec<Sent>>,
    actions: Mutex<Vec<SentPair>>,
    given_back: Mutex<Vec<Vec<u64>>>,
}

const INSTANCE: u64 = 7;

const NAMES: [&str; 6] = [
    "reserve_wrapper",
    "finalize_wrapper",
    "deallocate_wrapper",
    "initialize_wrapper",
    "release_wrapper",
    "Instance",
];

impl Paper {
    fn new(generation: Generation, bases: &[u64]) -> Arc<Paper> {
        Arc::new(Paper {
            generation,
            bases: Mutex::new(bases.iter().rev().copied().collect()),
            reserved: Mutex::default(),
            segments: Mutex::default(),
            actions: Mutex::default(),
            given_back: Mutex::default(),
        })
    }

    fn manager(self: &Arc<Self>, options: Options) -> Manager {
        let mapper = LlvmSimpleMapper::new(Arc::clone(self) as Arc<dyn Transport>).unwrap();
        wait(|done| Manager::create(&Mapper::reserving(mapper), options, done)).unwrap()
    }

    fn given_back(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut self.given_back.lock())
    }
}

impl Transport for Paper {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        type Installed<'a> = (Vec<(u8, ExecutorAddr, u64, Bytes<'a>)>, Vec<ActionPair<'a>>);
        let instance = from_bytes::<ExecutorAddr>(&args).unwrap();
        assert_eq!(instance.0, INSTANCE);
        let args = &args[8..];
        let success = to_bytes(&Outcome(Ok(())));
        let name = NAMES[function as usize - 1];
        done.complete(Ok(match name {
            "reserve_wrapper" => {
                self.reserved.lock().push(from_bytes(args).unwrap());
                let base = ExecutorAddr(self.bases.lock().pop().unwrap());
                to_bytes(&Expected(Ok(base)))
            }
            "finalize_wrapper" | "initialize_wrapper" => {
                let (segments, actions) = from_bytes::<Installed<'_>>(args).unwrap();
                let sent = segments.iter();
                *self.segments.lock() = sent
                    .map(|(group, address, size, content)| {
                        (*group, address.0, *size, content.0.to_vec())
                    })
                    .collect();
                let pairs = actions.iter().map(|pair| {
                    [pair.finalize, pair.dealloc]
                        .map(|call| (call.function.0, call.args.0.to_vec()))
                });
                *self.actions.lock() = pairs.collect();
                match self.generation {
                    Generation::Finalize => success,
                    Generation::Initialize => to_bytes(&Expected(Ok(segments[0].1))),
                }
            }
            _ => {
                let bases: Vec<ExecutorAddr> = from_bytes(args).unwrap();
                let bases = bases.iter().map(|base| base.0).collect();
                self.given_back.lock().push(bases);
                success
            }
        }));
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let name = name.strip_prefix(PREFIX)?;
        let position = NAMES.iter().position(|known| *known == name)?;
        match (name, self.generation) {
            ("Instance", _) => Some(INSTANCE),
            ("initialize_wrapper" | "release_wrapper", Generation::Finalize) => None,
            // An executor may publish both; the newer one is spoken with.
            _ => Some(position as u64 + 1),
        }
    }
}

#[test]
fn pages_of_one_reservation_take_the_segments() {
    let page = page();
    let base = 0x7f00_0000_0000 + 3 * page;
    for generation in GENERATIONS {
        let paper = Paper::new(generation, &[base]);
        let manager = paper.manager(Options::default());
        let mut segments = [
            segment(5, 0, 1 << 16, Protection::READ_EXEC),
            segment(3, 1 << 20, 8, Protection::READ_WRITE),
            segment(0, 0, 1 << 13, Protection::READ_WRITE),
            segment(4000, 200, 16, Protection::READ),
            segment(99, 0, 1, Protection::READ),
        ];
        segments[3].group.lifetime = Lifetime::Finalize;
        segments[4].group.lifetime = Lifetime::NoAlloc;
        let allocated = allocate(&manager, &segments).unwrap();
        let at = |index: usize| allocated.segments[index].address;
        // The smallest alignment first, each on pages of its own.
        let data = base;
        let constants = data + (1 << 20) + page;
        let constants_size = 4200u64.next_multiple_of(page);
        let empty = constants + constants_size;
        assert_eq!([at(1), at(3), at(4)], [data, constants, 0]);
        assert_eq!(at(2), empty.next_multiple_of(1 << 13));
        assert_eq!(at(0), (at(2) + page).next_multiple_of(1 << 16));
        let reserved = paper.reserved.lock()[0];
        assert!(at(0) + page <= base + reserved);
        assert!(allocated.segments[4].working_memory.get().is_null());
        let stats = manager.stats();
        assert_eq!((stats.windows, stats.chunks), (1, 4));
        assert_eq!((stats.reserved, stats.committed), (reserved, reserved));
        assert_eq!(
            (stats.live, stats.padding),
            (5 + 3 + (1 << 20) + 4200, reserved - stats.live)
        );
        for (index, bytes) in [(0, b"code!".as_slice()), (1, b"abc")] {
            manager
                .core
                .write(allocated.handle, index, 0, bytes)
                .unwrap();
        }
        for (index, offset, bytes) in [(4, 0, b"x".as_slice()), (1, 3, b"x"), (9, 0, b"")] {
            let error = manager.core.write(allocated.handle, index, offset, bytes);
            assert_eq!(error.unwrap_err().status(), Status::InvalidArgument);
        }
        finalize(&manager, allocated.handle).unwrap();
        // Zero-fill of data is there already; the lifetime is for those who know it.
        let lifetime = match generation {
            Generation::Finalize => 0,
            Generation::Initialize => 8,
        };
        assert_eq!(
            *paper.segments.lock(),
            [
                (3, data, 3, b"abc".to_vec()),
                (1 | lifetime, constants, constants_size, vec![0; 4000]),
                (3, at(2), 1, vec![]),
                (5, at(0), page, b"code!".to_vec()),
            ]
        );
        // What has served its time stays: the protocol frees all or nothing.
        assert_eq!(manager.stats().live, stats.live);
        deallocate(&manager, &[allocated.handle]).unwrap();
        assert_eq!(paper.given_back(), [[base]]);
        let stats = manager.stats();
        assert_eq!(
            (stats.live, stats.reserved, stats.windows, stats.span),
            (0, 0, 0, 0)
        );
        assert_eq!(stats.messages, 3);
    }
}

#[test]
fn something_lies_at_the_start_of_every_reservation() {
    const ALIGNED: u64 = 0x7f00_0001_0000;
    let page = page();
    let base = 0x7f00_0000_0000 + 3 * page;
    for generation in GENERATIONS {
        let paper = Paper::new(generation, &[base, ALIGNED, base]);
        let manager = paper.manager(Options::default());
        let installed = |segments: &[Segment]| {
            let handle = allocate(&manager, segments).unwrap().handle;
            finalize(&manager, handle).unwrap();
            let sent = paper.segments.lock().clone();
            deallocate(&manager, &[handle]).unwrap();
            sent
        };
        let code = [segment(1, 0, 1 << 16, Protection::READ_EXEC)];
        let there = (5, ALIGNED, page, vec![0]);
        let filler = (1, base, page, vec![]);
        assert_eq!(installed(&code), [filler.clone(), there.clone()]);
        assert_eq!(installed(&code), [there]);
        assert_eq!(installed(&[]), [filler]);
        assert_eq!(paper.given_back(), [[base], [ALIGNED], [base]]);
    }
}

#[test]
fn pairs_have_no_gaps_for_executors_that_fall_into_them() {
    let none = WrapperCall::default;
    let call = |number: u64| wrapper_call(number, vec![number as u8]);
    let pair = |finalize, dealloc| Action { finalize, dealloc };
    for generation in GENERATIONS {
        let paper = Paper::new(generation, &[0x7f00_0000_0000]);
        let manager = paper.manager(Options::default());
        let handle = allocate(&manager, &small_graph()).unwrap().handle;
        let actions = vec![
            pair(call(100), none()),
            pair(none(), none()),
            pair(none(), call(101)),
        ];
        wait(|done| manager.core.finalize(handle, actions, done)).unwrap();
        let sent = |number: u64| (number, vec![number as u8]);
        // deallocate, of nothing.
        let success = (3, to_bytes(&(INSTANCE, 0u64)));
        let gap = (0, vec![]);
        let expected = match generation {
            Generation::Finalize => vec![[sent(100), success.clone()], [success, sent(101)]],
            Generation::Initialize => vec![
                [sent(100), gap.clone()],
                [gap.clone(), gap.clone()],
                [gap, sent(101)],
            ],
        };
        assert_eq!(*paper.actions.lock(), expected);
    }
}

#[test]
fn a_batch_is_one_message_and_so_is_the_end_of_a_manager() {
    for generation in GENERATIONS {
        let bases = [1, 2, 3, 4, 5].map(|number| 0x7f00_0000_0000 + number * 0x10_0000);
        let paper = Paper::new(generation, &bases);
        let manager = paper.manager(Options::default());
        let all: Vec<u64> = bases
            .iter()
            .map(|_| allocate(&manager, &small_graph()).unwrap().handle)
            .collect();
        for handle in [all[3], all[0], all[1], all[2]] {
            finalize(&manager, handle).unwrap();
        }
        assert_eq!(manager.stats().messages, 9);
        deallocate(&manager, &[all[1], all[0]]).unwrap();
        assert_eq!(paper.given_back(), [[bases[1], bases[0]]]);
        // What takes a message is not done without waiting.
        let request = manager.request(small_graph().map(Ok), 0).unwrap();
        assert!(manager.core.try_allocate(&request).is_none());
        assert!(manager.core.try_finalize(all[4]).is_none());
        assert!(manager.core.try_deallocate(&all[2..3]).is_none());
        assert_eq!(manager.stats().messages, 10);
        // In flight first, so last on the executor's side; then in the order of finalize.
        drop(manager);
        assert_eq!(paper.given_back(), [[bases[4], bases[3], bases[2]]]);
    }
}

#[test]
fn an_executor_without_the_service_is_refused_by_name() {
    struct Without(&'static str);
    impl Transport for Without {
        fn call(&self, _: u64, _: Vec<u8>, _: Completion<Vec<u8>>) {
            panic!("nothing is asked");
        }
        fn symbol(&self, name: &str) -> Option<u64> {
            (name.strip_prefix(PREFIX)? != self.0).then_some(1)
        }
    }
    for name in ["Instance", "reserve_wrapper", "release_wrapper"] {
        let error = LlvmSimpleMapper::new(Arc::new(Without(name)))
            .err()
            .unwrap();
        assert_eq!(error.status(), Status::Unsupported);
        assert!(error.message().contains(name), "{error}");
    }
}

// ---- where they may lie ----

const PAGE: [Segment; 1] = [Segment {
    content_size: 1,
    zero_fill_size: 0,
    alignment: crate::page::Alignment::ONE,
    group: AllocGroup {
        protection: Protection::READ,
        lifetime: Lifetime::Standard,
    },
    hint: CodeHint::Normal,
}];

#[test]
fn what_is_live_is_in_reach_of_itself() {
    const MIDDLE: u64 = 0x7f00_0000_0000;
    let highest = MIDDLE + REACH - page();
    let lowest = MIDDLE + page() - REACH;
    let bases = [MIDDLE, highest + page(), highest, lowest, lowest, highest];
    let paper = Paper::new(Generation::Initialize, &bases);
    let manager = paper.manager(Options::default());
    let middle = allocate(&manager, &PAGE).unwrap().handle;
    let refused = |base: u64| {
        let error = allocate(&manager, &PAGE).unwrap_err();
        assert_eq!(error.status(), Status::WindowFull);
        assert!(error.message().contains("load libjitmem.so"), "{error}");
        assert_eq!(paper.given_back(), [[base]]);
    };
    refused(highest + page());
    let high = allocate(&manager, &PAGE).unwrap().handle;
    assert_eq!(manager.stats().span, REACH);
    refused(lowest);
    wait(|done| manager.core.abandon(high, done)).unwrap();
    let low = allocate(&manager, &PAGE).unwrap().handle;
    paper.given_back();
    refused(highest);
    assert_eq!(manager.stats().reserved, 2 * page());
    assert_eq!(manager.stats().failures, 3);
    for handle in [low, middle] {
        wait(|done| manager.core.abandon(handle, done)).unwrap();
    }
    assert_eq!(manager.stats().span, 0);
}

#[test]
fn what_is_live_is_in_reach_of_branches_if_the_host_chose_that() {
    const MIDDLE: u64 = 0x7f00_0000_0000;
    let last = MIDDLE + BRANCH_REACH - page();
    let paper = Paper::new(Generation::Initialize, &[MIDDLE, last + page(), last]);
    let manager = paper.manager(Options {
        window_size: BRANCH_REACH,
        ..Options::default()
    });
    allocate(&manager, &PAGE).unwrap();
    let error = allocate(&manager, &PAGE).unwrap_err();
    assert_eq!(error.status(), Status::WindowFull);
    assert!(
        error.message().contains("a window of 134217728 bytes"),
        "{error}"
    );
    allocate(&manager, &PAGE).unwrap();
    assert_eq!(manager.stats().span, BRANCH_REACH);
}

#[test]
fn each_jitdylib_is_in_reach_of_itself_if_the_host_chose_that() {
    const NEAR: u64 = 0x7f00_0000_0000;
    const FAR: u64 = NEAR + (4 << 30);
    let paper = Paper::new(Generation::Finalize, &[NEAR, FAR, NEAR, FAR, FAR]);
    let manager = paper.manager(Options {
        growth: GrowthPolicy::AnotherWindow,
        ..Options::default()
    });
    let allocate = |dylib| {
        let request = manager.request(PAGE.map(Ok), dylib)?;
        wait(|done| manager.core.allocate(request, done))
    };
    allocate(1).unwrap();
    allocate(2).unwrap();
    let error = allocate(2).unwrap_err();
    assert_eq!(error.status(), Status::WindowFull);
    assert!(error.message().contains("of JITDylib 0x2"), "{error}");
    // What belongs to none refers to nothing.
    allocate(0).unwrap();
    allocate(2).unwrap();
    assert_eq!(manager.stats().span, page());
}

#[test]
fn a_place_can_be_wished_for_but_not_chosen() {
    const NEAR: u64 = 0x7f00_0000_0000;
    let paper = Paper::new(Generation::Initialize, &[NEAR + REACH, NEAR]);
    let options = |placement| Options {
        placement,
        ..Options::default()
    };
    let manager = paper.manager(options(Placement::Near(NEAR)));
    let error = allocate(&manager, &PAGE).unwrap_err();
    assert_eq!(error.status(), Status::WindowFull);
    assert!(error.message().contains("wanted near"), "{error}");
    allocate(&manager, &PAGE).unwrap();
    let mapper = Mapper::reserving(LlvmSimpleMapper::new(paper).unwrap());
    let fixed = options(Placement::Fixed(NEAR));
    let error = wait(|done| Manager::create(&mapper, fixed, done))
        .err()
        .unwrap();
    assert_eq!(error.status(), Status::Unsupported);
}

#[test]
fn addresses_that_can_not_be_are_refused() {
    let bases = [0, 0x7f00_0000_0800, u64::MAX - 0xfff];
    let paper = Paper::new(Generation::Initialize, &bases);
    let manager = paper.manager(Options::default());
    for _ in bases {
        let error = allocate(&manager, &small_graph()).unwrap_err();
        assert_eq!(error.status(), Status::MapperFailed, "{error}");
    }
    assert_eq!(manager.stats().reserved, 0);
}

// ---- what is left when something fails ----

/// A note that an action ran is all that it leaves; the second one fails if its argument says so.
fn action(fails: bool) -> Vec<Action> {
    use crate::sys::wrapper_address;
    fn done(_: &[u8]) -> std::result::Result<Vec<u8>, String> {
        Ok(to_bytes(&Outcome(Ok(()))))
    }
    fn failed(_: &[u8]) -> std::result::Result<Vec<u8>, String> {
        Ok(to_bytes(&Outcome(Err("bad".to_owned()))))
    }
    let call = |function| wrapper_call(function, Vec::new());
    let last = if fails {
        wrapper_address(failed)
    } else {
        wrapper_address(done)
    };
    vec![
        Action {
            finalize: call(wrapper_address(done)),
            dealloc: call(wrapper_address(done)),
        },
        Action {
            finalize: call(last),
            dealloc: WrapperCall::default(),
        },
    ]
}

/// Some of everything that takes a message.
fn work(manager: &Manager) -> Result<()> {
    let mut result = Ok(());
    let mut keep = |answer: Result<()>| {
        if let (Ok(()), Err(error)) = (&result, answer) {
            result = Err(error);
        }
    };
    let mut handles = Vec::new();
    for actions in [action(false), Vec::new()] {
        let allocated = allocate(manager, &small_graph());
        let answer = allocated.and_then(|allocated| {
            wait(|done| manager.core.finalize(allocated.handle, actions, done))
        });
        keep(answer.map(|handle| handles.push(handle)));
    }
    let abandoned = allocate(manager, &small_graph());
    keep(abandoned.and_then(|allocated| wait(|done| manager.core.abandon(allocated.handle, done))));
    keep(deallocate(manager, &handles));
    result
}

/// Every message fails once, in each way: the failure is reported, nothing is lost that could be found
/// again, and the manager goes on.
#[test]
fn any_message_may_fail() {
    for generation in GENERATIONS {
        for trouble in [Trouble::NotSent, Trouble::Refused, Trouble::Unanswered] {
            let mut met = BTreeMap::new();
            for skip in 0.. {
                let executor = Arc::new(SimpleExecutor::new(generation));
                let manager = over(&executor, Options::default());
                executor.trouble(skip, trouble);
                let result = work(&manager);
                let Some(message) = executor.troubled() else {
                    result.unwrap();
                    break;
                };
                *met.entry(message).or_insert(0) += 1;
                let error = result.unwrap_err();
                assert!(error.to_string().len() > 20, "{message}: {error}");
                let stats = manager.stats();
                let left = (stats.live, stats.reserved, stats.in_flight, stats.finalized);
                assert_eq!(left, (0, 0, 0, 0), "{message} {trouble:?}");
                assert!(stats.failures > 0);
                work(&manager).unwrap();
                drop(manager);
                // The executor alone knows of a reservation without an answer; and what it was
                // not told to give back goes at its end.
                let lost = match (message, trouble) {
                    ("reserve_wrapper", Trouble::Unanswered) => 1..=1,
                    ("reserve_wrapper", _) => 0..=0,
                    ("release_wrapper" | "deallocate_wrapper", Trouble::Unanswered) => 0..=0,
                    ("release_wrapper" | "deallocate_wrapper", _) => 1..=2,
                    _ => 0..=0,
                };
                let reserved = executor.reserved();
                assert!(
                    lost.contains(&reserved),
                    "{message} {trouble:?}: {reserved}"
                );
            }
            // Installing, giving back, reserving.
            let counts: Vec<i32> = met.into_values().collect();
            assert_eq!(counts.iter().sum::<i32>(), 7);
            assert_eq!(counts.len(), 3);
        }
    }
}

#[test]
fn a_failing_action_gives_the_reservation_back() {
    for generation in GENERATIONS {
        let executor = Arc::new(SimpleExecutor::new(generation));
        let manager = over(&executor, Options::default());
        let handle = allocate(&manager, &small_graph()).unwrap().handle;
        let error = wait(|done| manager.core.finalize(handle, action(true), done)).unwrap_err();
        assert!(error.message().ends_with(": bad"), "{error}");
        assert_eq!(executor.reserved(), 0);
        assert_eq!(manager.stats().reserved, 0);
        // Nor is the executor told a second time.
        let messages = match generation {
            Generation::Finalize => 2,
            Generation::Initialize => 3,
        };
        assert_eq!(manager.stats().messages, messages);
    }
}

#[test]
fn a_failure_to_give_back_what_failed_is_told_too() {
    let executor = Arc::new(SimpleExecutor::new(Generation::Initialize));
    let manager = over(&executor, Options::default());
    let handle = allocate(&manager, &small_graph()).unwrap().handle;
    executor.trouble(1, Trouble::NotSent);
    let error = wait(|done| manager.core.finalize(handle, action(true), done)).unwrap_err();
    assert!(error.message().contains(": bad; then "), "{error}");
    assert!(error.message().ends_with("was not sent"), "{error}");
}

#[test]
fn a_manager_that_goes_in_the_middle_leaves_nothing() {
    for generation in GENERATIONS {
        let executor = Arc::new(SimpleExecutor::new(generation));
        let manager = over(&executor, Options::default());
        let [finalized, finalizing, in_flight, leaving] =
            [(); 4].map(|()| allocate(&manager, &small_graph()).unwrap().handle);
        for handle in [finalized, leaving] {
            wait(|done| manager.core.finalize(handle, action(false), done)).unwrap();
        }
        executor.hold();
        let (done, asked) = later();
        let request = manager.request(small_graph().map(Ok), 0).unwrap();
        manager.core.allocate(request, done);
        let (done, installed) = later();
        manager.core.finalize(finalizing, action(false), done);
        let (done, left) = later();
        manager.core.deallocate(&[leaving], done);
        assert!(manager.stats().in_flight == 2 && manager.stats().finalized == 2);
        assert!(
            deallocate(&manager, &[leaving]).is_err(),
            "it is on its way"
        );
        let _ = in_flight;
        drop(manager);
        assert!(asked.try_recv().is_err());
        executor.let_go();
        let error = asked.recv().unwrap().unwrap_err();
        assert!(error.message().contains("was freed"), "{error}");
        assert_eq!(installed.recv().unwrap().unwrap(), finalizing);
        left.recv().unwrap().unwrap();
        assert_eq!(executor.reserved(), 0);
        assert_eq!(Arc::strong_count(&executor), 1);
    }
}

#[test]
fn a_quota_counts_reservations_under_way() {
    let executor = Arc::new(SimpleExecutor::new(Generation::Initialize));
    let manager = over(
        &executor,
        Options {
            quota: Some(5 * page()),
            ..Options::default()
        },
    );
    executor.hold();
    let (done, answer) = later();
    let request = manager.request(small_graph().map(Ok), 0).unwrap();
    manager.core.allocate(request, done);
    let error = allocate(&manager, &small_graph()).unwrap_err();
    assert_eq!(error.status(), Status::QuotaExceeded, "{error}");
    assert_eq!(executor.reserved(), 0);
    executor.let_go();
    let handle = answer.recv().unwrap().unwrap().handle;
    assert!(allocate(&manager, &small_graph()).is_err());
    wait(|done| manager.core.abandon(handle, done)).unwrap();
    allocate(&manager, &small_graph()).unwrap();
}

#[test]
fn segments_of_finalize_lifetime_stay_until_the_whole_goes() {
    for generation in GENERATIONS {
        let manager = manager(Kind::Simple(generation), Options::default()).unwrap();
        let mut segments = small_graph();
        segments[0].group.lifetime = Lifetime::Finalize;
        let allocated = allocate(&manager, &segments).unwrap();
        let handle = finalize(&manager, allocated.handle).unwrap();
        assert_eq!(manager.stats().live, 384);
        read(allocated.segments[0].address, 256);
        deallocate(&manager, &[handle]).unwrap();
        assert_eq!(manager.stats().live, 0);
    }
}

#[test]
fn threads_have_reservations_side_by_side() {
    for kind in RESERVING {
        let manager = Arc::new(manager(kind, Options::default()).unwrap());
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let manager = Arc::clone(&manager);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let allocated = allocate(&manager, &small_graph()).unwrap();
                        let bytes = [thread; 256];
                        manager.core.write(allocated.handle, 0, 0, &bytes).unwrap();
                        let again = Arc::clone(&manager);
                        let nested = wait(|done| {
                            let then = Completion::new(move |answer: Result<u64>| {
                                answer.unwrap();
                                let request = again.request(small_graph().map(Ok), 0).unwrap();
                                again.core.allocate(request, done);
                            });
                            manager.core.finalize(allocated.handle, action(false), then);
                        });
                        assert_eq!(read(allocated.segments[0].address, 256), bytes);
                        let nested = nested.unwrap().handle;
                        wait(|done| manager.core.abandon(nested, done)).unwrap();
                        deallocate(&manager, &[allocated.handle]).unwrap();
                    }
                });
            }
        });
        let stats = manager.stats();
        assert_eq!((stats.live, stats.padding, stats.reserved), (0, 0, 0));
    }
}
