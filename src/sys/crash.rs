// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Saying which signal ends the process.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

/// The signals that a program's own mistakes raise.
const CRASHES: [(c_int, &str); 7] = [
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGSYS, "SIGSYS"),
    (libc::SIGTRAP, "SIGTRAP"),
];

/// Those of limits that it has reached.
const LIMITS: [(c_int, &str); 2] = [(libc::SIGXCPU, "SIGXCPU"), (libc::SIGXFSZ, "SIGXFSZ")];

/// What the message begins with. Set before the handler is installed, so that it never waits.
static PROGRAM: OnceLock<String> = OnceLock::new();

/// Characters of that which are kept.
const LONGEST_NAME: usize = 100;

/// Has a line on stderr say so when a crash ends this process, under the name of the program that is
/// given first. A handler that the program sets itself, before or later, stays, and so does a signal that it ignores.
pub(crate) fn report_crashes(program: &str) {
    report_all(program, CRASHES.map(|(signal, _)| signal));
}

/// The same for the signal of a limit.
pub(crate) fn report_limit(program: &str, signal: c_int) {
    report_all(program, [signal]);
}

fn report_all(program: &str, signals: impl IntoIterator<Item = c_int>) {
    PROGRAM.get_or_init(|| program.chars().take(LONGEST_NAME).collect());
    for signal in signals {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = report;
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zero is a valid action, to which a handler is added that does only what signal
        // handlers may.
        unsafe {
            let mut before = MaybeUninit::<libc::sigaction>::zeroed();
            libc::sigaction(signal, std::ptr::null(), before.as_mut_ptr());
            if before.assume_init().sa_sigaction != libc::SIG_DFL {
                continue;
            }
            let place = action.as_mut_ptr();
            (*place).sa_sigaction = handler as *const () as usize;
            (*place).sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // stderr may be a pipe without a reader.
            libc::sigaddset(&raw mut (*place).sa_mask, libc::SIGPIPE);
            libc::sigaction(signal, place, std::ptr::null_mut());
        }
    }
}

extern "C" fn report(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel passes a filled siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    let name = CRASHES
        .iter()
        .chain(&LIMITS)
        .find(|(known, _)| *known == signal)
        .map_or("?", |(_, name)| name);
    // Neither heap nor locks: this thread may hold any of them.
    let mut line = [0u8; 4 * LONGEST_NAME + 100];
    let mut rest = &mut line[..];
    let program = PROGRAM.get().map_or("", String::as_str);
    let written = if matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0 {
        let address = address.addr();
        writeln!(
            rest,
            "{program}: killed by signal {signal} ({name}) at address {address:#x}"
        )
    } else {
        writeln!(rest, "{program}: killed by signal {signal} ({name})")
    };
    let left = rest.len();
    let line = &line[..line.len() - left];
    let mut stderr = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd; bytes that are there; the signal's own siginfo, for this thread. What does
    // not reach stderr at once is lost, for a process that ends must end.
    unsafe {
        if written.is_ok() && libc::poll(&raw mut stderr, 1, 0) == 1 {
            libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        }
        // The same signal once more, as it was: it comes when this handler has returned, and not every
        // fault would come by itself. A handler that calls this one as its predecessor has replaced it.
        libc::signal(signal, libc::SIG_DFL);
        let (process, thread) = (libc::getpid(), libc::gettid());
        if libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, signal, info) != 0 {
            libc::raise(signal);
        }
    }
}
