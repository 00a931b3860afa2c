// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A host that links for an executor which can't be trusted.

use crate::executor::{Belongings, belongings, wait_for};
use crate::hostile::{Hostile, OPEN, State};
use crate::input::Input;
use jitmem::manager::{GrowthPolicy, Manager, Options, Segment};
use jitmem::mapper::{Action, MemoryMapper, ServiceMapper, WrapperCall};
use jitmem::transport::Transport;
use jitmem::{AllocGroup, Lifetime, Placement, Protection, Status};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub struct Host {
    executor: Arc<Hostile>,
    serving: JoinHandle<()>,
    mapper: Arc<dyn MemoryMapper>,
    linked: Arc<Mutex<Linked>>,
    had: Belongings,
}

/// What the host has; changed by answers. Locked inside the executor's state.
#[derive(Default)]
struct Linked {
    manager: Option<Manager>,
    /// Not finalized, and finalized.
    in_flight: Vec<Memory>,
    live: Vec<Memory>,
}

struct Memory {
    handle: u64,
    content: Vec<u64>,
    /// First and last address of each segment that stays.
    ranges: Vec<(u64, u64)>,
}

impl Linked {
    /// Takes one of these out.
    fn one(all: &mut Vec<Memory>, input: &mut Input<'_>) -> Option<Memory> {
        let index = input.one_of(&(0..all.len()).collect::<Vec<_>>())?;
        Some(all.swap_remove(index))
    }

    /// Takes new memory, which is where the executor has reserved it, and nobody else's.
    fn add(&mut self, state: &State, memory: Memory) {
        for (first, last) in &memory.ranges {
            let mut windows = state.windows.iter();
            let inside = windows.any(|window| window.start.0 <= *first && *last < window.end.0);
            assert!(inside, "{first:#x} to {last:#x} lie in no window");
            let others = self.in_flight.iter().chain(&self.live);
            let mut others = others.flat_map(|other| &other.ranges);
            assert!(others.all(|other| other.1 < *first || *last < other.0));
        }
        self.in_flight.push(memory);
    }
}

impl Host {
    /// Opens a session with an executor that does what the script says.
    pub fn new(script: &[u8]) -> Host {
        let had = belongings();
        let (executor, serving) = Hostile::start(script);
        let transport: Arc<dyn Transport> = Arc::clone(&executor) as Arc<dyn Transport>;
        let mapper = ServiceMapper::shared(transport, OPEN, 0).expect("it lets itself be opened");
        Host {
            executor,
            serving,
            mapper: Arc::new(mapper),
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
            (7, Some(memory)) => {
                // Twice is once too often, and nobody else's affair.
                manager.abandon(memory.handle, self.executor.request(|_, _| ()));
                manager.abandon(
                    memory.handle,
                    self.executor.request(|_, answer| {
                        assert!(answer.is_err());
                    }),
                );
            }
            (8, Some(memory)) => {
                for (segment, size) in memory.content.iter().enumerate() {
                    let bytes = vec![0xcc; *size as usize];
                    manager
                        .write(memory.handle, segment, 0, &bytes)
                        .expect("it is all there");
                }
                self.linked().in_flight.push(memory);
            }
            (9..=12, Some(mut memory)) => {
                let actions = if kind < 11 {
                    Vec::new()
                } else {
                    input.some(3, action)
                };
                let linked = Arc::clone(&self.linked);
                let handle = memory.handle;
                let done = self
                    .executor
                    .request(move |_, answer: jitmem::Result<u64>| {
                        if let Ok(handle) = answer {
                            memory.handle = handle;
                            let mut linked = linked.lock().unwrap_or_else(PoisonError::into_inner);
                            linked.live.push(memory);
                        }
                    });
                manager.finalize(handle, actions, done);
            }
            (13, _) => {
                let handles: Vec<u64> = some.iter().flatten().map(|memory| memory.handle).collect();
                manager.deallocate(&handles, self.executor.request(|_, _| ()));
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
        Manager::create(Arc::clone(&self.mapper), options, done);
        self.executor.settle();
    }

    fn allocate(&self, manager: &Manager, input: &mut Input<'_>) {
        let mut segments = input.some(2, segment);
        segments.push(segment(input));
        let request = manager.request(segments.iter().copied().map(Ok), input.below(2) as u64);
        let Ok(request) = request else {
            return;
        };
        let linked = Arc::clone(&self.linked);
        let done = self.executor.request(move |state, answer| {
            let Ok(allocated): jitmem::Result<jitmem::manager::Allocated> = answer else {
                return;
            };
            let mut ranges = Vec::new();
            for (segment, memory) in segments.iter().zip(&allocated.segments) {
                assert!(memory.address.is_multiple_of(segment.alignment));
                let size = segment.content_size + segment.zero_fill_size;
                if segment.group.lifetime == Lifetime::Standard && size > 0 {
                    ranges.push((memory.address, memory.address + (size - 1)));
                }
            }
            let memory = Memory {
                handle: allocated.handle,
                content: segments
                    .iter()
                    .map(|segment| segment.content_size)
                    .collect(),
                ranges,
            };
            linked
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(state, memory);
        });
        manager.allocate(request, done);
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
            // The controller hangs up on whoever breaks the protocol, and has no more to do with it.
            serving.join().expect("the executor does not panic");
            let later = executor.request(|_, answer| {
                let error = answer.expect_err("nobody is there");
                assert_eq!(error.status(), Status::Disconnected, "{error}");
            });
            mapper.reserve(1 << 20, 1 << 20, Placement::Default, later);
            drop(mapper);
        } else {
            drop(mapper);
            serving.join().expect("the executor does not panic");
        }
        let State { asked, ended, .. } = *executor.state();
        assert_eq!(asked, ended, "requests have not come to an end");
        drop(executor);
        wait_for(had);
    }
}

fn segment(input: &mut Input<'_>) -> Segment {
    let protections = [
        Protection::READ_EXEC,
        Protection::READ_WRITE,
        Protection::READ,
    ];
    Segment {
        content_size: [16, 100, 5000, 200_000][input.below(4)],
        zero_fill_size: [0, 1, 70_000][input.below(3)],
        alignment: [16, 1, 4096][input.below(3)],
        group: AllocGroup {
            protection: protections[input.below(3)],
            lifetime: [Lifetime::Standard, Lifetime::Finalize][usize::from(input.below(8) == 1)],
        },
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
