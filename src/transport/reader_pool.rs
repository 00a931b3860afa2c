// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The threads of a connection, each of which reads packets and handles them.
//!
//! A thread that has read a packet handles it itself, and another thread reads on, so no packet is
//! handed from one thread to another, and handling may block for as long as it likes. A thread that was
//! the last to read wakes an idle one before it handles, or starts one. In the steady state no thread is
//! started.
//!
//! As many threads read at once as the connection has inputs. A stream has one. Of a socket of packets
//! several threads may read: the kernel wakes one for each packet, and no thread has to wake another.
//!
//! The thread that became idle last is woken first. So threads that only a burst has needed stay idle,
//! and end.

#[cfg(test)]
mod tests;

use crate::error::{Error, Result, Status};
use crate::lock::{Condvar, Mutex, MutexGuard};
use crate::sys;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A thread that was idle for this long ends.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// So many threads stay, however long no packet comes: one that reads, and one to read on.
const KEPT: usize = 2;

/// A connection: where packets come from, and what is done with them.
pub(crate) trait Connection: Send + Sync + 'static {
    /// What a thread reads from. Each is one thread's at a time.
    type Input: Send;

    /// What was read, and what it belongs to.
    type Packet: Send;

    /// Whether handling may run linked code, whose own threads get this one's signals.
    const RUNS_LINKED_CODE: bool = false;

    /// Starts a thread.
    fn spawn(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match Self::RUNS_LINKED_CODE {
            true => sys::spawn_for_programs(body),
            false => sys::spawn("jitmem-channel", body),
        }
    }

    /// Waits for the next packet; `None` at the end.
    fn receive(&self, input: &mut Self::Input) -> Result<Option<Self::Packet>>;

    /// Handles one packet; may block.
    fn handle(&self, packet: Self::Packet);

    /// Handles one packet while no thread reads, since none can be started.
    fn handle_unread(&self, packet: Self::Packet) {
        self.handle(packet);
    }

    /// Makes threads that wait for packets see the end.
    fn hang_up(&self);

    /// The connection has come to its end, or this is why it was ended. Called once, when no thread
    /// reads any more: what every packet before the end belongs to is known.
    fn ended(&self, why: Result<()>);
}

/// The threads of a connection.
pub(crate) struct ReaderPool<C: Connection> {
    connection: Arc<C>,
    state: Mutex<PoolState<C::Input>>,
    /// The last thread has ended.
    gone: Condvar,
    idle_time: Duration,
}

type Guard<'a, C> = MutexGuard<'a, PoolState<<C as Connection>::Input>>;

struct PoolState<I> {
    /// What no thread reads.
    inputs: Vec<I>,
    /// Threads that read.
    readers: usize,
    /// Threads that were woken or started to read and have not come to it yet. While there is one, others
    /// are not woken: on a busy machine many packets may come before it.
    coming: usize,
    /// Threads that found no input, the latest last.
    idle: Vec<Arc<Parker>>,
    threads: usize,
    ended: Option<Result<()>>,
    /// The connection knows of its end.
    told: bool,
}

impl<I> PoolState<I> {
    /// A thread that was woken or started to read looks for an input now.
    fn one_has_come(&mut self) {
        // Those that the end wakes were not counted.
        self.coming = self.coming.saturating_sub(1);
    }
}

/// Has the packets of a connection handled until its end, which [`Connection::hang_up`] brings about.
pub(crate) fn start<C: Connection>(
    connection: Arc<C>,
    inputs: impl IntoIterator<Item = C::Input>,
) -> io::Result<()> {
    let pool = ReaderPool::new(connection, inputs, IDLE_TIME);
    // Another one reads on while the first handles: if there were none to be had then, nothing would read. None
    // has anything of the connection before all are there.
    let gate = Arc::new(Gate {
        state: Mutex::new(GateState::Closed),
        changed: Condvar::new(),
    });
    let started = (0..KEPT).try_for_each(|_| {
        let gate = Arc::clone(&gate);
        C::spawn(move || Gate::enter(gate))
    });
    gate.set(match started {
        Ok(()) => GateState::Open(pool),
        Err(_) => GateState::Gone,
    });
    started
}

/// Where the first threads of a connection wait until all of them are there.
struct Gate<C: Connection> {
    state: Mutex<GateState<C>>,
    changed: Condvar,
}

enum GateState<C: Connection> {
    Closed,
    Open(Arc<ReaderPool<C>>),
    /// One of them could not be started.
    Gone,
}

impl<C: Connection> Gate<C> {
    fn set(&self, now: GateState<C>) {
        *self.state.lock() = now;
        self.changed.notify_all();
    }

