// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What children of this process have started, and leave when they end.

use super::{ChildProcess, gate};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, set_child_subreaper,
    waitpid,
};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// For how long processes are ended that start others meanwhile, or that the system does not end at once.
const PATIENCE: Duration = Duration::from_secs(2);

/// Processes that become children of this one when what has started them ends.
pub(crate) struct Orphans {
    /// The children that were there before. They are left alone.
    others: Vec<Pid>,
}

impl Orphans {
    /// Has this process adopt them from now on. It has no other children besides those that are there now than
    /// [`ChildProcess`]es of which one is alive at a time.
    ///
    /// # Errors
    /// What the system says: it lists children in /proc only.
    pub(crate) fn adopt() -> io::Result<Orphans> {
        let others = children()?;
        gate("prctl")?;
        set_child_subreaper(Some(getpid()))?;
        Ok(Orphans { others })
    }

    /// Waits until a child has ended, and leaves that to [`ChildProcess::wait`]. Orphans that end meanwhile are waited for
    /// too: they would count as processes until then.
    pub(crate) fn await_end_of(&self, child: &ChildProcess) {
        loop {
            let ended = any_ended();
            // Where another thread has waited for it, what has ended may be the child that took its place.
            if child.is_gone() {
                return;
            }
            match ended {
                Some(ended) if !child.is(ended) && !self.others.contains(&ended) => {
                    let _ = waitpid(Some(ended), WaitOptions::NOHANG);
                }
                _ => return child.await_end(),
            }
        }
    }

    /// Ends all that there are, and what they start meanwhile. No child of this process is to stay.
    ///
    /// # Errors
    /// What the system says where some are left.
    pub(crate) fn end(&self) -> io::Result<()> {
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

/// One that has ended by itself was a child of this process's until it is waited for, so the number is still its own.
fn kill(orphan: Pid) -> io::Result<()> {
    gate("kill")?;
    match kill_process(orphan, Signal::KILL) {
        // Another thread has waited for it.
        Err(Errno::SRCH) => Ok(()),
        other => Ok(other?),
    }
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
    fn orphans_that_end_are_waited_for_while_a_child_is() {
        assert!(in_a_child(|| {
            let orphans = Orphans::adopt().unwrap();
            let left = leave(3);
            // SAFETY: the child waits.
            let child = unsafe { ChildProcess::start(|| libc::pause()) }.unwrap();
            std::thread::scope(|threads| {
                let waiting = threads.spawn(|| orphans.await_end_of(&child));
                for process in &left {
                    kill_process(*process, Signal::KILL).unwrap();
                }
                while left.iter().any(|process| is_there(*process)) {
                    std::thread::yield_now();
                }
                assert!(!waiting.is_finished());
                child.kill();
                waiting.join().unwrap();
                assert_eq!(children().unwrap().len(), 1);
                child.wait().unwrap();
            });
            true
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
