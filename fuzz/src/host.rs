// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host that links for an executor which can't be trusted.

use crate::executor::{Belongings, belongings, wait_for};
use crate::hostile::{Hostile, OPEN, State};
use crate::input::Input;
use jitmem::mapper::ExecutorService;
use jitmem::transport::Transport;
use jitmem::{
    Action, Alignment, AllocGroup, AllocationHandle, Dylib, GrowthPolicy, InFlight, Lifetime,
    Manager, Mapper, Options, Protection, Result, Segment, Status, WrapperCall,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub struct Host {
    executor: Arc<Hostile>,
    serving: JoinHandle<()>,
    mapper: Mapper,
    linked: Arc<Mutex<Linked>>,
    had: Belongings,
}

/// What the host has; changed by answers. Locked inside the executor's state.
#[derive(Default)]
struct Linked {
    manager: Option<Manager>,
    /// Not finalized, and finalized.
    in_flight: Vec<(InFlight, Memory)>,
    live: Vec<(AllocationHandle, Memory)>,
}

struct Memory {
    content: Vec<u64>,
    /// First and last address of each segment that stays.
    ranges: Vec<(u64, u64)>,
}

impl Linked {
    /// Takes one of these out.
    fn one<T>(all: &mut Vec<T>, input: &mut Input<'_>) -> Option<T> {
        let index = input.one_of(&(0..all.len()).collect::<Vec<_>>())?;
        Some(all.swap_remove(index))
    }

    /// Takes new memory, which is where the executor has reserved it, and no other window's.
    fn add(&mut self, state: &State, in_flight: InFlight, memory: Memory) {
        for (first, last) in &memory.ranges {
            let mut windows = state.windows.iter();
            let inside = windows.any(|window| window.start.0 <= *first && *last < window.end.0);
            assert!(inside, "{first:#x} to {last:#x} lie in no window");
            let in_flight = self.in_flight.iter().map(|(_, memory)| memory);
            let others = in_flight.chain(self.live.iter().map(|(_, memory)| memory));
            let mut others = others.flat_map(|other| &other.ranges);
            assert!(others.all(|other| other.1 < *first || *last < other.0));
        }
        self.in_flight.push((in_flight, memory));
    }
}

impl Host {
    /// Opens a session with an executor that does what the script says.
    pub fn new(script: &[u8]) -> Host {
        let had = belongings();
        let (executor, serving) = Hostile::start(script);
        let transport: Arc<dyn Transport> = Arc::clone(&executor) as Arc<dyn Transport>;
        let service = ExecutorService {
            open: Some(OPEN),
            ..ExecutorService::default()
        };
        let mapper = Mapper::shared(transport, service).expect("it lets itself be opened");
        Host {
            executor,
            serving,
            mapper,
            linked: Arc::default(),
            had,
        }
    }

    /// Asks for something.
    pub fn step(&self, input: &mut Input<'_>) {
        let kind = input.below(16);
        let mut now = self.linked();
        let Some(manager) = now.manager.take_if(|_| kind < 15) else {
            drop(now);
            return self.create(input);
        };
        let Linked {
            in_flight, live, ..
        } = &mut *now;
        let one = match kind {
            7..=12 => Linked::one(in_flight, input),
            _ => None,
        };
        let some = match kind {
            13 => input.some(3, |input| Linked::one(live, input)),
            _ => Vec::new(),
        };
        // What is asked for may be answered at once.
        drop(now);
        match (kind, one) {
            (0..=6, _) => self.allocate(&manager, input),
            (7, Some((in_flight, _))) => in_flight.abandon_async(self.executor.request(|_, _| ())),
            (8, Some((mut in_flight, memory))) => {
                for (segment, size) in memory.content.iter().enumerate() {
                    let bytes = vec![0xcc; *size as usize];
                    let written = in_flight.write(segment, 0, &bytes);
                    written.expect("it is all there");
                }
                self.linked().in_flight.push((in_flight, memory));
            }
            (9..=12, Some((in_flight, memory))) => {
                let actions = if kind < 11 {
                    Vec::new()
                } else {
                    input.some(3, action)
                };
                let linked = Arc::clone(&self.linked);
                let done = self.executor.request(move |_, answer: Result<_>| {
                    if let Ok(handle) = answer {
                        let mut linked = linked.lock().unwrap_or_else(PoisonError::into_inner);
                        linked.live.push((handle, memory));
                    }
                });
                in_flight.finalize_async(actions, done);
            }
            (13, _) => {
                let handles = some.into_iter().flatten().map(|(handle, _)| handle);
                manager.deallocate_async(handles, self.executor.request(|_, _| ()));
            }
            _ => self.executor.catch_up(),
        }
        self.linked().manager = Some(manager);
        self.executor.settle();
    }

    fn linked(&self) -> MutexGuard<'_, Linked> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the manager, which waits for the executor.
    fn forget(&self) {
        let before = std::mem::take(&mut *self.linked());
        drop(before);
    }

    /// Begins anew with another manager.
    fn create(&self, input: &mut Input<'_>) {
        // An executor that does not answer holds up for a while who frees a manager.
        self.executor.hurry();
        self.forget();
        self.executor.hold();
        let options = Options {
            window_size: [1 << 20, 64 << 10, 1 << 30][input.below(3)],
            growth: [GrowthPolicy::AnotherWindow, GrowthPolicy::Error][input.below(2)],
            ..Options::default()
        };
        let linked = Arc::clone(&self.linked);
        let done = self.executor.request(move |_, answer| {
            let mut linked = linked.lock().unwrap_or_else(PoisonError::into_inner);
            linked.manager = answer.ok();
        });
        Manager::new_async(&self.mapper, options, done);
        self.executor.settle();
    }

    fn allocate(&self, manager: &Manager, input: &mut Input<'_>) {
        let mut segments = input.some(2, segment);
        segments.push(segment(input));
        let (linked, wanted) = (Arc::clone(&self.linked), segments.clone());
        let done = self
            .executor
            .request(move |state, answer: Result<InFlight>| {
                let Ok(in_flight) = answer else {
                    return;
                };
                let mut ranges = Vec::new();
                for (index, segment) in segments.iter().enumerate() {
                    let address = in_flight.address(index);
                    assert!(segment.alignment.divides(address));
                    let size = segment.content_size + segment.zero_fill_size;
                    if segment.group.lifetime == Lifetime::Standard && size > 0 {
                        ranges.push((address, address + (size - 1)));
                    }
                }
                let memory = Memory {
                    content: segments
                        .iter()
                        .map(|segment| segment.content_size)
                        .collect(),
                    ranges,
                };
                linked
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .add(state, in_flight, memory);
            });
        let dylib = Dylib(input.below(2) as u64);
        manager.allocate_async(wanted, dylib, done);
    }

    /// Ends the session, with an executor that is there or has died. Nothing of it is left.
    pub fn end(self, died: bool) {
        if died {
            self.executor.end();
        }
        self.executor.hurry();
        self.forget();
        let Host {
            executor,
            serving,
            mapper,
            had,
            ..
        } = self;
        let broken = executor.state().broken;
        if broken {
            // The controller hangs up on a peer that breaks the protocol.
            serving.join().expect("the executor does not panic");
            let later = executor.request(|_, answer: Result<Manager>| {
                let error = answer.expect_err("no executor is there");
                assert_eq!(error.status(), Status::Disconnected, "{error}");
            });
            Manager::new_async(&mapper, Options::default(), later);
            drop(mapper);
        } else {
            drop(mapper);
            serving.join().expect("the executor does not panic");
        }
        executor.all_end();
        drop(executor);
        wait_for(had);
    }
}

const ALIGNMENTS: [Alignment; 3] = [
    Alignment::new(16).unwrap(),
    Alignment::ONE,
    Alignment::new(4096).unwrap(),
];

fn segment(input: &mut Input<'_>) -> Segment {
    let protections = [
        Protection::READ_EXEC,
        Protection::READ_WRITE,
        Protection::READ,
    ];
    Segment {
        content_size: [16, 100, 5000, 200_000][input.below(4)],
        zero_fill_size: [0, 1, 70_000][input.below(3)],
        alignment: ALIGNMENTS[input.below(3)],
        group: AllocGroup::new(
            protections[input.below(3)],
            [Lifetime::Standard, Lifetime::Finalize][usize::from(input.below(8) == 1)],
        ),
    }
}

fn action(input: &mut Input<'_>) -> Action {
    let size = [0, 100, 70_000][input.below(3)];
    // SAFETY: the executor calls nothing.
    let call = || unsafe { WrapperCall::new(1, vec![1; size]) };
    Action {
        finalize: call(),
        dealloc: call(),
    }
}