    /// What a thread does.
    fn enter(gate: Arc<Gate<C>>) {
        let pool = {
            let mut state = gate.state.lock();
            loop {
                match &*state {
                    GateState::Closed => state = gate.changed.wait(state),
                    GateState::Open(pool) => break Some(Arc::clone(pool)),
                    GateState::Gone => break None,
                }
            }
        };
        drop(gate);
        if let Some(pool) = pool {
            PoolThread::new(&pool).work(None);
        }
    }
}

/// [`start`] with the calling thread as the first to read. It handles nothing: with the first packet it
/// leaves the connection to other threads. Returns when all of them have ended.
pub(crate) fn run<C: Connection>(
    connection: Arc<C>,
    inputs: impl IntoIterator<Item = C::Input>,
) -> Result<()> {
    ReaderPool::new(connection, inputs, IDLE_TIME).run()
}

/// Runs code of the connection's. A panic is an error.
fn guarded<T>(body: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|_| {
        Error::new(
            Status::Internal,
            "jitmem panicked while it served a connection, which is a defect in it",
        )
    })
}

/// Where a thread waits until another wakes it. Not std's, which takes memory that may not be there when
/// a thread first asks for it.
#[derive(Default)]
struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    /// Waits, no longer than for `most`.
    fn park(&self, most: Option<Duration>) {
        let deadline = most.and_then(|most| Instant::now().checked_add(most));
        let mut woken = self.woken.lock();
        while !*woken && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            woken = match deadline {
                None => self.changed.wait(woken),
                Some(deadline) => self.changed.wait_until(woken, deadline),
            };
        }
        *woken = false;
    }

    fn unpark(&self) {
        *self.woken.lock() = true;
        self.changed.notify_one();
    }
}

impl<C: Connection> ReaderPool<C> {
    pub(crate) fn new(
        connection: Arc<C>,
        inputs: impl IntoIterator<Item = C::Input>,
        idle_time: Duration,
    ) -> Arc<ReaderPool<C>> {
        Arc::new(ReaderPool {
            connection,
            state: Mutex::new(PoolState {
                inputs: inputs.into_iter().collect(),
                readers: 0,
                coming: 0,
                idle: Vec::new(),
                threads: 0,
                ended: None,
                told: false,
            }),
            gone: Condvar::new(),
            idle_time,
        })
    }

    pub(crate) fn run(self: &Arc<Self>) -> Result<()> {
        let this_thread = PoolThread::new(self);
        self.read_until_handed_over(&this_thread.parker);
        drop(this_thread);
        let mut state = self.state.lock();
        while state.threads > 0 {
            state = self.gone.wait(state);
        }
        state.ended.take().unwrap_or(Ok(()))
    }

    /// Reads, and starts a thread that handles the first packet.
    fn read_until_handed_over(self: &Arc<Self>, parker: &Arc<Parker>) {
        while let Some((packet, _)) = self.next(parker) {
            let packet = Arc::new(Mutex::new(Some(packet)));
            let started = self.start_thread(Arc::clone(&packet));
            if started.is_ok() {
                return;
            }
            let packet = packet.lock().take();
            if let Some(packet) = packet {
                self.end_if_failed(guarded(|| self.connection.handle_unread(packet)));
            }
        }
    }

    /// Starts a thread, which handles `first` before it reads, if that holds a packet.
    fn start_thread(self: &Arc<Self>, first: Arc<Mutex<Option<C::Packet>>>) -> io::Result<()> {
        // If no thread can be started it is dropped, and so not counted any more.
        let thread = PoolThread::new(self);
        self.start_as(thread, move || first.lock().take())
    }

    /// Starts a thread that reads. It counts as coming.
    fn start_reader(self: &Arc<Self>) -> io::Result<()> {
        let mut thread = PoolThread::new(self);
        thread.is_coming = true;
        self.start_as(thread, || None)
    }

    fn start_as(
        &self,
        thread: PoolThread<C>,
        first: impl FnOnce() -> Option<C::Packet> + Send + 'static,
    ) -> io::Result<()> {
        C::spawn(move || thread.work(first()))
    }

    /// Reads the next packet, and tells whether other threads read on; `None` if the calling thread is
    /// not needed any more.
    fn next(&self, parker: &Arc<Parker>) -> Option<(C::Packet, bool)> {
        let mut input = self.take_input(parker)?;
        let received =
            guarded(|| self.connection.receive(&mut input)).and_then(|received| received);
        let packet = match received {
            Ok(Some(packet)) => Some(packet),
            Ok(None) => {
                self.end(Ok(()));
                None
            }
            Err(error) => {
                self.end(Err(error));
                None
            }
        };
        let mut state = self.state.lock();
        state.inputs.push(input);
        state.readers -= 1;
        let others_read = state.readers > 0;
        self.tell_end(state);
        Some((packet?, others_read))
    }

