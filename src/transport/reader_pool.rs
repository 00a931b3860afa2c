// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The threads that read a connection.
//!
//! Several wait for packets at once and each packet wakes one, so a thread that has got a packet
//! just handles it: handling may block for as long as it likes, because another thread is there to
//! read on. When the last one waiting gets a packet it starts one more first. In the steady state
//! two threads serve, and none is started or handed anything.
//!
//! What a packet belongs to is found while its thread still counts as waiting, and the end is told by
//! the last one that waited: so whatever came before the end is known by then.

use crate::sys;
use parking_lot::Mutex;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More threads than this do not wait for packets; the others end.
const MOST_WAITING: usize = 2;

/// A connection: where packets come from, and what is done with them.
pub(crate) trait Connection: Send + Sync + 'static {
    /// A packet, and what it belongs to.
    type Packet;

    /// Whether handling may run linked code, whose own threads get this one's signals.
    const RUNS_LINKED_CODE: bool = false;

    /// Waits for the next packet, in several threads at once; `None` at the end. The buffer is the
    /// thread's own.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Self::Packet>>;

    /// Handles one packet; may block.
    fn handle(self: Arc<Self>, packet: Self::Packet);

    /// Makes the waiting threads see the end.
    fn hang_up(&self);

    /// The connection has come to its end, or this is why it was ended. May be called again, then
    /// without a reason.
    fn ended(self: Arc<Self>, why: Option<io::Error>);
}

struct ReaderPool<C> {
    connection: Arc<C>,
    /// Threads that are receiving.
    waiting: AtomicUsize,
    why: Mutex<Option<io::Error>>,
}

/// Has the packets of a connection handled until its end. [`Connection::hang_up`] ends it.
pub(crate) fn start<C: Connection>(connection: Arc<C>) -> io::Result<()> {
    let pool = Arc::new(ReaderPool {
        connection,
        waiting: AtomicUsize::new(0),
        why: Mutex::new(None),
    });
    start_reader(&pool)
}

fn start_reader<C: Connection>(pool: &Arc<ReaderPool<C>>) -> io::Result<()> {
    let new = Arc::clone(pool);
    pool.waiting.fetch_add(1, Ordering::AcqRel);
    let started = match C::RUNS_LINKED_CODE {
        true => sys::spawn_for_programs(move || new.read_packets()),
        false => sys::spawn("jitmem-channel", move || new.read_packets()),
    };
    started.inspect_err(|_| {
        pool.waiting.fetch_sub(1, Ordering::AcqRel);
    })
}

impl<C: Connection> ReaderPool<C> {
    fn read_packets(self: Arc<Self>) {
        let mut buffer = Vec::new();
        loop {
            match self.connection.receive(&mut buffer) {
                Ok(Some(packet)) => {
                    if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                        // Without another thread packets wait until this one is back.
                        let _ = start_reader(&self);
                    }
                    let connection = Arc::clone(&self.connection);
                    if catch_unwind(AssertUnwindSafe(|| connection.handle(packet))).is_err() {
                        let why = io::Error::other("jitmem panicked, which is a defect in it");
                        self.waiting.fetch_add(1, Ordering::AcqRel);
                        return self.end(Some(why));
                    }
                    // In one step: one that is counted and leaves would be relied on meanwhile.
                    let back = |waiting| (waiting < MOST_WAITING).then_some(waiting + 1);
                    let (set, get) = (Ordering::AcqRel, Ordering::Acquire);
                    if self.waiting.fetch_update(set, get, back).is_err() {
                        return;
                    }
                }
                Ok(None) => return self.end(None),
                // The other side went without reading everything.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.end(None);
                }
                Err(error) => return self.end(Some(error)),
            }
        }
    }

    /// Receives no more, and nor shall the others.
    fn end(&self, why: Option<io::Error>) {
        {
            let mut first = self.why.lock();
            *first = first.take().or(why);
        }
        self.connection.hang_up();
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            let why = self.why.lock().take();
            Arc::clone(&self.connection).ended(why);
        }
    }
}
