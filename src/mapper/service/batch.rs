// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Group commit: allocations that come in a stream go as a few messages.
//!
//! An item that is alone goes at once. In a stream items are gathered, and go when there are enough of
//! them or when the first has waited for [`BOUND`], even if the message before has no answer yet: an
//! action in that one may be waiting for what was gathered here. The flusher, a thread that ends when
//! it is idle, sees to the bound. So no item waits longer than twice the bound for others.
//!
//! A stream is known by items that come while a message is under way. A stream whose messages are
//! answered faster than its next item comes is found by gathering once: if nothing else comes then, the
//! host waits for each answer, and gathering is not tried again for twice as many items as before.

use super::link::Link;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::Result;
use crate::lock::{Condvar, Mutex};
use crate::sys;
use crate::wire::service::Item;
use crate::wire::sps::Encode;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an item waits for others before the flusher sends it.
const BOUND: Duration = Duration::from_micros(250);
/// That many items go without waiting for more.
const ENOUGH: usize = 16;
/// That many bytes go even while another message is under way.
const MANY_BYTES: usize = 256 << 10;
/// And that many items, whose outcomes must fit into one packet: 9 bytes each, and more of what has failed.
const MANY: usize = 2048;
/// After a pause of this length there is no stream any more.
const PAUSE: Duration = Duration::from_millis(1);
/// Items that go at once before gathering is tried, at first and at most.
const FIRST_TRY: u32 = 8;
const LAST_TRY: u32 = 1024;
/// The flusher ends after so many rounds of [`BOUND`] with nothing to send.
const IDLE_ROUNDS: u32 = 40;

/// The queue of allocations on their way into and out of the executor.
pub(super) struct Batches(Arc<Inner>);

struct Inner {
    link: Arc<Link>,
    queue: Mutex<Queue>,
    /// Wakes the flusher when it shall end.
    closed: Condvar,
}

struct Queue {
    /// The items, encoded.
    items: Vec<u8>,
    done: Vec<Completion<u64>>,
    /// When the first of them came.
    since: Option<Instant>,
    /// When the last item came.
    last: Option<Instant>,
    /// Messages without an answer.
    under_way: usize,
    /// There is a stream, or it is being tried whether there is one.
    gathering: bool,
    /// Items that go at once before that is tried, and how many it will be after a failure.
    before_try: u32,
    next_try: u32,
    /// There is a flusher, or one is being started.
    flusher_runs: bool,
    closing: bool,
}

/// What goes as one message.
struct Batch {
    items: Vec<u8>,
    done: Vec<Completion<u64>>,
}

impl Queue {
    fn new() -> Queue {
        Queue {
            items: Vec::new(),
            done: Vec::new(),
            since: None,
            last: None,
            under_way: 0,
            gathering: false,
            before_try: FIRST_TRY,
            next_try: FIRST_TRY,
            flusher_runs: false,
            closing: false,
        }
    }

    /// Adds items that belong into one message, in their order, and says whether they go at once,
    /// with what is there.
    fn add(&mut self, items: &[u8], done: Vec<Completion<u64>>) -> bool {
        let now = Instant::now();
        let paused = self.last.replace(now).is_none_or(|last| now - last > PAUSE);
        let first = self.done.is_empty();
        self.items.extend(items);
        self.done.extend(done);
        self.since.get_or_insert(now);
        let free = self.under_way == 0;
        let count = self.done.len();
        if self.items.len() >= MANY_BYTES || count >= MANY || free && count >= ENOUGH {
            return true;
        }
        if paused && first {
            self.stop_gathering();
        }
        if !free || self.gathering {
            return false;
        }
        self.before_try -= 1;
        self.gathering = self.before_try == 0;
        !self.gathering
    }

    fn stop_gathering(&mut self) {
        self.gathering = false;
        if self.before_try == 0 {
            self.before_try = self.next_try;
        }
    }

    fn take(&mut self) -> Batch {
        let streams = self.done.len() > 1;
        if self.gathering {
            self.next_try = if streams {
                FIRST_TRY
            } else {
                LAST_TRY.min(self.next_try * 2)
            };
            if !streams {
                self.stop_gathering();
            }
        }
        self.under_way += 1;
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
            queue: Mutex::new(Queue::new()),
            closed: Condvar::new(),
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
        self.submit_encoded(&encoded, vec![done]);
    }

