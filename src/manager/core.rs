// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Either kind of manager, as its hosts' interfaces have it: handles are numbers, answers go to
//! completions.

use super::arenas::Arenas;
use super::flow::{Flow, child_without_handlers};
use super::in_flight::ContentWriters;
use super::label::Label;
use super::lookup::{self, Location, ManagerReader, lookup_in};
use super::reservations::Reservations;
use super::tracking::{Pending, Tracking, named};
use super::windows::Windows;
use super::{Allocated, LayoutItem, Manager, Options, Request, Segment, Stats};
use crate::callback_queue::Delivery;
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::mapper::{Action, Capabilities, Kind, Mapper, MapperInterface, Registration, Reserved};
use crate::memory::staged::Adoption;
use crate::sys;
use crate::transport::deadlines::limited;
use crate::transport::limits::Asked;
use std::sync::Arc;

/// A manager's flow; its clones are the same one.
#[derive(Clone)]
pub(crate) struct Core(Division);

/// What is handed out in parts. It follows from the mapper.
#[derive(Clone)]
enum Division {
    Windows(Arc<Arenas>),
    Reservations(Arc<Flow<Reservations>>),
}

/// What both kinds do alike, by the first arena or by the one that has an allocation.
macro_rules! either {
    ($core:expr, $flow:ident => $does:expr) => {
        match &$core.0 {
            Division::Windows(arenas) => {
                let $flow = &arenas.first;
                $does
            }
            Division::Reservations($flow) => $does,
        }
    };
    ($core:expr, $handle:expr, $flow:ident => $does:expr) => {
        match &$core.0 {
            Division::Windows(arenas) => {
                let $flow = arenas.of($handle);
                $does
            }
            Division::Reservations($flow) => $does,
        }
    };
}

/// The error of a manager that can't defer.
pub(super) fn nothing_waits() -> Error {
    let message = "defer reclamation: LLVM's memory manager service runs deallocation actions and \
                   frees memory in one step; load libjitmem.so into the executor, or link jitmem's \
                   service";
    Error::new(Status::Unsupported, message)
}

impl Core {
    /// Reserves the first window, if the mapper has windows. The options are checked.
    pub(super) fn create(
        mapper: &Mapper,
        options: Options,
        least_window: u64,
        done: Completion<Manager>,
    ) {
        if !sys::children_are_known() {
            return done.complete(Err(child_without_handlers()));
        }
        lookup::prepare();
        let page = mapper.capabilities().page_size;
        match mapper.interface().clone() {
            MapperInterface::Reservations(mapper) => {
                let memory = Reservations::new(page, &options);
                let flow = memory.map(|memory| Flow::new(mapper, memory, options));
                done.complete(flow.map(|flow| Manager {
                    core: Core(Division::Reservations(flow)),
                }));
            }
            MapperInterface::Windows(mapper) => {
                let (size, placement) = (options.window_size, options.placement);
                let memory = Windows::new(mapper.capabilities(), &options);
                let flow = Flow::new(Arc::clone(&mapper), memory, options);
                let reserved = done.map(move |answer: Result<Reserved>| {
                    let reserved = flow.in_reach(answer?)?;
                    flow.tracking.first_window(reserved.range);
                    flow.space.lock().memory.add(reserved);
                    let core = Core(Division::Windows(Arenas::new(flow)));
                    Ok(Manager { core })
                });
                let reserved = match mapper.deadline(Asked::SetUp) {
                    Some(deadline) => {
                        let mapper = Arc::clone(&mapper);
                        limited(reserved, deadline, None, move |answer, _| {
                            if let Ok(Reserved { range, .. }) = answer {
                                mapper.release(range, Completion::new(|_| ()));
                            }
                        })
                    }
                    None => reserved,
                };
                mapper.reserve(size, least_window, placement, reserved);
            }
        }
    }

    /// What registers frames in the executor.
    pub(crate) fn registration(&self) -> Result<Registration> {
        let known = either!(self, flow => flow.mapper.registration());
        known.ok_or_else(|| {
            Error::new(
                Status::Unsupported,
                "register eh-frames: it is not known what does so in this manager's executor; pass actions of \
                 the host's own",
            )
        })
    }

    /// Whether the manager was freed.
    pub(super) fn is_closed(&self) -> bool {
        either!(self, flow => flow.is_closed())
    }

    pub(super) fn check_process(&self) -> Result<()> {
        either!(self, flow => flow.check_process())
    }

    pub(super) fn tracking(&self) -> &Arc<Tracking> {
        either!(self, flow => &flow.tracking)
    }

