// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What children of this process have started, and leave when they end.

use super::{ChildProcess, gate, spawn};
use crate::lock::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, set_child_subreaper,
    waitpid,
};
use std::fs;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For how long processes are ended that start others meanwhile, or that the system does not end at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Processes that become children of this one when what has started them ends.
pub(crate) struct Orphans {
    /// The children that were there before. They are left alone.
    others: Vec<Pid>,
    /// The child that is none of them. Held while it is forked, and while anything is waited for here.
    child: Mutex<Option<Pid>>,
    changed: Condvar,
}

/// While a child is forked.
pub(crate) struct Forking<'a> {
    child: MutexGuard<'a, Option<Pid>>,
    changed: &'a Condvar,
}

impl Forking<'_> {
    /// It was, and is to be waited for by its owner.
    pub(crate) fn forked(mut self, process: &ChildProcess) {
        *self.child = process.number();
        self.changed.notify_all();
    }
}

impl Orphans {
    /// Has this process adopt them from now on, and wait for those that end by themselves: they would count as processes
    /// until then. It has no other children besides those that are there now than one at a time, which it says.
    ///
    /// # Errors
    /// What the system says: it lists children in /proc only.
    pub(crate) fn adopt() -> io::Result<Arc<Orphans>> {
        let orphans = Arc::new(Orphans {
            others: children()?,
            child: Mutex::default(),
            changed: Condvar::new(),
        });
        gate("prctl")?;
        set_child_subreaper(Some(getpid()))?;
        let waiting = Arc::clone(&orphans);
        let spawned = spawn("jitmem-orphans", move || waiting.wait_for_all());
        if spawned.is_err() {
            // Nothing would wait for them.
            set_child_subreaper(None)?;
        }
        spawned.map(|()| orphans)
    }

    /// To be called before a child is forked.
    pub(crate) fn fork(&self) -> Forking<'_> {
        Forking {
            child: self.child.lock(),
            changed: &self.changed,
        }
    }

    /// The child was waited for.
    pub(crate) fn child_is_gone(&self) {
        *self.child.lock() = None;
        self.changed.notify_all();
    }

    fn wait_for_all(&self) {
        loop {
            let ended = any_ended();
            let mut child = self.child.lock();
            match ended {
                // No child is forked meanwhile, so this is none.
                Some(ended) if *child != Some(ended) && !self.others.contains(&ended) => {
                    let _ = waitpid(Some(ended), WaitOptions::NOHANG);
                }
                // The system tells of the same one until its owner has waited for it.
                Some(ended) if *child == Some(ended) => {
                    while *child == Some(ended) {
                        child = self.changed.wait(child);
                    }
                }
                Some(_) => return,
                // There were no children. One may have been forked since, or not be told of yet that was waited for.
                None => {
                    child.take_if(|child| !is_child(*child));
                    while child.is_none() {
                        child = self.changed.wait(child);
                    }
                }
            }
        }
    }

    /// Ends all that there are, and what they start meanwhile. No child of this process is to stay.
    ///
    /// # Errors
    /// What the system says where some are left.
    pub(crate) fn end(&self) -> io::Result<()> {
        let _numbers_in_use = self.child.lock();
        let until = Instant::now() + PATIENCE;
        loop {
            let mut orphans = children()?;
            orphans.retain(|child| !self.others.contains(child));
            if orphans.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            for orphan in &orphans {
                kill(*orphan)?;
            }
            for orphan in orphans {
                await_end(orphan, until)?;
            }
        }
    }
}

/// A child of this process that has ended, once there is one, and was not waited for. `None` if the system does not say.
fn any_ended() -> Option<Pid> {
    loop {
        // SAFETY: all zero is a value of it.
        let mut ended: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: a siginfo to write to.
        match unsafe { libc::waitid(libc::P_ALL, 0, &mut ended, libc::WEXITED | libc::WNOWAIT) } {
            // SAFETY: the system has filled it in for a child.
            0 => return Pid::from_raw(unsafe { ended.si_pid() }),
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            _ => return None,
        }
    }
}

/// Whether it is a child of this process, which has ended or has not.
fn is_child(process: Pid) -> bool {
    // SAFETY: all zero is a value of it.
    let mut state: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let number = process.as_raw_nonzero().get() as libc::id_t;
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a siginfo to write to.
    unsafe { libc::waitid(libc::P_PID, number, &mut state, options) == 0 }
}

/// One that has ended by itself has its number until it is waited for.
fn kill(orphan: Pid) -> io::Result<()> {
    gate("kill")?;
    Ok(kill_process(orphan, Signal::KILL)?)
}

