// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Windows that become empty while anything in them is being changed: whatever the order, those that are
//! not needed are gone once nothing is under way.

use super::forks::{Child, alone};
use super::*;
use crate::callback_queue::Delivery;
use crate::mapper::{
    Capabilities, Chunk, Deinitialization, Discards, Prepared, SegmentContents, Teardown,
};
use crate::memory::pages::PageSet;
use crate::memory::writer::Writer;
use std::sync::{OnceLock, Weak};
use std::thread;

const WINDOW: u64 = 1 << 20;
/// Of a segment; a request has up to three.
const LARGEST: u64 = 200 << 10;
const DYLIBS: u64 = 4;
/// Runs of each kind, and steps of each before its end begins.
const ROUNDS: u64 = 3;
const STEPS: usize = 60;
/// So many calls of a mapper may be inside one another.
const DEEPEST: usize = 2;

/// After so many more steps everything has ended.
const MOST_STEPS: usize = 100_000;

/// What a thread may do next, or a mapper may answer.
type Step = Box<dyn FnOnce() + Send>;

struct Model {
    random: Mutex<Random>,
    manager: OnceLock<Manager>,
    in_flight: Mutex<Vec<u64>>,
    finalized: Mutex<Vec<u64>>,
    /// Answers that the mapper owes.
    owed: Mutex<Vec<Step>>,
    /// Requests without an answer.
    waiting: Mutex<usize>,
    depth: Mutex<usize>,
    /// Processes that were forked and live; none are forked if this is.
    children: Option<Mutex<Vec<Child>>>,
    /// Nothing is allocated any more.
    ending: Mutex<bool>,
    most_windows: Mutex<u64>,
}

/// A mapper in which other threads do things in the middle of each call, and which answers in any order.
struct Interleaved {
    inner: InProcess,
    model: Weak<Model>,
    /// It answers for chunks later.
    later: bool,
    /// How parts of chunks are given back.
    discards: Discards,
}

impl Model {
    fn below(&self, bound: u64) -> u64 {
        self.random.lock().below(bound)
    }

    fn take_any<T>(&self, of: &Mutex<Vec<T>>) -> Option<T> {
        let mut of = of.lock();
        let most = (of.len() as u64).checked_sub(1)?;
        let index = self.below(most + 1) as usize;
        Some(of.swap_remove(index))
    }

    fn manager(&self) -> &Manager {
        self.manager.get().unwrap()
    }

    fn allocate(self: &Arc<Self>) {
        let segments = (0..1 + self.below(3)).map(|_| {
            let protection = [
                Protection::READ_EXEC,
                Protection::READ,
                Protection::READ_WRITE,
            ][self.below(3) as usize];
            segment(1 + self.below(LARGEST), 0, 16, protection)
        });
        let segments: Vec<Segment> = segments.collect();
        let request = self
            .manager()
            .request(segments.into_iter().map(Ok), self.below(DYLIBS))
            .unwrap();
        // As hosts do: first in the form that does not wait.
        let answer = match self.below(2) {
            0 => self.manager().core.try_allocate(&request),
            _ => None,
        };
        *self.waiting.lock() += 1;
        let model = Arc::clone(self);
        let answered = Completion::new(move |answer: Result<Allocated>| {
            *model.waiting.lock() -= 1;
            // A JITDylib's window may be full.
            if let Ok(allocated) = answer {
                model.in_flight.lock().push(allocated.handle);
            }
        });
        match answer {
            Some(answer) => answered.complete(answer),
            None => self.manager().core.allocate(request, answered),
        }
        let windows = self.manager().stats().windows;
        let mut most = self.most_windows.lock();
        *most = windows.max(*most);
    }

    fn finalize(self: &Arc<Self>, handle: u64) {
        let model = Arc::clone(self);
        let finalized = Completion::new(move |answer| {
            answer.unwrap();
            model.finalized.lock().push(handle);
        });
        self.manager().core.finalize(handle, Vec::new(), finalized);
    }

    fn step(self: &Arc<Self>) {
        let ending = *self.ending.lock();
        self.fork_or_end_one(ending);
        match self.below(8) {
            0..=2 if !ending => self.allocate(),
            3 => {
                if let Some(handle) = self.take_any(&self.in_flight) {
                    self.finalize(handle);
                }
            }
            4 => {
                if let Some(handle) = self.take_any(&self.in_flight) {
                    let done = Completion::new(|answer: Result<()>| answer.unwrap());
                    self.manager().core.abandon(handle, done);
                }
            }
            5 | 6 => {
                if let Some(handle) = self.take_any(&self.finalized) {
                    let done = Completion::new(|answer: Result<()>| answer.unwrap());
                    self.manager().core.deallocate(&[handle], done);
                }
            }
            _ => {
                if let Some(answer) = self.take_any(&self.owed) {
                    answer();
                }
            }
        }
    }

    fn fork_or_end_one(&self, ending: bool) {
        let Some(children) = &self.children else {
            return;
        };
        match self.below(10) {
            0 if !ending => children.lock().push(Child::new(|| true)),
            1 => {
                if let Some(child) = self.take_any(children) {
                    assert!(child.passes());
                }
            }
            _ => {}
        }
    }

    /// What other threads do before a call of the mapper goes on.
    fn others(self: &Arc<Self>) {
        if *self.depth.lock() >= DEEPEST {
            return;
        }
        *self.depth.lock() += 1;
        for _ in 0..self.below(4) {
            // In another thread, for which no mapper's call is under way.
            thread::scope(|scope| scope.spawn(|| self.step()).join().unwrap());
        }
        *self.depth.lock() -= 1;
    }

