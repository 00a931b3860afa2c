// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The programs of a connection, each in a thread of its own, and how long they may run.

use super::connection::ServerConnection;
use crate::error::Result;
use crate::lock::{Condvar, Mutex};
use crate::sys::{self, explain};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// What the process exits with when a program has run for too long, as under timeout(1).
const TIMED_OUT: i32 = 124;
const ORPHANED: i32 = 1;

/// How long a controller may take to read why the process ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// For how long linked code may run; `None` for any time.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) program: Option<Duration>,
    /// When the controller is gone.
    pub(super) orphaned: Option<Duration>,
}

impl Limits {
    pub(super) fn are_set(self) -> bool {
        self.program.or(self.orphaned).is_some()
    }

    /// Each so much later.
    pub(super) fn later(self, by: Duration) -> Limits {
        let later = |limit: Duration| limit.saturating_add(by);
        Limits {
            program: self.program.map(later),
            orphaned: self.orphaned.map(later),
        }
    }
}

#[derive(Default)]
pub(super) struct Programs {
    state: Mutex<State>,
    none: Condvar,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// When each was started and the call that it answers, by number: the oldest first.
    running: BTreeMap<u64, (Instant, u64)>,
    next: u64,
    /// When the controller was found to be gone.
    orphaned: Option<Instant>,
    /// All is done that linked code takes part in.
    over: bool,
}

pub(super) enum Limit {
    Program(u64),
    Orphaned,
}

impl State {
    /// What comes first to its limit, and when.
    fn next_limit(&self, limits: Limits) -> Option<(Instant, Limit)> {
        let program = self.running.values().next().and_then(|(since, call)| {
            let end = since.checked_add(limits.program?)?;
            Some((end, Limit::Program(*call)))
        });
        let orphaned = self.orphaned.and_then(|since| {
            let end = since.checked_add(limits.orphaned?)?;
            Some((end, Limit::Orphaned))
        });
        let both = program.into_iter().chain(orphaned);
        both.min_by_key(|(end, _)| *end)
    }
}

impl Programs {
    /// A program is about to run; its number.
    pub(super) fn started(&self, call: u64) -> u64 {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.running.insert(number, (Instant::now(), call));
        if state.running.len() == 1 {
            self.changed.notify_all();
        }
        number
    }

    pub(super) fn ended(&self, number: u64) {
        let mut state = self.state.lock();
        state.running.remove(&number);
        if state.running.is_empty() {
            self.none.notify_all();
        }
    }

