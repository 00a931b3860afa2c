// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Group commit: while a message with allocations is under way, others gather and go together.
//!
//! What is alone goes at once. What comes while a message is under way is a sign that more is
//! coming: it goes when there is enough of it, or when it has waited for [`BOUND`], even if the
//! message before has no answer yet; an action in it may be waiting for what was gathered here.
//! So nothing waits longer than twice the bound for others' sake.

use super::link::{Link, decoded};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::sys;
use crate::wire::service::{Item, Reply};
use crate::wire::sps::Encode;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an allocation waits for others at most before somebody looks after it.
const BOUND: Duration = Duration::from_micros(250);
/// That many go without waiting for more.
const ENOUGH: usize = 16;
/// That many bytes go even while another message is under way.
const MANY_BYTES: usize = 256 << 10;
/// The patrol goes home after so many rounds without anything to do.
const IDLE_ROUNDS: u32 = 40;

/// The queue of allocations on their way into and out of the executor.
pub(super) struct Batches(Arc<Inner>);

struct Inner {
    link: Arc<Link>,
    queue: Mutex<Queue>,
    /// Rung when the patrol shall end.
    bell: Condvar,
}

#[derive(Default)]
struct Queue {
    /// The items, encoded.
    items: Vec<u8>,
    done: Vec<Completion<u64>>,
    since: Option<Instant>,
    /// Messages without an answer.
    under_way: usize,
    /// More is expected.
    holding: bool,
    /// A thread looks after what waits.
    patrolled: bool,
    closing: bool,
}

/// What goes as one message.
struct Batch {
    items: Vec<u8>,
    done: Vec<Completion<u64>>,
}

impl Queue {
    fn take(&mut self) -> Batch {
        self.under_way += 1;
        self.holding = false;
        self.since = None;
        // The next one will be about as large.
        let capacity = self.items.len();
        Batch {
            items: std::mem::replace(&mut self.items, Vec::with_capacity(capacity)),
            done: std::mem::take(&mut self.done),
        }
    }
}

impl Batches {
    pub(super) fn new(link: Arc<Link>) -> Batches {
        Batches(Arc::new(Inner {
            link,
            queue: Mutex::default(),
            bell: Condvar::new(),
        }))
    }

    /// For callbacks that outlive the caller's borrow.
    pub(super) fn handle(&self) -> Submit {
        Submit(Arc::clone(&self.0))
    }
}

/// The right to submit.
pub(super) struct Submit(Arc<Inner>);

impl Submit {
    /// Has an item done, now or with others.
    pub(super) fn submit(&self, item: &Item<'_>, done: Completion<u64>) {
        let mut encoded = Vec::with_capacity(256);
        item.encode(&mut encoded);
        let batch = {
            let mut queue = self.0.queue.lock();
            queue.items.extend(encoded);
            queue.done.push(done);
            queue.since.get_or_insert_with(Instant::now);
            let free = queue.under_way == 0;
            let full = queue.items.len() >= MANY_BYTES;
            let go = full || free && (!queue.holding || queue.done.len() >= ENOUGH);
            if go || !self.0.patrol(&mut queue) {
                Some(queue.take())
            } else {
                None
            }
        };
        if let Some(batch) = batch {
            self.0.send(batch);
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // In a forked child the lock may be held by a thread that is not there.
        if !self.0.link.is_the_parents() {
            self.0.queue.lock().closing = true;
            self.0.bell.notify_all();
        }
    }
}

impl Inner {
    fn send(self: &Arc<Self>, batch: Batch) {
        let Batch { items, done } = batch;
        let mut message = self.link.message();
        (done.len() as u64).encode(&mut message);
        message.extend(items);
        let inner = Arc::clone(self);
        let answered = Completion::new(move |answer: Result<Vec<u8>>| {
            // The executor goes on while the callbacks run here.
            if let Some(next) = inner.next() {
                inner.send(next);
            }
            complete(done, answer.and_then(|bytes| decoded(&bytes)));
        });
        self.link
            .call(self.link.functions().run, message, &[], answered);
    }

    /// What goes now that a message has been answered.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.queue.lock();
        queue.under_way -= 1;
        queue.holding = !queue.done.is_empty();
        (queue.under_way == 0 && queue.done.len() >= ENOUGH).then(|| queue.take())
    }

    /// Makes sure that somebody looks after what waits.
    fn patrol(self: &Arc<Self>, queue: &mut Queue) -> bool {
        if !queue.patrolled {
            let inner = Arc::clone(self);
            queue.patrolled = sys::spawn("jitmem-batch", move || inner.walk()).is_ok();
        }
        queue.patrolled
    }

    fn walk(self: Arc<Self>) {
        let mut idle = 0;
        let mut queue = self.queue.lock();
        while !queue.closing && idle < IDLE_ROUNDS {
            let due = queue.since.map(|since| since + BOUND);
            match due {
                Some(due) if due <= Instant::now() => {
                    let batch = queue.take();
                    drop(queue);
                    self.send(batch);
                    idle = 0;
                    queue = self.queue.lock();
                }
                Some(due) => {
                    self.bell.wait_until(&mut queue, due);
                }
                None => {
                    idle += 1;
                    self.bell.wait_for(&mut queue, BOUND);
                }
            }
        }
        queue.patrolled = false;
        // What is left at the end is for the link to refuse.
        let left = (!queue.done.is_empty()).then(|| queue.take());
        drop(queue);
        if let Some(left) = left {
            self.send(left);
        }
    }
}

fn complete(done: Vec<Completion<u64>>, answer: Result<Vec<Reply<u64>>>) {
    match answer {
        Ok(replies) if replies.len() == done.len() => {
            for (done, Reply(reply)) in done.into_iter().zip(replies) {
                done.complete(reply.map_err(Error::from));
            }
        }
        other => {
            let error = match other {
                Err(error) => error,
                Ok(replies) => Error::new(
                    Status::MapperFailed,
                    format!(
                        "the executor gave {} answers to {} items",
                        replies.len(),
                        done.len()
                    ),
                ),
            };
            done.into_iter()
                .for_each(|done| done.complete(Err(error.clone())));
        }
    }
}
