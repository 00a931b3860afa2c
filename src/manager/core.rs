// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Either kind of manager, as its hosts' interfaces have it: handles are numbers, answers go to
//! completions.

use super::flow::{Flow, child_without_handlers};
use super::reservations::Reservations;
use super::windows::Windows;
use super::{Allocated, LayoutItem, Manager, Options, Request, Segment, Stats};
use crate::completion::{Completion, wait};
use crate::error::Result;
use crate::mapper::{Action, Capabilities, Mapper, MapperInterface, Reserved};
use crate::sys;
use std::sync::Arc;

/// A manager's flow; its clones are the same one.
#[derive(Clone)]
pub(crate) struct Core(Division);

/// What is handed out in parts. It follows from the mapper.
#[derive(Clone)]
enum Division {
    Windows(Arc<Flow<Windows>>),
    Reservations(Arc<Flow<Reservations>>),
}

/// What both kinds do alike.
macro_rules! either {
    ($core:expr, $flow:ident => $does:expr) => {
        match &$core.0 {
            Division::Windows($flow) => $does,
            Division::Reservations($flow) => $does,
        }
    };
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
                let memory = Windows::new(mapper.capabilities(), &options);
                let flow = Flow::new(Arc::clone(&mapper), memory, options);
                let reserved = done.map(move |answer: Result<Reserved>| {
                    let reserved = flow.in_reach(answer?)?;
                    flow.space.lock().memory.add(reserved);
                    let core = Core(Division::Windows(flow));
                    Ok(Manager { core })
                });
                let (size, placement) = (options.window_size, options.placement);
                mapper.reserve(size, least_window, placement, reserved);
            }
        }
    }

    pub(super) fn check_process(&self) -> Result<()> {
        either!(self, flow => flow.check_process())
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
        either!(self, flow => flow.allocate(request, done));
    }

    /// [`Core::allocate`] for a caller that waits for the answer.
    pub(crate) fn allocate_and_wait(&self, request: Request) -> Result<Allocated> {
        match &self.0 {
            Division::Windows(flow) if flow.is_inside_mapper() => {
                flow.allocate_inside_mapper(&request)
            }
            _ => wait(|done| self.allocate(request, done)),
        }
    }

    /// [`Core::allocate`] if that takes no waiting, else `None` and nothing is done.
    pub(crate) fn try_allocate(&self, request: &Request) -> Option<Result<Allocated>> {
        match &self.0 {
            Division::Windows(flow) => flow.try_allocate(request),
            Division::Reservations(_) => None,
        }
    }

    /// Makes the content visible in the executor and runs the finalize actions. On failure the
    /// memory is free again.
    pub(crate) fn finalize(&self, handle: u64, actions: Vec<Action>, done: Completion<u64>) {
        either!(self, flow => flow.finalize(handle, actions, done));
    }

    /// [`Core::finalize`] without actions if that takes no waiting, else `None` and nothing is done.
    pub(crate) fn try_finalize(&self, handle: u64) -> Option<Result<()>> {
        match &self.0 {
            Division::Windows(flow) => flow.try_finalize(handle),
            Division::Reservations(_) => None,
        }
    }

    /// Gives up an allocation that was not finalized.
    pub(crate) fn abandon(&self, handle: u64, done: Completion<()>) {
        either!(self, flow => flow.abandon(handle, done));
    }

    /// Runs the deallocation actions of finalized allocations, last to first, and frees them.
    /// Nothing is done if any handle is wrong.
    pub(crate) fn deallocate(&self, handles: &[u64], done: Completion<()>) {
        either!(self, flow => flow.deallocate(handles, done));
    }

    /// [`Core::deallocate`] for a caller that waits for the answer.
    pub(crate) fn deallocate_and_wait(&self, handles: &[u64]) -> Result<()> {
        if let Some(flow) = self.windows() {
            flow.check_process()?;
            flow.space.lock().scopes.check_own(handles)?;
        }
        wait(|done| self.deallocate(handles, done))
    }

    /// The flow of a manager that divides windows.
    pub(super) fn windows(&self) -> Option<&Arc<Flow<Windows>>> {
        match &self.0 {
            Division::Windows(flow) => Some(flow),
            Division::Reservations(_) => None,
        }
    }

    /// [`Core::deallocate`] if that takes no waiting and no action, else `None` and nothing is done.
    pub(crate) fn try_deallocate(&self, handles: &[u64]) -> Option<Result<()>> {
        match &self.0 {
            Division::Windows(flow) => flow.try_deallocate(handles),
            Division::Reservations(_) => None,
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
        either!(self, flow => flow.write(handle, segment, offset, bytes))
    }

    pub(super) fn stats(&self) -> Stats {
        either!(self, flow => flow.stats())
    }

    pub(super) fn layout(&self) -> Vec<LayoutItem> {
        either!(self, flow => flow.layout())
    }

    pub(super) fn close(&self) {
        either!(self, flow => flow.close());
    }
}
