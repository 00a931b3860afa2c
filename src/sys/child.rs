// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A child process that runs a function of this program.

use super::gate;
use crate::lock::Mutex;
use rustix::process::Pid;
use std::ffi::c_int;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// A child that is waited for once.
#[derive(Debug)]
pub(crate) struct ChildProcess {
    number: libc::pid_t,
    /// It was waited for, so that its number may be another's.
    gone: AtomicBool,
    /// Held while it is killed and while it is waited for, so that no other process is killed in its place.
    number_in_use: Mutex<()>,
}

/// The exit code of a child whose function has panicked.
const PANICKED: c_int = 101;

impl ChildProcess {
    /// Has a child run `body` and exit with what that gives; what it has printed by C's streams is written.
    /// The child is killed when the calling thread ends, or its process.
    ///
    /// # Safety
    /// `body` takes no lock that another thread of this process may hold, but for those that forks see to.
    pub(crate) unsafe fn start(body: impl FnOnce() -> c_int) -> io::Result<ChildProcess> {
        gate("fork")?;
        // SAFETY: asks for a number.
        let parent = unsafe { libc::getpid() };
        // SAFETY: the child does what the caller vouches for.
        let number = unsafe { libc::fork() };
        match number {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: plain calls; exit runs what this program and C's library have for the end.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                    // The parent may have ended before that.
                    if libc::getppid() != parent {
                        libc::_exit(PANICKED);
                    }
                    if let Some(first) = FIRST_THREAD.get() {
                        let mask = &first.mask;
                        libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut());
                        libc::prctl(libc::PR_SET_NAME, first.name.as_ptr());
                    }
                    let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
                    libc::exit(code)
                }
            }
            number => Ok(ChildProcess {
                number,
                gone: AtomicBool::new(false),
                number_in_use: Mutex::default(),
            }),
        }
    }

    /// Kills it, unless it was waited for.
    pub(crate) fn kill(&self) {
        let _number = self.number_in_use.lock();
        if !self.gone.load(Ordering::Acquire) {
            // SAFETY: a child of this process that was not waited for, nor is meanwhile, so its number is its own.
            unsafe { libc::kill(self.number, libc::SIGKILL) };
        }
    }

    pub(super) fn number(&self) -> Option<Pid> {
        Pid::from_raw(self.number)
    }

    /// Kills it and waits for its end. Called once, in place of [`wait`](Self::wait).
    pub(crate) fn end(&self) {
        self.kill();
        // Where it was waited for elsewhere it is gone as well.
        let _ = self.wait();
    }

    /// Waits until it has ended, and leaves it to [`wait`](Self::wait). For any thread, at any time.
    pub(crate) fn await_end(&self) {
        while !self.gone.load(Ordering::Acquire) {
            // SAFETY: a siginfo to write to. Where another thread waits for it in this moment, the number may be
            // none, or another child's of this process.
            let waited = unsafe {
                libc::waitid(
                    libc::P_PID,
                    self.number as libc::id_t,
                    &mut none(),
                    libc::WEXITED | libc::WNOWAIT,
                )
            };
            if waited == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }

    /// Waits for its end. Called once.
    pub(crate) fn wait(&self) -> io::Result<ExitStatus> {
        self.await_end();
        let number = self.number_in_use.lock();
        let mut ended = self.reap(libc::WNOHANG);
        if let Ok(None) = ended {
            // The system has refused to say when it ends. It may be killed meanwhile.
            drop(number);
            ended = self.reap(0);
        }
        // From here on its number may be given again.
        self.gone.store(true, Ordering::Release);
        ended?.ok_or_else(|| io::Error::from_raw_os_error(libc::ECHILD))
    }

    /// `None` if it has not ended.
    fn reap(&self, options: c_int) -> io::Result<Option<ExitStatus>> {
        let mut status = 0;
        loop {
            // SAFETY: an integer to write to.
            match unsafe { libc::waitpid(self.number, &mut status, options) } {
                -1 => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
                0 => return Ok(None),
                _ => return Ok(Some(ExitStatus::from_raw(status))),
            }
        }
    }
}

fn none() -> libc::siginfo_t {
    // SAFETY: all zero is a value of it.
    unsafe { std::mem::zeroed() }
}

/// What the first threads of children take from the thread that has said so: others of this process block all signals
/// and have other names.
static FIRST_THREAD: OnceLock<FirstThread> = OnceLock::new();

struct FirstThread {
    /// Which signals it blocks.
    mask: libc::sigset_t,
    name: [u8; 16],
}

// SAFETY: bits.
unsafe impl Send for FirstThread {}
// SAFETY: as above.
unsafe impl Sync for FirstThread {}

/// Has children of this process stay until they are waited for, whatever its parent has set, block the
/// signals that the calling thread blocks, and have its name.
pub(crate) fn prepare_for_children() {
    FIRST_THREAD.get_or_init(|| {
        let mut name = [0; 16];
        // SAFETY: all zero is a set of signals, to which this thread's is written; a name has at most 16 bytes.
        unsafe {
            let mut mask = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
            libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
            FirstThread { mask, name }
        }
    });
    // SAFETY: the default action, which takes no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gives_its_code_and_can_be_killed() {
        // SAFETY: the children make system calls.
        let (exits, sleeps) = unsafe {
            (
                ChildProcess::start(|| libc::_exit(7)).unwrap(),
                ChildProcess::start(|| {
                    loop {
                        libc::pause();
                    }
                })
                .unwrap(),
            )
        };
        assert_eq!(exits.wait().unwrap().code(), Some(7));
        sleeps.kill();
        sleeps.await_end();
        assert_eq!(sleeps.wait().unwrap().signal(), Some(libc::SIGKILL));
        // Its number may be another's by now.
        sleeps.kill();
        sleeps.await_end();
    }
}
