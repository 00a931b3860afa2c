// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A connection whose packets say what handling them does.

use super::*;
use crate::sys::fault::Faults;
use std::collections::VecDeque;
use std::thread;
use std::thread::ThreadId;

#[derive(Default)]
struct Script {
    packets: VecDeque<Packet>,
    closed: bool,
    reading: usize,
    most_reading: usize,
    handled: Vec<(&'static str, ThreadId)>,
    /// How many threads read when the end was told.
    ended: Vec<(usize, Result<()>)>,
}

/// A connection whose packets say what handling does.
#[derive(Default)]
struct Scripted {
    script: Mutex<Script>,
    changed: Condvar,
}

enum Packet {
    Nothing,
    /// Handling returns when as many packets are being handled.
    Wait(usize),
    Panic,
}

impl Scripted {
    fn send(&self, packets: impl IntoIterator<Item = Packet>) {
        self.script.lock().packets.extend(packets);
        self.changed.notify_all();
    }

    fn wait_until(&self, condition: impl Fn(&Script) -> bool) {
        let mut script = self.script.lock();
        while !condition(&script) {
            script = self.changed.wait(script);
        }
    }

    fn note(&self, how: &'static str) {
        let by = thread::current().id();
        self.script.lock().handled.push((how, by));
        self.changed.notify_all();
    }
}

impl Connection for Scripted {
    type Input = ();
    type Packet = Packet;

    fn receive(&self, (): &mut ()) -> Result<Option<Packet>> {
        let mut script = self.script.lock();
        script.reading += 1;
        script.most_reading = script.most_reading.max(script.reading);
        self.changed.notify_all();
        let packet = loop {
            if let Some(packet) = script.packets.pop_front() {
                break Some(packet);
            }
            if script.closed {
                break None;
            }
            script = self.changed.wait(script);
        };
        script.reading -= 1;
        Ok(packet)
    }

    fn handle(&self, packet: Packet) {
        self.note("handled");
        match packet {
            Packet::Nothing => (),
            Packet::Wait(count) => self.wait_until(|script| script.handled.len() >= count),
            Packet::Panic => panic!("on purpose"),
        }
    }

    fn handle_unread(&self, _packet: Packet) {
        self.note("unread");
    }

    fn hang_up(&self) {
        self.script.lock().closed = true;
        self.changed.notify_all();
    }