    fn take_input(&self, parker: &Arc<Parker>) -> Option<C::Input> {
        let mut state = self.state.lock();
        loop {
            if state.ended.is_some() {
                return None;
            }
            if let Some(input) = state.inputs.pop() {
                state.readers += 1;
                return Some(input);
            }
            state = self.wait_idle(state, parker)?;
        }
    }

    /// Waits until another thread wakes this one; `None` if none has for too long.
    fn wait_idle<'a>(
        &'a self,
        mut state: Guard<'a, C>,
        parker: &Arc<Parker>,
    ) -> Option<Guard<'a, C>> {
        let kept = state.readers + state.idle.len() < KEPT;
        state.idle.push(Arc::clone(parker));
        let since = Instant::now();
        drop(state);
        parker.park((!kept).then_some(self.idle_time));
        let mut state = self.state.lock();
        // A thread that wakes another takes it off the list; without that it woke by itself.
        let Some(place) = state.idle.iter().position(|idle| Arc::ptr_eq(idle, parker)) else {
            state.one_has_come();
            return Some(state);
        };
        state.idle.remove(place);
        (kept || since.elapsed() < self.idle_time).then_some(state)
    }

    /// Makes sure that a thread reads while this one handles; `false` if none can be started.
    fn let_another_read(self: &Arc<Self>) -> bool {
        let mut state = self.state.lock();
        if state.readers > 0 || state.coming > 0 || state.ended.is_some() {
            return true;
        }
        let idle = state.idle.pop();
        state.coming += 1;
        drop(state);
        match idle {
            Some(thread) => thread.unpark(),
            None => match self.start_reader() {
                Ok(()) => (),
                // A thread may have come back from handling meanwhile.
                Err(_) => return self.state.lock().readers > 0,
            },
        }
        true
    }

    fn process(self: &Arc<Self>, packet: C::Packet, others_read: bool) {
        let read_on = match others_read {
            true => true,
            false => self.let_another_read(),
        };
        self.end_if_failed(match read_on {
            true => guarded(|| self.connection.handle(packet)),
            false => guarded(|| self.connection.handle_unread(packet)),
        });
    }

    fn end_if_failed(&self, handled: Result<()>) {
        if handled.is_err() {
            self.end(handled);
            self.tell_end(self.state.lock());
        }
    }

    /// Ends the connection. The first reason that is an error counts.
    fn end(&self, why: Result<()>) {
        let mut state = self.state.lock();
        if !matches!(state.ended, Some(Err(_))) {
            state.ended = Some(why);
        }
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        self.connection.hang_up();
        idle.iter().for_each(|thread| thread.unpark());
    }

    fn tell_end(&self, mut state: Guard<'_, C>) {
        if state.readers > 0 || state.told {
            return;
        }
        if let Some(why) = state.ended.clone() {
            state.told = true;
            drop(state);
            self.connection.ended(why);
        }
    }

    #[cfg(test)]
    pub(crate) fn threads(&self) -> usize {
        self.state.lock().threads
    }
}

/// One of the threads, while it lives.
struct PoolThread<C: Connection> {
    pool: Arc<ReaderPool<C>>,
    parker: Arc<Parker>,
    /// It is counted as one that comes to read.
    is_coming: bool,
}

impl<C: Connection> PoolThread<C> {
    fn new(pool: &Arc<ReaderPool<C>>) -> PoolThread<C> {
        pool.state.lock().threads += 1;
        PoolThread {
            pool: Arc::clone(pool),
            parker: Arc::default(),
            is_coming: false,
        }
    }

    fn has_come(&mut self) {
        if std::mem::take(&mut self.is_coming) {
            self.pool.state.lock().one_has_come();
        }
    }

    fn work(mut self, first: Option<C::Packet>) {
        self.has_come();
        let pool = &self.pool;
        if let Some(packet) = first {
            pool.process(packet, false);
        }
        while let Some((packet, others_read)) = pool.next(&self.parker) {
            pool.process(packet, others_read);
        }
    }
}

impl<C: Connection> Drop for PoolThread<C> {
    fn drop(&mut self) {
        self.has_come();
        let mut state = self.pool.state.lock();
        state.threads -= 1;
        if state.threads == 0 {
            self.pool.gone.notify_all();
        }
    }
}
