// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How a request becomes an allocation.

use super::arenas::Others;
use super::divide::{Attempt, Effort, Freed};
use super::flow::{Flow, manager_freed};
use super::piece::{Piece, Place, RequestLayout};
use super::records::Key;
use super::reservations::{Draft, Reservations};
use super::windows::{Detached, Growth, Windows};
use super::{Allocated, HugePages, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use crate::memory::staged::Adoption;
use crate::page::AddressRange;
use crate::transport::limits::Asked;
use smallvec::SmallVec;
use std::sync::Arc;

/// How many windows one request may cause to be reserved before it gives up.
pub(super) const MOST_NEW_WINDOWS: u32 = 4;

/// How far a request gets without waiting for others or for a window.
pub(super) enum Served {
    Answer(Result<Allocated>),
    Wait,
    /// It needs another window; why the present ones do not do.
    AnotherWindow(Error),
    /// It needs this chunk, which the mapper prepares later.
    Grow(Growth),
    /// It needs the pages of these chunks, which the mapper takes back later.
    Reclaim(Vec<Detached>),
}

/// What was tried for a request before.
#[derive(Clone, Copy, Default)]
pub(super) struct Tried {
    /// Windows that were reserved for it.
    pub(super) windows: u32,
    /// A JITDylib may begin where there is little room for more of it.
    pub(super) last_resort: bool,
    /// Empty chunks were given up for it. Once only: what is reclaimed may be what was made for the
    /// first half of a request whose second half has no room.
    pub(super) reclaimed: bool,
    /// Other arenas were asked for room.
    pub(super) others: bool,
    /// A chunk for a hint is not worth waiting for.
    pub(super) in_any_code: bool,
}

/// A request that can be answered only once a change outside the lock is done.
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) done: Completion<Allocated>,
}

impl Flow<Windows> {
    /// Has a segment of an allocation that was just handed out show pages of a staged file, if the mapper can. What has them
    /// gets no huge page.
    pub(super) fn adopt(
        &self,
        handle: u64,
        segment: usize,
        adoption: Adoption<'_>,
    ) -> Result<bool> {
        if self.options.huge_pages == HugePages::WhereLarge {
            return Ok(false);
        }
        let Some(empty) = self.space.lock().may_adopt(handle, segment)? else {
            return Ok(false);
        };
        let adopted = self.mapper.adopt(Adoption { empty, ..adoption })?;
        if adopted {
            self.space.lock().adopted(handle, segment)?;
        }
        Ok(adopted)
    }

    /// Serves a request, if that takes no waiting. A chunk may be made for it.
    pub(super) fn try_allocate(self: &Arc<Self>, request: &Request) -> Option<Result<Allocated>> {
        self.try_allocate_after(Tried::default(), request)
    }

    #[inline(always)] // so that what was not tried costs nothing
    pub(super) fn try_allocate_after(
        self: &Arc<Self>,
        tried: Tried,
        request: &Request,
    ) -> Option<Result<Allocated>> {
        let delivery = &mut Delivery::Inline;
        match self.serve(request, tried, delivery) {
            Served::Answer(answer) => return Some(answer),
            Served::Wait | Served::AnotherWindow(_) => {}
            Served::Grow(growth) => self.do_not_grow(&growth, delivery),
            Served::Reclaim(empty) => self.do_not_reclaim(empty, delivery),
        }
        None
    }

    #[inline(always)] // it is small, and what it answers is not
    pub(super) fn serve(
        self: &Arc<Self>,
        request: &Request,
        tried: Tried,
        delivery: &mut Delivery,
    ) -> Served {
        let _writers = match self.open_writers() {
            Ok(open) => open,
            Err(error) => return Served::Answer(self.counted(Err(error))),
        };
        let mut layout = RequestLayout::default();
        let effort = Effort::after(tried);
        let attempt = self
            .lock_to_allocate()
            .try_allocate(request, effort, &mut layout);
        match attempt {
            Attempt::Done(key) => {
                Served::Answer(self.make_ready(request, key, &mut layout, delivery))
            }
            other => Arc::clone(self).make_room(request, tried, other, delivery),
        }
    }