fn await_end(orphan: Pid, until: Instant) -> io::Result<()> {
    match pidfd_open(orphan, PidfdFlags::empty()) {
        Ok(process) => loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::OVERFLOW)?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        },
        // It is gone, or the system is older than Linux 5.3; then it is waited for as long as it takes.
        Err(Errno::SRCH | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    match waitpid(Some(orphan), WaitOptions::empty()) {
        Ok(_) | Err(Errno::CHILD) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The children of all threads of this process.
fn children() -> io::Result<Vec<Pid>> {
    let mut lists = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        lists.push(fs::read_to_string(thread?.path().join("children")));
    }
    // A thread that has ended meanwhile has none; where no thread has one, the system lists no children.
    if lists.iter().any(Result::is_ok) {
        lists.retain(|list| !list.as_ref().is_err_and(is_of_no_thread));
    }
    let mut children = Vec::new();
    for list in lists {
        let list = list?;
        let numbers = list.split_whitespace();
        let numbers = numbers.filter_map(|number| number.parse().ok());
        children.extend(numbers.filter_map(Pid::from_raw));
    }
    Ok(children)
}

fn is_of_no_thread(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::in_a_child;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;

    /// Has a child start so many processes, each the child of the one before, which says its number and waits; ends the child.
    fn leave(count: usize) -> Vec<Pid> {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let start = move || {
            for _ in 0..count {
                // SAFETY: what is forked makes system calls.
                if unsafe { libc::fork() } > 0 {
                    loop {
                        // SAFETY: a call that waits.
                        unsafe { libc::pause() };
                    }
                }
                there
                    .write_all(&getpid().as_raw_nonzero().get().to_ne_bytes())
                    .unwrap();
            }
            loop {
                // SAFETY: a call that waits.
                unsafe { libc::pause() };
            }
        };
        // SAFETY: the child makes system calls.
        let child = unsafe { ChildProcess::start(start) }.unwrap();
        let mut number = [0; 4];
        let mut read = || {
            here.read_exact(&mut number).unwrap();
            Pid::from_raw(i32::from_ne_bytes(number)).unwrap()
        };
        let left = (0..count).map(|_| read()).collect();
        child.end();
        left
    }

    fn is_there(process: Pid) -> bool {
        rustix::process::test_kill_process(process).is_ok()
    }

    #[test]
    fn what_a_child_leaves_is_ended_with_what_that_has_started() {
        assert!(in_a_child(|| {
            // SAFETY: the child waits.
            let other = unsafe { ChildProcess::start(|| libc::pause()) }.unwrap();
            let orphans = Orphans::adopt().unwrap();
            orphans.end().unwrap();
            for count in [1, 20] {
                let left = leave(count);
                assert!(left.iter().all(|process| is_there(*process)));
                orphans.end().unwrap();
                assert!(!left.iter().any(|process| is_there(*process)));
            }
            assert_eq!(children().unwrap().len(), 1);
            other.end();
            true
        }));
    }

    /// Each forks the next one and ends.
    #[test]
    fn what_forks_faster_than_it_is_ended_keeps_nothing_waiting() {
        assert!(in_a_child(|| {
            let orphans = Orphans::adopt().unwrap();
            let (mut here, mut there) = UnixStream::pair().unwrap();
            let start = move || {
                // SAFETY: what is forked makes system calls.
                unsafe {
                    if libc::fork() > 0 {
                        loop {
                            libc::pause();
                        }
                    }
                    // So many of them that nothing is left in the end where none is ended.
                    for number in 0..20_000 {
                        if libc::fork() > 0 {
                            libc::_exit(0);
                        }
                        if number == 10 {
                            there.write_all(&[0]).unwrap();
                        }
                    }
                    libc::_exit(0)
                }
            };
            // SAFETY: the child makes system calls.
            let child = unsafe { ChildProcess::start(start) }.unwrap();
            here.read_exact(&mut [0]).unwrap();
            child.end();
            let begun = Instant::now();
            let ended = orphans.end();
            assert!(ended.is_ok() || begun.elapsed() >= PATIENCE);
            assert!(begun.elapsed() < 10 * PATIENCE);
            true
        }));
    }

    #[test]
    fn orphans_that_end_are_waited_for_and_a_child_is_not() {
        assert!(in_a_child(|| {
            let orphans = Orphans::adopt().unwrap();
            for _ in 0..3 {
                let left = leave(3);
                let forking = orphans.fork();
                // SAFETY: the child waits.
                let child = unsafe { ChildProcess::start(|| libc::pause()) }.unwrap();
                forking.forked(&child);
                for process in &left {
                    kill_process(*process, Signal::KILL).unwrap();
                }
                while left.iter().any(|process| is_there(*process)) {
                    std::thread::yield_now();
                }
                child.kill();
                child.await_end();
                // It stays until this.
                let status = child.wait().unwrap();
                assert_eq!(status.signal(), Some(libc::SIGKILL));
                orphans.child_is_gone();
            }
            children().unwrap().is_empty()
        }));
    }

    #[test]
    fn a_system_that_lists_or_ends_none_says_so() {
        assert!(in_a_child(|| {
            let orphans = Orphans::adopt().unwrap();
            let left = leave(1);
            let faults = crate::sys::fault::Faults::one(0, libc::EPERM);
            let error = orphans.end().unwrap_err();
            assert_eq!(faults.failed(), Some("kill"));
            drop(faults);
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
            assert!(is_there(left[0]));
            orphans.end().unwrap();
            !is_there(left[0])
        }));
    }
}