    fn ended(&self, why: Result<()>) {
        let mut script = self.script.lock();
        let reading = script.reading;
        script.ended.push((reading, why));
        self.changed.notify_all();
    }
}

fn pool(inputs: usize, idle_time: Duration) -> (Arc<Scripted>, Arc<ReaderPool<Scripted>>) {
    let connection = Arc::new(Scripted::default());
    let pool = ReaderPool::new(Arc::clone(&connection), vec![(); inputs], idle_time);
    (connection, pool)
}

#[test]
fn handlers_that_wait_for_each_other_all_run_and_no_more_threads_read_than_there_are_inputs() {
    for inputs in [1, 2] {
        let (connection, pool) = pool(inputs, Duration::MAX);
        pool.start_thread(Arc::default()).unwrap();
        connection.send((0..20).map(|_| Packet::Wait(20)));
        connection.wait_until(|script| script.handled.len() == 20);
        connection.hang_up();
        connection.wait_until(|script| !script.ended.is_empty());
        assert!(connection.script.lock().most_reading <= inputs);
    }
}

#[test]
fn the_end_is_told_once_when_no_thread_reads() {
    let (connection, pool) = pool(2, Duration::MAX);
    pool.start_thread(Arc::default()).unwrap();
    connection.send([Packet::Wait(2), Packet::Wait(2)]);
    // Both have come back to read.
    connection.wait_until(|script| script.reading == 2);
    connection.hang_up();
    connection.wait_until(|script| !script.ended.is_empty());
    let mut state = pool.state.lock();
    while state.threads > 0 {
        state = pool.gone.wait(state);
    }
    assert_eq!(connection.script.lock().ended, [(0, Ok(()))]);
}

#[test]
fn a_panic_ends_the_connection() {
    let (connection, pool) = pool(2, Duration::MAX);
    connection.send([Packet::Panic]);
    let error = pool.run().unwrap_err();
    assert_eq!(error.status(), Status::Internal);
    assert_eq!(connection.script.lock().ended, [(0, Err(error))]);
}

#[test]
fn idle_threads_end_but_for_those_that_read_on() {
    for inputs in [1, 2] {
        let (connection, pool) = pool(inputs, Duration::from_millis(1));
        pool.start_thread(Arc::default()).unwrap();
        connection.send((0..20).map(|_| Packet::Wait(20)));
        connection.wait_until(|script| script.handled.len() == 20);
        while pool.threads() != KEPT {
            thread::yield_now();
        }
        connection.hang_up();
        connection.wait_until(|script| !script.ended.is_empty());
    }
}

#[test]
fn while_a_thread_comes_to_read_no_other_is_woken_or_started() {
    let (connection, pool) = pool(1, Duration::MAX);
    let [first, last] = [Arc::<Parker>::default(), Arc::default()];
    pool.state.lock().idle = vec![Arc::clone(&first), Arc::clone(&last)];
    for _ in 0..3 {
        assert!(pool.let_another_read());
    }
    let is_woken = |parker: &Parker| *parker.woken.lock();
    assert!(is_woken(&last) && !is_woken(&first));
    // It comes, and reads nothing.
    pool.state.lock().one_has_come();
    assert!(pool.let_another_read());
    assert!(is_woken(&first));
    assert_eq!(pool.threads(), 0);
    pool.state.lock().one_has_come();
    // Threads that are started come, and so do those that can't be: then the next packet tries again.
    let no_thread = Faults::one(0, libc::EAGAIN);
    assert!(!pool.let_another_read());
    assert_eq!(no_thread.failed(), Some("clone"));
    drop(no_thread);
    for _ in 0..3 {
        assert!(pool.let_another_read());
    }
    connection.wait_until(|script| script.reading == 1);
    assert_eq!(pool.threads(), 1);
    assert_eq!(pool.state.lock().coming, 0);
    connection.hang_up();
    connection.wait_until(|script| !script.ended.is_empty());
}

#[test]
fn the_thread_that_runs_it_handles_only_what_no_other_thread_can() {
    let (connection, pool) = pool(1, Duration::MAX);
    connection.send([Packet::Nothing, Packet::Nothing]);
    let other = Arc::clone(&connection);
    let ends = thread::spawn(move || {
        other.wait_until(|script| script.handled.len() == 2);
        other.hang_up();
    });
    let no_thread = Faults::one(0, libc::EAGAIN);
    pool.run().unwrap();
    assert_eq!(no_thread.failed(), Some("clone"));
    ends.join().unwrap();
    let handled = &connection.script.lock().handled;
    let own = thread::current().id();
    assert_eq!(handled[0], ("unread", own));
    assert_eq!(handled[1].0, "handled");
    assert_ne!(handled[1].1, own);
}

#[test]
fn both_threads_that_stay_are_there_before_anything_is_read() {
    for threads in 0..=KEPT as u32 {
        let connection = Arc::new(Scripted::default());
        let faults = Faults::all_after(threads, libc::EAGAIN);
        let started = start(Arc::clone(&connection), [()]);
        drop(faults);
        if threads < KEPT as u32 {
            let why = started.unwrap_err();
            assert_eq!(why.raw_os_error(), Some(libc::EAGAIN));
            // What was started has nothing of it.
            assert_eq!(Arc::strong_count(&connection), 1);
            let script = connection.script.lock();
            assert_eq!((script.most_reading, script.ended.len()), (0, 0));
            continue;
        }
        started.unwrap();
        // One reads while the other handles, and none is started for that.
        connection.send([Packet::Wait(2), Packet::Wait(2)]);
        connection.wait_until(|script| script.handled.len() == 2);
        connection.hang_up();
        connection.wait_until(|script| script.ended.len() == 1);
    }
}