    /// Gives a request a label for the JITDylib that it has, and its refusal the name.
    pub(crate) fn labelled(&self, request: Result<Request>, label: Label) -> Result<Request> {
        match request {
            Ok(request) => request.labelled(label).or_else(
                |error| either!(self, flow => flow.counted(Err(error.context("allocate")))),
            ),
            Err(error) if label.is_plain() => Err(error),
            Err(error) => Err(error.context(label)),
        }
    }

    pub(super) fn mapper(&self) -> &Capabilities {
        either!(self, flow => flow.mapper.capabilities())
    }

    /// See [`Manager::request`].
    pub(super) fn request(
        &self,
        segments: impl IntoIterator<Item = Result<Segment>>,
        dylib: u64,
    ) -> Result<Request> {
        either!(self, flow => {
            let request = flow
                .check_process()
                .and_then(|()| Request::new(segments, dylib, flow.options.window_size));
            request.or_else(|error| flow.counted(Err(error.context("allocate"))))
        })
    }

    /// Allocates what was requested.
    pub(crate) fn allocate(&self, request: Request, done: Completion<Allocated>) {
        if !self.tracking().wants(&request) {
            return self.allocate_unnoted(request, done);
        }
        let done = match self.begin(&request) {
            Ok(pending) => Completion::with_delivery(move |answer, delivery| {
                done.complete_with(pending.answered(answer, delivery), delivery);
            }),
            Err(error) => return done.complete(Err(error)),
        };
        self.allocate_unnoted(request, done);
    }

    fn allocate_unnoted(&self, request: Request, done: Completion<Allocated>) {
        match &self.0 {
            Division::Windows(arenas) => arenas.allocate(request, done),
            Division::Reservations(flow) => flow.allocate(request, done),
        }
    }

    /// [`Core::allocate`] for a caller that waits for the answer.
    pub(crate) fn allocate_and_wait(&self, request: Request) -> Result<Allocated> {
        if !self.tracking().wants(&request) {
            return self.allocate_untold(request);
        }
        let pending = self.begin(&request)?;
        let answer = self.allocate_untold(request);
        pending.answered(answer, &mut Delivery::Inline)
    }

    fn allocate_untold(&self, request: Request) -> Result<Allocated> {
        match &self.0 {
            Division::Windows(arenas) if arenas.first.is_inside_mapper() => {
                arenas.first.allocate_inside_mapper(&request)
            }
            _ => {
                let answer = self
                    .at_once()
                    .and_then(|arenas| arenas.try_allocate(&request));
                answer.unwrap_or_else(|| wait(|done| self.allocate_unnoted(request, done)))
            }
        }
    }

    /// The flow of a manager whose mapper does all that it is asked for at once, so that a caller that
    /// waits can most often be answered without a completion.
    fn at_once(&self) -> Option<&Arc<Arenas>> {
        let Division::Windows(arenas) = &self.0 else {
            return None;
        };
        let kind = arenas.first.mapper.capabilities().kind;
        matches!(kind, Kind::TwoViews | Kind::Mprotect | Kind::InPlace).then_some(arenas)
    }

    /// [`Core::allocate`] if that takes no waiting, else `None` and nothing is done.
    pub(crate) fn try_allocate(&self, request: &Request) -> Option<Result<Allocated>> {
        match &self.0 {
            Division::Windows(arenas) if !arenas.first.tracking.wants(request) => {
                arenas.try_allocate(request)
            }
            Division::Windows(arenas) => self.try_allocate_tracked(arenas, request),
            Division::Reservations(_) => None,
        }
    }