    /// Makes room and tries again, until the request is served or there is no room to make.
    #[cold]
    fn make_room(
        self: Arc<Self>,
        request: &Request,
        tried: Tried,
        attempt: Attempt,
        delivery: &mut Delivery,
    ) -> Served {
        self.space.lock().memory.making_room += 1;
        let served = self.try_with_more_room(request, tried, attempt, delivery);
        let memory = &mut self.space.lock().memory;
        // A child has forgotten its parent's requests, with the one that it is inside.
        memory.making_room = memory.making_room.saturating_sub(1);
        memory.settle_fresh();
        served
    }

    fn try_with_more_room(
        self: &Arc<Self>,
        request: &Request,
        mut tried: Tried,
        mut attempt: Attempt,
        delivery: &mut Delivery,
    ) -> Served {
        let mut layout = RequestLayout::default();
        let later = self.mapper.changes_chunks_later();
        loop {
            let step = match attempt {
                Attempt::Done(key) => {
                    return Served::Answer(self.make_ready(request, key, &mut layout, delivery));
                }
                Attempt::Wait => return Served::Wait,
                Attempt::Full(_) | Attempt::Refused(_) if self.thaw(delivery) => Ok(()),
                Attempt::Full(error) => return Served::AnotherWindow(error),
                Attempt::Refused(error) if self.may_ask_others(tried, &error) => {
                    return Served::AnotherWindow(error);
                }
                Attempt::Refused(error) => Err(error),
                Attempt::Grow(growth) if later => return Served::Grow(growth),
                Attempt::Grow(growth) => {
                    self.thaw(delivery);
                    self.grow(growth, delivery)
                }
                Attempt::Reclaim(empty) if later => return Served::Reclaim(empty),
                // If none can be reclaimed, say so.
                Attempt::Reclaim(empty) => {
                    tried.reclaimed = true;
                    self.reclaim(empty, delivery).map(drop)
                }
            };
            if let Err(error) = step {
                self.give_up_fresh(delivery);
                return Served::Answer(self.counted(Err(error)));
            }
            let effort = Effort::after(tried);
            attempt = self.space.lock().try_allocate(request, effort, &mut layout);
        }
    }

    pub(super) fn allocate(self: &Arc<Self>, request: Request, done: Completion<Allocated>) {
        let delivery = &mut Delivery::Inline;
        let done = self.in_time(Asked::Memory, done, |flow, answer, _| {
            if let Ok(Allocated { handle, .. }) = answer {
                flow.abandon(handle, Completion::new(|_| ()));
            }
        });
        Arc::clone(self).allocate_or_wait(request, Tried::default(), done, delivery);
    }

    pub(super) fn allocate_or_wait(
        self: Arc<Self>,
        request: Request,
        mut tried: Tried,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        loop {
            if self.is_closed() {
                return done.complete_with(Err(manager_freed()), delivery);
            }
            let served = self.serve(&request, tried, delivery);
            match served {
                Served::Answer(answer) => return done.complete_with(answer, delivery),
                Served::Grow(growth) => return self.grow_for(request, tried, growth, done),
                Served::Reclaim(empty) => return self.reclaim_for(request, tried, empty, done),
                Served::AnotherWindow(ref error) if self.may_ask_others(tried, error) => {
                    tried.others = true;
                    let Some(arenas) = self.arenas() else {
                        continue;
                    };
                    match arenas.ask_others(&request, delivery) {
                        Others::Answer(answer) => return done.complete_with(answer, delivery),
                        Others::Change(other) => {
                            let memory = &mut other.space.lock().memory;
                            if memory.changes > 0 {
                                return memory.waiting.push(Waiting { request, done });
                            }
                        }
                        Others::Asked => {}
                    }
                    continue;
                }
                Served::AnotherWindow(error) if tried.windows == MOST_NEW_WINDOWS => {
                    return self.not_served(error, done, delivery);
                }
                Served::AnotherWindow(_) | Served::Wait => {}
            }
            let mut space = self.space.lock();
            let memory = &mut space.memory;
            if memory.changes > 0 {
                return memory.waiting.push(Waiting { request, done });
            }
            if let Served::AnotherWindow(_) = served {
                memory.changes += 1;
                drop(space);
                self.give_up_fresh(delivery);
                return self.open_window(request, tried, done);
            }
            // The change that it would have waited for has ended.
        }
    }

