// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Saying which signal ends the process.

use std::ffi::{c_int, c_void};
use std::io::Write;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

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

/// Where a process that shares this page finds what has ended another one: signal and address.
static SHARED: AtomicPtr<[AtomicU64; 2]> = AtomicPtr::new(std::ptr::null_mut());

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crash {
    /// The signal that the kernel raised.
    pub(crate) signal: c_int,
    /// The address that was accessed, for SIGSEGV and SIGBUS.
    pub(crate) address: Option<u64>,
}

/// Has this process learn of crashes of the children that it forks from now on, by [`take_crash`], where
/// they are reported. Once.
pub(crate) fn share_crashes() -> std::io::Result<()> {
    let size = super::page_size().bytes() as usize;
    let (read_write, shared) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    // SAFETY: a new mapping, which stays for good.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), size, read_write, shared, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    SHARED.store(page.cast(), Ordering::Release);
    Ok(())
}

/// What the last child's crash was, once.
pub(crate) fn take_crash() -> Option<Crash> {
    // SAFETY: null, or the page that stays for good; zero is a value of atomics.
    let [signal, address] = unsafe { SHARED.load(Ordering::Acquire).as_ref() }?;
    // The address is kept one higher, so that 0 is none.
    let address = address.swap(0, Ordering::AcqRel);
    match signal.swap(0, Ordering::AcqRel) as c_int {
        0 => None,
        signal => Some(Crash {
            signal,
            address: address.checked_sub(1),
        }),
    }
}

/// The name of a signal of a crash or of a limit.
pub(crate) fn signal_name(signal: c_int) -> Option<&'static str> {
    let mut all = CRASHES.iter().chain(&LIMITS);
    all.find(|(known, _)| *known == signal)
        .map(|(_, name)| *name)
}

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
    let name = signal_name(signal).unwrap_or("?");
    let at = (matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0).then(|| address.addr());
    // SAFETY: null, or the page that stays for good.
    if let Some([shared, place]) = unsafe { SHARED.load(Ordering::Acquire).as_ref() } {
        place.store(
            at.map_or(0, |at| (at as u64).wrapping_add(1)),
            Ordering::Release,
        );
        shared.store(signal as u64, Ordering::Release);
    }
    // Neither heap nor locks: this thread may hold any of them.
    let mut line = [0u8; 4 * LONGEST_NAME + 100];
    let mut rest = &mut line[..];
    let program = PROGRAM.get().map_or("", String::as_str);
    let written = if let Some(address) = at {
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