    #[cold]
    fn try_allocate_tracked(
        &self,
        arenas: &Arc<Arenas>,
        request: &Request,
    ) -> Option<Result<Allocated>> {
        match self.begin(request) {
            Ok(pending) => {
                let answer = arenas.try_allocate(request)?;
                Some(pending.answered(answer, &mut Delivery::Inline))
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn begin(&self, request: &Request) -> Result<Pending> {
        either!(self, flow => flow.counted(flow.tracking.begin(request)))
    }

    /// Makes the content visible in the executor and runs the finalize actions. On failure the
    /// memory is free again.
    pub(crate) fn finalize(&self, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        if !self.tracking().is_active() {
            return either!(self, handle, flow => flow.finalize(handle, actions, done));
        }
        let tracking = Arc::clone(self.tracking());
        let allocation = tracking.find(handle);
        let told = Completion::with_delivery(move |answer: Result<u64>, delivery| {
            tracking.finalize_answered(handle, &answer, delivery);
            drop(tracking);
            done.complete_with(named(allocation.as_ref(), answer), delivery);
        });
        either!(self, handle, flow => flow.finalize(handle, actions, told));
    }

    /// [`Core::finalize`] for a caller that waits for the answer.
    pub(crate) fn finalize_and_wait(&self, handle: u64, actions: Vec<Action>) -> Result<u64> {
        if self.tracking().is_active() {
            return self.finalize_and_tell(handle, actions);
        }
        if let Some(arenas) = self.at_once().filter(|_| actions.is_empty()) {
            if let Some(answer) = arenas.of(handle).try_finalize(handle) {
                return answer.map(|()| handle);
            }
        }
        wait(|done| either!(self, handle, flow => flow.finalize(handle, actions, done)))
    }

    #[cold]
    fn finalize_and_tell(&self, handle: u64, actions: Vec<Action>) -> Result<u64> {
        let allocation = self.tracking().find(handle);
        let answer =
            wait(|done| either!(self, handle, flow => flow.finalize(handle, actions, done)));
        let tracking = self.tracking();
        tracking.finalize_answered(handle, &answer, &mut Delivery::Inline);
        named(allocation.as_ref(), answer)
    }

    /// [`Core::finalize`] without actions if that takes no waiting, else `None` and nothing is done.
    pub(crate) fn try_finalize(&self, handle: u64) -> Option<Result<()>> {
        match &self.0 {
            Division::Windows(arenas) => arenas.of(handle).try_finalize_and_tell(handle),
            Division::Reservations(_) => None,
        }
    }

    /// Gives up an allocation that was not finalized.
    pub(crate) fn abandon(&self, handle: u64, done: Completion<()>) {
        let done = self.naming(&[handle], done);
        either!(self, handle, flow => flow.abandon(handle, done));
    }

    /// Runs the deallocation actions of finalized allocations, last to first, and frees them.
    /// Nothing is done if any handle is wrong.
    pub(crate) fn deallocate(&self, handles: &[u64], done: Completion<()>) {
        let done = self.naming(handles, done);
        match &self.0 {
            Division::Windows(arenas) => arenas.deallocate(handles, done),
            Division::Reservations(flow) => flow.deallocate(handles, done),
        }
    }

    /// [`Core::deallocate`] for a caller that waits for the answer.
    pub(crate) fn deallocate_and_wait(&self, handles: &[u64]) -> Result<()> {
        let alone = self.at_once().and_then(|arenas| arenas.of_all(handles));
        if let Some(answer) = alone.and_then(|flow| flow.try_deallocate(handles)) {
            return answer;
        }
        if let Division::Windows(arenas) = &self.0 {
            arenas.check_own_scopes(handles)?;
        }
        wait(|done| self.deallocate(handles, done))
    }

    /// Ends an epoch and gives its number.
    pub(crate) fn advance_epoch(&self) -> Result<u64> {
        let flow = self.windows().ok_or_else(nothing_waits)?;
        flow.check_process()?;
        Ok(flow.space.lock().advance_epoch())
    }

    /// Frees what was deallocated up to an epoch; answers with its bytes.
    pub(crate) fn reclaim(&self, epoch: u64, done: Completion<u64>) {
        match self.windows() {
            Some(flow) => flow.reclaim_deferred(epoch, done),
            None => done.complete(Err(nothing_waits())),
        }
    }

    /// Whether an allocation of a manager that divides windows is finalized and not deallocated.
    pub(crate) fn is_finalized(&self, handle: u64) -> bool {
        self.windows_of(handle).is_some_and(|flow| {
            let space = flow.space.lock();
            space.records.find_finalized(handle).is_ok()
        })
    }

    /// The flow of the arena that has an allocation, of a manager that divides windows.
    pub(super) fn windows_of(&self, handle: u64) -> Option<&Arc<Flow<Windows>>> {
        match &self.0 {
            Division::Windows(arenas) => Some(arenas.of(handle)),
            Division::Reservations(_) => None,
        }
    }

    /// The flow of a manager that divides windows: its first arena's.
    pub(super) fn windows(&self) -> Option<&Arc<Flow<Windows>>> {
        match &self.0 {
            Division::Windows(arenas) => Some(&arenas.first),
            Division::Reservations(_) => None,
        }
    }

    /// [`Core::deallocate`] if that takes no waiting and no action, else `None` and nothing is done.
    pub(crate) fn try_deallocate(&self, handles: &[u64]) -> Option<Result<()>> {
        match &self.0 {
            Division::Windows(arenas) => arenas.of_all(handles)?.try_deallocate(handles),
            Division::Reservations(_) => None,
        }
    }

    /// Says in an error which allocation it is about.
    fn named<T>(&self, handle: u64, answer: Result<T>) -> Result<T> {
        match &answer {
            Ok(_) => answer,
            Err(_) => named(self.tracking().find(handle).as_ref(), answer),
        }
    }

    /// The same for an answer that is still to come, if it is about one allocation.
    fn naming(&self, handles: &[u64], done: Completion<()>) -> Completion<()> {
        match handles {
            [one] => match self.tracking().find(*one) {
                Some(allocation) => done.map(move |answer| named(Some(&allocation), answer)),
                None => done,
            },
            _ => done,
        }
    }

    /// Writes into an in-flight allocation with all checks; for hosts that hold no pointer.
    pub(crate) fn write(
        &self,
        handle: u64,
        segment: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let answer = either!(self, handle, flow => flow.write(handle, segment, offset, bytes));
        self.named(handle, answer)
    }

    /// See [`InFlight::contents`](super::InFlight::contents).
    ///
    /// # Safety
    /// It is used only as long as the allocation is in flight.
    #[allow(unsafe_code)]
    pub(super) unsafe fn contents(&self, handle: u64, segments: usize) -> Result<ContentWriters> {
        // SAFETY: as the caller says.
        let answer = either!(self, handle, flow => unsafe { flow.contents(handle, segments) });
        self.named(handle, answer)
    }

    /// See [`Contents::adopt`](super::in_flight::Contents::adopt).
    pub(super) fn adopt(
        &self,
        handle: u64,
        segment: usize,
        adoption: Adoption<'_>,
    ) -> Result<bool> {
        match &self.0 {
            Division::Windows(arenas) => arenas.of(handle).adopt(handle, segment, adoption),
            // What they reserve is the executor's.
            Division::Reservations(_) => Ok(false),
        }
    }

    pub(crate) fn set_quota(&self, quota: Option<u64>) -> Result<()> {
        match &self.0 {
            Division::Windows(arenas) => arenas.set_quota(quota),
            Division::Reservations(flow) => flow.set_quota(quota),
        }
    }

    /// See [`Manager::collapse`].
    pub(crate) fn collapse(&self) -> Result<u64> {
        match &self.0 {
            Division::Windows(arenas) => arenas.collapse(),
            // Their memory is the executor's.
            Division::Reservations(flow) => flow.check_process().map(|()| 0),
        }
    }

    /// See [`Manager::trim`].
    pub(crate) fn trim(&self) -> Result<u64> {
        let trimmed = match &self.0 {
            Division::Windows(arenas) => arenas.trim(),
            // Each reservation goes with its allocation.
            Division::Reservations(flow) => flow.check_process().map(|()| {
                flow.trim_records();
                0
            }),
        };
        // What the manager has freed of the heap lies among what others use.
        if trimmed.is_ok() {
            sys::heap::trim();
        }
        trimmed
    }

    pub(super) fn reader(&self) -> &Arc<ManagerReader> {
        either!(self, flow => &flow.reader)
    }

    /// Notes what the manager's host calls it in C, to be told by look-ups.
    pub(crate) fn set_host_handle(&self, handle: usize) {
        self.reader().set_host_handle(handle);
    }

    /// See [`Manager::lookup`].
    pub(crate) fn lookup(&self, address: u64) -> Option<Location> {
        match &self.0 {
            Division::Windows(arenas) => lookup_in(Some(&arenas.first.reader), address),
            Division::Reservations(flow) => flow.unlocked.find(&flow.reader, address),
        }
    }

    /// See [`Manager::walk`].
    #[cold]
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(&Location)) -> Result<()> {
        match &self.0 {
            Division::Windows(arenas) => arenas.walk(visit),
            Division::Reservations(flow) => flow.walk(visit),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        match &self.0 {
            Division::Windows(arenas) => arenas.stats(),
            Division::Reservations(flow) => flow.stats(),
        }
    }

    pub(crate) fn layout(&self) -> Result<Vec<LayoutItem>> {
        match &self.0 {
            Division::Windows(arenas) => arenas.layout(),
            Division::Reservations(flow) => flow.layout(),
        }
    }

    pub(super) fn close(&self) {
        match &self.0 {
            Division::Windows(arenas) => arenas.close(),
            Division::Reservations(flow) => flow.close(),
        }
    }
}