    /// Makes a fresh allocation ready for its requester.
    #[inline]
    pub(super) fn make_ready(
        self: &Arc<Self>,
        request: &Request,
        key: Key,
        layout: &mut RequestLayout,
        delivery: &mut Delivery,
    ) -> Result<Allocated> {
        if layout.copied {
            if let Err(error) = self.make_writable(request, key, layout) {
                let mut freed = Freed::default();
                self.space.lock().take_pieces(key, &mut freed);
                self.give_back(&[key], &freed, delivery);
                return self.counted(Err(error));
            }
        }
        if let Some(huge) = layout.huge.take() {
            self.begin_huge_pages(&huge);
        }
        for (writer, offset, size) in &layout.dirty {
            writer.zero((*offset).into(), (*size).into());
        }
        Ok(Allocated {
            handle: layout.handle,
            segments: std::mem::take(&mut layout.segments),
        })
    }

    /// Makes working memory for content that the mapper copies, and sees to it that what is in place can be
    /// written. The allocation's handle is not known outside yet, so its record stays as it is while the
    /// lock is not held.
    fn make_writable(&self, request: &Request, key: Key, layout: &mut RequestLayout) -> Result<()> {
        let (places, states) = {
            let mut space = self.space.lock();
            let pieces = space.pieces(key);
            let place = |piece: &Piece| piece.copied.then(|| space.memory.place(piece));
            let places: SmallVec<[Option<Place>; 4]> = pieces.iter().map(place).collect();
            (places, space.records.in_flight(key).segments.clone())
        };
        let mut buffers = Vec::with_capacity(places.len());
        // Each planned segment has its piece.
        let planned = request.planned.iter().zip(places.into_iter().zip(&states));
        for (planned, (place, state)) in planned {
            let Some(place) = place else { continue };
            if place.writer.is_some() {
                self.mapper.open(place.range)?;
                continue;
            }
            let (size, alignment) = (state.content as usize, planned.alignment as usize);
            let buffer = self.buffers.get(size, alignment)?;
            let segment = &mut layout.segments[state.segment as usize];
            segment.working_memory = buffer.pointer();
            buffers.push(buffer);
        }
        self.space.lock().records.in_flight(key).buffers = buffers.into();
        Ok(())
    }
}

impl Flow<Reservations> {
    /// Has the mapper reserve what the request takes.
    pub(super) fn allocate(self: &Arc<Self>, request: Request, done: Completion<Allocated>) {
        let done = self.in_time(Asked::Memory, done, |flow, answer, _| {
            if let Ok(Allocated { handle, .. }) = answer {
                flow.abandon(handle, Completion::new(|_| ()));
            }
        });
        let mut draft = Draft::new(request, self.mapper.capabilities().page_size);
        let size = draft.size;
        let counted = self.space.lock().set_aside(size);
        if let Err(error) = counted {
            return self.failed(error, done, &mut Delivery::Inline);
        }
        if let Err(error) = draft.make_buffers(&self.buffers) {
            self.space.lock().not_aside(size);
            return self.failed(error, done, &mut Delivery::Inline);
        }
        let flow = Arc::clone(self);
        let reserved = Completion::with_delivery(move |answer, delivery| {
            flow.reserved(draft, answer, done, delivery);
        });
        let mapper = Arc::clone(&self.mapper);
        mapper.reserve(size, reserved);
    }

    /// Hands a new reservation out, or gives it back.
    fn reserved(
        self: Arc<Self>,
        mut draft: Draft,
        answer: Result<AddressRange>,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        let size = draft.size;
        let range = match answer {
            Ok(range) => range,
            Err(error) => {
                self.space.lock().not_aside(size);
                let error = error.context(format!("reserve {size} bytes for an allocation"));
                return self.answer_last(Err(error), done, delivery);
            }
        };
        let allocated = match self.is_closed() {
            true => Err(manager_freed()),
            false => self.space.lock().hand_out(&mut draft, range),
        };
        let error = match allocated {
            Ok(allocated) => return self.answer_last(Ok(allocated), done, delivery),
            Err(error) => error,
        };
        self.space.lock().not_aside(size);
        let mapper = Arc::clone(&self.mapper);
        let released = Completion::with_delivery(move |answer: Result<()>, delivery| {
            let error = match answer {
                Ok(()) => error,
                Err(second) => error.join(second),
            };
            self.answer_last(Err(error), done, delivery);
        });
        mapper.release(vec![range], released);
    }
}