    /// What the processes that have ended saw goes too. The model refuses some of it.
    fn give_all_back(&self) {
        // Others do nothing meanwhile.
        *self.depth.lock() = DEEPEST;
        for _ in 0..20 {
            let _ = self.manager().trim();
            while let Some(answer) = self.take_any(&self.owed) {
                answer();
            }
        }
    }

    fn is_quiet(&self) -> bool {
        let live = self.in_flight.lock().len() + self.finalized.lock().len();
        live + self.owed.lock().len() + *self.waiting.lock() == 0
    }
}

impl Interleaved {
    fn answer<T: Send + 'static>(&self, done: Completion<T>, answer: Result<T>) {
        match self.model.upgrade() {
            Some(model) if model.manager.get().is_some() => {
                let answer = move || done.complete(answer);
                model.owed.lock().push(Box::new(answer));
            }
            _ => done.complete(answer),
        }
    }

    /// Lets others go first; whether the system refuses.
    fn refuses(&self) -> Result<()> {
        let Some(model) = self.model.upgrade() else {
            return Ok(());
        };
        if model.manager.get().is_none() {
            return Ok(());
        }
        model.others();
        match model.below(16) {
            0 => Err(Error::new(Status::OutOfMemory, "refused by the model")),
            _ => Ok(()),
        }
    }
}

impl MapperBase for Interleaved {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }
}

impl MemoryMapper for Interleaved {
    fn reserve(&self, size: u64, least: u64, placement: Placement, done: Completion<Reserved>) {
        let reserved = wait(|done| self.inner.reserve(size, least, placement, done));
        self.answer(done, reserved);
    }

    fn prepare(&self, chunk: Chunk) -> Result<Prepared> {
        // A request that finds no memory is refused, which the model does not want.
        let _ = self.refuses();
        let prepared = self.inner.prepare(chunk)?;
        Ok(prepared.discarding(self.discards))
    }

    fn initialize(
        &self,
        segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<Teardown>,
    ) {
        self.inner.initialize(segments, actions, done);
    }

    fn deinitialize(
        &self,
        allocations: Vec<Deinitialization>,
        done: Completion<()>,
        delivery: &mut Delivery,
    ) {
        self.inner.deinitialize(allocations, done, delivery);
    }

    fn reclaim(&self, chunk: AddressRange) -> Result<()> {
        self.refuses()?;
        self.inner.reclaim(chunk)
    }

    fn discard(&self, pages: AddressRange) -> Result<()> {
        self.refuses()?;
        self.inner.discard(pages)
    }

    fn keep_only(&self, _: AddressRange, _: PageSet, done: Completion<Option<Writer>>) {
        let answer = self.refuses().map(|()| None);
        self.answer(done, answer);
    }

    fn changes_chunks_later(&self) -> bool {
        self.later
    }

    fn prepare_later(&self, chunk: Chunk, done: Completion<Prepared>) {
        let prepared = self.prepare(chunk);
        self.answer(done, prepared);
    }

    fn reclaim_later(&self, chunk: AddressRange, done: Completion<()>) {
        let reclaimed = self.reclaim(chunk);
        self.answer(done, reclaimed);
    }

    fn release(&self, window: AddressRange, done: Completion<()>) {
        self.inner.release(window, done);
    }
}

fn run(seed: u64, later: bool, discards: Discards, forking: bool) -> u64 {
    let model = Arc::new_cyclic(|weak| {
        let inner = InProcess::new(InProcessKind::TwoViews).unwrap();
        let mapper = Mapper::new(Interleaved {
            inner,
            model: Weak::clone(weak),
            later,
            discards,
        });
        let options = Options {
            window_size: WINDOW,
            growth: GrowthPolicy::AnotherWindow,
            ..Options::default()
        };
        let manager = wait(|done| Manager::create(&mapper, options, done)).unwrap();
        Model {
            random: Mutex::new(Random::new(seed)),
            manager: manager.into(),
            in_flight: Mutex::default(),
            finalized: Mutex::default(),
            owed: Mutex::default(),
            waiting: Mutex::default(),
            depth: Mutex::default(),
            children: forking.then(Mutex::default),
            ending: Mutex::default(),
            most_windows: Mutex::default(),
        }
    });
    (0..STEPS).for_each(|_| model.step());
    *model.ending.lock() = true;
    let ended = (0..MOST_STEPS).any(|_| {
        model.step();
        model.is_quiet()
    });
    let at = format!("seed {seed}, {later}, {discards:?}");
    assert!(ended, "{at}: {} requests wait", *model.waiting.lock());
    if let Some(children) = &model.children {
        let passes = |child: Child| assert!(child.passes());
        children.lock().drain(..).for_each(passes);
        model.give_all_back();
    }
    let stats = model.manager().stats();
    assert_eq!(stats.windows, 1, "{at}: {stats:?}");
    *model.most_windows.lock()
}

#[test]
fn windows_go_in_whatever_order_things_end() {
    let seed = seed();
    let mut most = 0;
    for number in 0..rounds(ROUNDS).max(1) {
        for later in [false, true] {
            for discards in [Discards::Pages, Discards::AllBut] {
                most = most.max(run(seed.wrapping_add(number), later, discards, false));
            }
        }
    }
    assert!(
        most > 2,
        "seed {seed}: no more than {most} windows at a time"
    );
}

#[test]
fn processes_are_forked_in_the_middle_of_it() {
    alone(|| {
        let seed = seed();
        for &later in cases(&[true, false]) {
            for &discards in cases(&[Discards::Pages, Discards::AllBut]) {
                run(seed, later, discards, true);
            }
        }
    });
}
