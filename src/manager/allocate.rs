// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How a request becomes an allocation.

use super::core::{Core, Waiting, manager_freed};
use super::records::Key;
use super::space::{Attempt, Effort, Freed};
use super::window::{Pieces, RequestLayout};
use super::{Allocated, Request};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result};
use std::sync::Arc;

/// How many windows one request may cause to be reserved before it gives up.
const MOST_NEW_WINDOWS: u32 = 4;

/// How far a request gets without waiting.
pub(super) enum Now {
    Answer(Result<Allocated>),
    Wait,
    /// It needs another window; why the present ones do not do.
    AnotherWindow(Error),
}

impl Core {
    /// Serves a request, if that takes no waiting.
    pub(crate) fn try_allocate(self: &Arc<Self>, request: &Request) -> Option<Result<Allocated>> {
        if self.undivided {
            return None;
        }
        match self.allocate_now(request, false, &mut Delivery::Inline) {
            Now::Answer(answer) => Some(answer),
            Now::Wait | Now::AnotherWindow(_) => None,
        }
    }

    pub(super) fn allocate_now(
        self: &Arc<Self>,
        request: &Request,
        last_resort: bool,
        delivery: &mut Delivery,
    ) -> Now {
        let mut layout = RequestLayout::default();
        let effort = Effort {
            last_resort,
            reclaim: true,
        };
        let attempt = self.space.lock().allocate(request, effort, &mut layout);
        match attempt {
            Attempt::Done(key) => Now::Answer(self.make_ready(key, layout, delivery)),
            other => Arc::clone(self).allocate_slowly(request, last_resort, other, delivery),
        }
    }

    /// Makes room and tries again, until the request is served or there is no room to make.
    fn allocate_slowly(
        self: Arc<Self>,
        request: &Request,
        last_resort: bool,
        mut attempt: Attempt,
        delivery: &mut Delivery,
    ) -> Now {
        let mut layout = RequestLayout::default();
        let mut reclaimed = false;
        loop {
            let step = match attempt {
                Attempt::Done(key) => {
                    return Now::Answer(self.make_ready(key, layout, delivery));
                }
                Attempt::Wait => return Now::Wait,
                Attempt::Full(error) => return Now::AnotherWindow(error),
                Attempt::Refused(error) => Err(error),
                Attempt::Grow(growth) => self.grow(&growth, delivery),
                // If none can be reclaimed, say so. Once only: what is reclaimed may be what was made
                // for the first half of a request whose second half has no room.
                Attempt::Reclaim(empty) => {
                    reclaimed = true;
                    self.reclaim(empty, delivery)
                }
            };
            if let Err(error) = step {
                return Now::Answer(self.counted(Err(error)));
            }
            let effort = Effort {
                last_resort,
                reclaim: !reclaimed,
            };
            attempt = self.space.lock().allocate(request, effort, &mut layout);
        }
    }

    pub(crate) fn allocate(self: &Arc<Self>, request: Request, done: Completion<Allocated>) {
        if self.undivided {
            return self.allocate_undivided(request, done);
        }
        let delivery = &mut Delivery::Inline;
        Arc::clone(self).allocate_or_wait(request, 0, false, done, delivery);
    }

    pub(super) fn allocate_or_wait(
        self: Arc<Self>,
        request: Request,
        new_windows: u32,
        last_resort: bool,
        done: Completion<Allocated>,
        delivery: &mut Delivery,
    ) {
        loop {
            if self.is_closed() {
                return done.complete_with(Err(manager_freed()), delivery);
            }
            let now = self.allocate_now(&request, last_resort, delivery);
            match now {
                Now::Answer(answer) => return done.complete_with(answer, delivery),
                Now::AnotherWindow(error) if new_windows == MOST_NEW_WINDOWS => {
                    return self.failed(error, done, delivery);
                }
                Now::AnotherWindow(_) | Now::Wait => {}
            }
            let mut space = self.space.lock();
            if space.changes > 0 {
                // Under the lock, so that the last change can't end between the two.
                return self.waiting.lock().push(Waiting { request, done });
            }
            if let Now::AnotherWindow(_) = now {
                space.changes += 1;
                drop(space);
                return self.open_window(request, new_windows, done);
            }
            // The change that it would have waited for has ended.
        }
    }

    /// Makes a fresh allocation ready for its requester.
    fn make_ready(
        self: &Arc<Self>,
        key: Key,
        mut layout: RequestLayout,
        delivery: &mut Delivery,
    ) -> Result<Allocated> {
        for (writer, offset, size) in &layout.dirty {
            writer.zero((*offset).into(), (*size).into());
        }
        if layout.copied {
            if let Err(error) = self.make_buffers(key, &mut layout) {
                let mut freed = Freed::default();
                self.space.lock().take_pieces(key, &mut freed);
                self.give_back(&[key], freed, delivery);
                return self.counted(Err(error));
            }
        }
        Ok(Allocated {
            handle: layout.handle,
            segments: layout.segments,
        })
    }

    /// Makes working memory for content that the mapper copies. Nobody else knows the allocation
    /// yet, so its record stays as it is while the lock is not held.
    fn make_buffers(&self, key: Key, layout: &mut RequestLayout) -> Result<()> {
        let pieces: Pieces = self.space.lock().records.get(key).pieces.clone();
        let mut buffers = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            if !piece.copied {
                buffers.push(None);
                continue;
            }
            let buffer = Box::new(self.buffers.get(piece.content as usize)?);
            let segment = &mut layout.segments[piece.segment as usize];
            segment.working_memory = buffer.pointer();
            buffers.push(Some(buffer));
        }
        self.space.lock().records.get(key).buffers = Some(Box::new(buffers));
        Ok(())
    }
}
