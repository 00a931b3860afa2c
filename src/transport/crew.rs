// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The threads that read a connection.
//!
//! Several wait for packets at once and each packet wakes one, so a thread that has got a packet
//! just handles it: handling may block for as long as it likes, because another thread is there to
//! read on. When the last one waiting gets a packet it starts one more first. In the steady state
//! two threads serve, and none is started or handed anything.

use super::packet::Packet;
use crate::sys;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// More threads than this do not wait for packets; the others end.
const MOST_WAITING: usize = 2;

/// A connection: where packets come from, and what is done with them.
pub(crate) trait Post: Send + Sync + 'static {
    /// Waits for the next packet, in several threads at once; `None` at the end. The buffer is the
    /// thread's own.
    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<Option<Packet>>;

    /// Handles one packet; may block.
    fn handle(self: Arc<Self>, packet: Packet);

    /// Makes whoever waits see the end.
    fn hang_up(&self);

    /// The connection has come to its end, or this is why it was ended. Called once.
    fn ended(self: Arc<Self>, why: Option<io::Error>);
}

struct Crew<P> {
    post: Arc<P>,
    waiting: AtomicUsize,
    ended: AtomicBool,
}

/// Has the packets of a connection handled until its end. Whoever wants the end hangs up.
pub(crate) fn start<P: Post>(post: Arc<P>) -> io::Result<()> {
    let crew = Arc::new(Crew {
        post,
        waiting: AtomicUsize::new(0),
        ended: AtomicBool::new(false),
    });
    reinforce(&crew)
}

fn reinforce<P: Post>(crew: &Arc<Crew<P>>) -> io::Result<()> {
    let new = Arc::clone(crew);
    crew.waiting.fetch_add(1, Ordering::AcqRel);
    sys::spawn("jitmem-channel", move || new.work()).inspect_err(|_| {
        crew.waiting.fetch_sub(1, Ordering::AcqRel);
    })
}

impl<P: Post> Crew<P> {
    fn work(self: Arc<Self>) {
        let mut buffer = Vec::new();
        loop {
            match self.post.receive(&mut buffer) {
                Ok(Some(packet)) => {
                    if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
                        // Without another thread packets wait until this one is back.
                        let _ = reinforce(&self);
                    }
                    let post = Arc::clone(&self.post);
                    if catch_unwind(AssertUnwindSafe(|| post.handle(packet))).is_err() {
                        let why = io::Error::other("jitmem panicked, which is a defect in it");
                        return self.end(Some(why));
                    }
                    if self.waiting.fetch_add(1, Ordering::AcqRel) >= MOST_WAITING {
                        self.waiting.fetch_sub(1, Ordering::AcqRel);
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

    fn end(&self, why: Option<io::Error>) {
        self.post.hang_up();
        if !self.ended.swap(true, Ordering::AcqRel) {
            Arc::clone(&self.post).ended(why);
        }
    }
}