    /// Has items done one after the other: the next one begins when the one before it has ended.
    pub(super) fn submit_in_order(&self, items: &[Item<'_>], done: Vec<Completion<u64>>) {
        let mut encoded = Vec::new();
        items.iter().for_each(|item| item.encode(&mut encoded));
        if !done.is_empty() {
            self.submit_encoded(&encoded, done);
        }
    }

    /// The same with items that are encoded.
    pub(super) fn submit_encoded(&self, items: &[u8], done: Vec<Completion<u64>>) {
        let batch = {
            let mut queue = self.0.queue.lock();
            let mut go = queue.add(items, done);
            if !go {
                // Without a thread that sends it later it goes now.
                go = !self.0.ensure_flusher(&mut queue);
            }
            go.then(|| queue.take())
        };
        if let Some(batch) = batch {
            self.0.send(batch);
        }
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        // In a forked child the lock may be held by a thread that is not there.
        if self.0.link.owner().is_current() {
            self.0.queue.lock().closing = true;
            self.0.closed.notify_all();
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
        let answered = Completion::with_delivery(move |answer, delivery| {
            inner.answered(done, answer, delivery);
        });
        self.link
            .call(self.link.functions().apply, message, &[], answered);
    }

    /// A message has been answered.
    fn answered(
        self: Arc<Self>,
        done: Vec<Completion<u64>>,
        answer: Result<Vec<u8>>,
        delivery: &mut Delivery,
    ) {
        // The executor goes on while completions run here.
        if let Some(next) = self.next() {
            self.send(next);
        }
        let count = done.len();
        let answers = answer.and_then(|bytes| self.link.replies(&bytes, count));
        let answers = answers.unwrap_or_else(|error| vec![Err(error); count]);
        for (done, answer) in done.into_iter().zip(answers) {
            done.complete_with(answer, delivery);
        }
    }

    /// What goes now that a message has been answered.
    fn next(&self) -> Option<Batch> {
        let mut queue = self.queue.lock();
        queue.under_way -= 1;
        queue.gathering |= !queue.done.is_empty();
        (queue.under_way == 0 && queue.done.len() >= ENOUGH).then(|| queue.take())
    }

    /// Makes sure that there is a flusher; `false` if no thread is to be had for it.
    fn ensure_flusher(self: &Arc<Self>, queue: &mut Queue) -> bool {
        if !queue.flusher_runs {
            let inner = Arc::clone(self);
            let started = sys::spawn("jitmem-batch", move || inner.flush_when_due());
            queue.flusher_runs = started.is_ok();
        }
        queue.flusher_runs
    }

    /// What the flusher does.
    fn flush_when_due(self: Arc<Self>) {
        let mut idle = 0;
        let mut queue = self.queue.lock();
        while !queue.closing && idle < IDLE_ROUNDS {
            let due = queue.since.map(|since| since + BOUND);
            match due {
                Some(due) if due <= Instant::now() => {
                    let batch = queue.take();
                    // What is sent may be answered inside, by callbacks that wait for what they
                    // submit: that needs another flusher.
                    queue.flusher_runs = false;
                    drop(queue);
                    self.send(batch);
                    idle = 0;
                    queue = self.queue.lock();
                    if queue.flusher_runs {
                        return;
                    }
                    queue.flusher_runs = true;
                }
                Some(due) => {
                    queue = self.closed.wait_until(queue, due);
                }
                None => {
                    idle += 1;
                    queue = self.closed.wait_for(queue, BOUND);
                }
            }
        }
        queue.flusher_runs = false;
        // What is left at the end is for the link to refuse.
        let left = (!queue.done.is_empty()).then(|| queue.take());
        drop(queue);
        if let Some(left) = left {
            self.send(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored() -> Completion<u64> {
        Completion::new(|_| ())
    }

    #[test]
    fn a_host_that_waits_for_each_answer_hardly_ever_waits_for_others() {
        let mut queue = Queue::new();
        let held = (0..1000).filter(|_| {
            let go = queue.add(&[1], vec![ignored()]);
            let batch = queue.take(); // by the flusher, if it was held
            assert_eq!(batch.done.len(), 1);
            queue.under_way -= 1;
            !go
        });
        assert!((1..=8).contains(&held.count()));
    }

    #[test]
    fn a_stream_whose_answers_come_fast_is_gathered() {
        let mut queue = Queue::new();
        let mut messages = 0;
        for _ in 0..1000 {
            if queue.add(&[1], vec![ignored()]) {
                assert!(queue.take().done.len() <= ENOUGH);
                queue.under_way -= 1; // answered before the next one comes
                messages += 1;
            }
        }
        assert!((1000 / ENOUGH..100).contains(&messages), "{messages}");
    }

    #[test]
    fn after_a_pause_one_alone_goes_at_once() {
        let mut queue = Queue::new();
        queue.gathering = true;
        queue.before_try = 0;
        queue.last = Instant::now().checked_sub(2 * PAUSE);
        assert!(queue.add(&[1], vec![ignored()]));
    }

    #[test]
    fn what_comes_meanwhile_waits_but_not_if_it_is_much() {
        let mut queue = Queue::new();
        assert!(queue.add(&[1], vec![ignored()]));
        assert_eq!(queue.take().done.len(), 1);
        assert!(!queue.add(&[1], vec![ignored()]));
        assert!(queue.add(&[1; MANY_BYTES], vec![ignored()]));
        let batch = queue.take();
        assert_eq!((batch.done.len(), queue.under_way), (2, 2));
    }
}