    /// The controller is gone.
    pub(super) fn orphaned(&self) {
        self.state.lock().orphaned.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    /// Nothing comes to a limit any more.
    pub(super) fn over(&self) {
        self.state.lock().over = true;
        self.changed.notify_all();
    }

    pub(super) fn wait_for_all(&self) {
        let mut state = self.state.lock();
        while !state.running.is_empty() {
            state = self.none.wait(state);
        }
    }

    /// Waits until something has come to its limit; `None` if the session is over before.
    pub(super) fn wait_for_limit(&self, limits: Limits) -> Option<Limit> {
        let mut state = self.state.lock();
        while !state.over {
            state = match state.next_limit(limits) {
                Some((end, limit)) if Instant::now() >= end => return Some(limit),
                Some((end, _)) => self.changed.wait_until(state, end),
                None => self.changed.wait(state),
            };
        }
        None
    }
}

/// Ends the process when linked code has come to a limit, while this lives.
pub(super) struct Watchdog(Arc<Programs>);

impl Watchdog {
    /// Starts a thread for it.
    pub(super) fn start(connection: &Arc<ServerConnection>, limits: Limits) -> Result<Watchdog> {
        let programs = Arc::clone(connection.programs());
        let (watched, connection) = (Arc::clone(&programs), Arc::downgrade(connection));
        let watch = move || {
            if let Some(limit) = watched.wait_for_limit(limits) {
                end_process(&connection, limits, &limit);
            }
        };
        sys::spawn("jitmem-watchdog", watch)
            .map_err(|error| explain("start the thread that watches the time limits", error))?;
        Ok(Watchdog(programs))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.over();
    }
}

fn end_process(connection: &Weak<ServerConnection>, limits: Limits, limit: &Limit) -> ! {
    let seconds = |limit: Option<Duration>| limit.unwrap_or_default().as_secs();
    let (why, code) = match limit {
        Limit::Program(call) => {
            let limit = seconds(limits.program);
            let why = format!(
                "time limit: the program of call {call} ran for {limit} s, so the executor has ended"
            );
            (why, TIMED_OUT)
        }
        Limit::Orphaned => {
            let limit = seconds(limits.orphaned);
            let why = format!(
                "the controller has been gone for {limit} s and linked code still ran, so the executor has ended"
            );
            (why, ORPHANED)
        }
    };
    say(&why);
    if code == TIMED_OUT {
        say_goodbye(connection, why);
    }
    // Exit handlers would run beside the program.
    sys::exit_now(code)
}

/// Says something on stderr.
pub(super) fn say(what: &str) {
    // Rust's stderr has a lock, which a forked child may find held by a thread that it does not have.
    sys::write_to_stderr(format!("jitmem: {what}\n").as_bytes());
}

/// Tells the controller why this process ends, if it reads that soon.
pub(super) fn say_goodbye(connection: &Weak<ServerConnection>, why: String) {
    let Some(connection) = connection.upgrade() else {
        return;
    };
    let told = Arc::new((Mutex::new(false), Condvar::new()));
    let tells = Arc::clone(&told);
    // By a thread of its own: the controller may not read.
    let tell = move || {
        connection.say_goodbye(why);
        *tells.0.lock() = true;
        tells.1.notify_all();
    };
    if sys::spawn("jitmem-goodbye", tell).is_ok() {
        let end = Instant::now() + GOODBYE;
        let mut is_told = told.0.lock();
        while !*is_told && Instant::now() < end {
            is_told = told.1.wait_until(is_told, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_to_its_limit_counts() {
        let limits = Limits {
            program: Some(Duration::from_secs(10)),
            orphaned: Some(Duration::from_secs(5)),
        };
        let now = Instant::now();
        let mut state = State::default();
        assert!(state.next_limit(limits).is_none());
        state.running.insert(1, (now, 7));
        state.running.insert(2, (now, 8));
        let (end, limit) = state.next_limit(limits).unwrap();
        assert_eq!(end, now + Duration::from_secs(10));
        assert!(matches!(limit, Limit::Program(7)));
        state.orphaned = Some(now);
        let (end, limit) = state.next_limit(limits).unwrap();
        assert_eq!(end, now + Duration::from_secs(5));
        assert!(matches!(limit, Limit::Orphaned));
        let none = Limits {
            program: None,
            orphaned: None,
        };
        assert!(state.next_limit(none).is_none());
    }

    #[test]
    fn a_watchdog_ends_with_its_session() {
        let programs = Arc::new(Programs::default());
        let limits = Limits {
            program: Some(Duration::from_secs(3600)),
            orphaned: None,
        };
        let watched = Arc::clone(&programs);
        let watch = std::thread::spawn(move || watched.wait_for_limit(limits).is_none());
        let number = programs.started(1);
        programs.ended(number);
        programs.wait_for_all();
        drop(Watchdog(programs));
        assert!(watch.join().unwrap());
    }

    #[test]
    fn what_a_child_says_waits_for_no_thread_of_its_parent() {
        let (held, is_held) = std::sync::mpsc::channel();
        let (over, until) = std::sync::mpsc::channel::<()>();
        let holds = std::thread::spawn(move || {
            let _stderr = std::io::stderr().lock();
            held.send(()).unwrap();
            let _ = until.recv();
        });
        is_held.recv().unwrap();
        let says = || {
            // SAFETY: ends a child that hangs.
            unsafe { libc::alarm(20) };
            say("said by a forked child while another thread of its parent has the lock of stderr");
            true
        };
        assert!(sys::in_a_child(says));
        drop(over);
        holds.join().unwrap();
    }
}
