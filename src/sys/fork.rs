// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Forked children: telling a child from its parent without a system call per question, and closing
//! connections in children, so that the other end sees the end of this process.

use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// The generation of the process that has loaded the library.
const FIRST: u32 = 1;
/// That of a child for which no handler ran.
const UNKNOWN: u32 = 0;

/// The generation of the last process for which a handler ran.
static LAST: AtomicU32 = AtomicU32::new(FIRST);
/// Where the kernel has no memory that children find empty.
static NOT_WIPED: AtomicU32 = AtomicU32::new(FIRST);
/// How many forks lie between the first process that has loaded the library and this one, and
/// [`FIRST`]. In a page that a child finds empty, so that one which was made by `_Fork` or `clone`,
/// without handlers, knows that it is one.
static GENERATION: AtomicPtr<AtomicU32> = AtomicPtr::new((&raw const NOT_WIPED).cast_mut());

/// Runs as soon as the library is loaded: a lock around it would be one that a child may inherit.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;

#[cfg(not(miri))]
extern "C" fn install() {
    use std::ptr::null_mut;
    super::atfork::install();
    let (read_write, private) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    );
    let size = super::page_size().bytes() as usize;
    // SAFETY: a new mapping, which stays for good.
    unsafe {
        let page = libc::mmap(null_mut(), size, read_write, private, -1, 0);
        if page == libc::MAP_FAILED {
            return;
        }
        // Since Linux 4.14.
        if libc::madvise(page, size, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, size);
            return;
        }
        let generation = page.cast::<AtomicU32>();
        (*generation).store(FIRST, Ordering::Relaxed);
        GENERATION.store(generation, Ordering::Relaxed);
    }
}

/// Whether the fork handlers ran for this process, if it is a child. If not, it was made by `_Fork` or
/// `clone`, and locks may be held by threads that it does not have.
pub(crate) fn children_are_known() -> bool {
    fork_generation() != UNKNOWN
}

/// What a child does first.
pub(super) fn enter_child() {
    let generation = LAST.load(Ordering::Relaxed).wrapping_add(1).max(FIRST);
    LAST.store(generation, Ordering::Relaxed);
    let place = GENERATION.load(Ordering::Relaxed);
    // SAFETY: a static, or a page that stays for good.
    unsafe { (*place).store(generation, Ordering::Relaxed) };
    if CLOSED_IN_CHILD
        .iter()
        .any(|place| place.load(Ordering::Relaxed) != FREE)
    {
        // SAFETY: a child of a process with threads may do what signal handlers may: this makes
        // system calls, and changes descriptors of the child's alone.
        unsafe { close_in_child() }
    }
}

/// Descriptors that are closed in children. A fixed number of places, so that a child needs neither
/// locks nor the heap; a descriptor that finds no place free stays open there.
static CLOSED_IN_CHILD: [AtomicI32; 1024] = [const { AtomicI32::new(FREE) }; 1024];
const FREE: i32 = -1;

/// Puts a socket whose other end is closed in the place of each of them. The numbers stay taken: a
/// child may still drop its copy of the parent's object. Where the system gives no socket, they are
/// another file's.
///
/// # Safety
/// Only in a child, which has one thread.
unsafe fn close_in_child() {
    let mut ends = [FREE; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: room for two descriptors; those are closed, and the places of others are the child's.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
            // One of the others makes room for a socket that is connected to nothing, and then serves for all.
            ends = [FREE; 2];
        }
        libc::close(ends[1]);
        let mut dead = ends[0];
        for number in closed_in_child() {
            if dead == FREE {
                libc::close(number);
                dead = libc::socket(libc::AF_UNIX, kind, 0);
                if dead == FREE {
                    dead = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
                }
                if dead == FREE {
                    dead = another_that_is_open();
                }
            }
            if dead != number && libc::dup3(dead, number, libc::O_CLOEXEC) < 0 {
                // The limit is below it by now, so no file gets it.
                libc::close(number);
            }
        }
        libc::close(ends[0]);
    }
}

fn closed_in_child() -> impl Iterator<Item = i32> {
    let numbers = CLOSED_IN_CHILD
        .iter()
        .map(|place| place.load(Ordering::Relaxed));
    numbers.filter(|number| *number != FREE)
}

/// A descriptor that is not to be closed in children, for which the system need give nothing.
fn another_that_is_open() -> i32 {
    let most = closed_in_child().max().unwrap_or(FREE);
    // SAFETY: asks for flags.
    let is_open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    let mut all = (0..most).filter(is_open);
    all.find(|number| closed_in_child().all(|closed| closed != *number))
        .unwrap_or(FREE)
}

/// A descriptor that forked children find closed at the other end.
#[derive(Debug)]
pub(crate) struct ClosedInChild {
    place: Option<&'static AtomicI32>,
    descriptor: Arc<OwnedFd>,
}

impl ClosedInChild {
    pub(crate) fn new(descriptor: impl Into<Arc<OwnedFd>>) -> ClosedInChild {
        let descriptor = descriptor.into();
        let number = descriptor.as_raw_fd();
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let take = |place: &&AtomicI32| place.compare_exchange(FREE, number, set, get).is_ok();
        let place = CLOSED_IN_CHILD.iter().find(take);
        ClosedInChild { place, descriptor }
    }
}

impl Drop for ClosedInChild {
    fn drop(&mut self) {
        // Before the number can be another's.
        if let Some(place) = self.place {
            place.store(FREE, Ordering::Relaxed);
        }
    }
}

impl Deref for ClosedInChild {
    type Target = OwnedFd;

    fn deref(&self) -> &OwnedFd {
        &self.descriptor
    }
}

impl AsFd for ClosedInChild {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What to call at exit, and in which process.
static AT_EXIT: OnceLock<(fn(), OwnerProcess)> = OnceLock::new();

extern "C" fn at_exit() {
    if let Some((handler, owner)) = AT_EXIT.get() {
        if owner.is_current() {
            handler();
        }
    }
}

/// Has `handler` called when the process exits, however often this is asked for. Not in forked
/// children, which inherit the C library's list: what ends there is not the parent's.
pub(crate) fn at_exit_once(handler: fn()) {
    AT_EXIT.get_or_init(|| {
        // SAFETY: a plain function of ours; libjitmem.so is never unloaded. Without memory for it
        // nothing is called, and then there is nothing to say it to either.
        unsafe { libc::atexit(at_exit) };
        (handler, OwnerProcess::current())
    });
}

/// The process that something belongs to. A forked child has copies of it, which it must leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerProcess(u32);

impl OwnerProcess {
    /// The calling process.
    pub(crate) fn current() -> OwnerProcess {
        OwnerProcess(fork_generation())
    }

    /// Whether the calling process is the owner and no forked child of it. Takes no lock.
    pub(crate) fn is_current(self) -> bool {
        self == OwnerProcess::current()
    }
}

/// An [`OwnerProcess`] that a forked child can read whatever lock another thread held at the fork.
pub(crate) struct OwnerCell(AtomicU32);

impl OwnerCell {
    pub(crate) const fn new() -> OwnerCell {
        OwnerCell(AtomicU32::new(FIRST))
    }

    /// Makes the calling process the owner.
    pub(crate) fn claim(&self) {
        self.0.store(fork_generation(), Ordering::Relaxed);
    }

    /// See [`OwnerProcess::is_current`].
    pub(crate) fn is_current(&self) -> bool {
        OwnerProcess(self.0.load(Ordering::Relaxed)).is_current()
    }
}

/// See [`GENERATION`].
#[inline]
fn fork_generation() -> u32 {
    // SAFETY: a static, or a page that stays for good.
    unsafe { (*GENERATION.load(Ordering::Relaxed)).load(Ordering::Relaxed) }
}

#[cfg(test)]
pub(super) mod testing {
    /// Whether `check` holds in a child that `fork` makes.
    pub(crate) fn in_a_child(check: impl FnOnce() -> bool) -> bool {
        in_a_child_by(libc::fork, check)
    }

    /// [`in_a_child`] by another way to make one.
    pub(in super::super) fn in_a_child_by(
        fork: unsafe extern "C" fn() -> libc::pid_t,
        check: impl FnOnce() -> bool,
    ) -> bool {
        // SAFETY: the child makes system calls and exits.
        unsafe {
            let child = fork();
            assert!(child >= 0);
            if child == 0 {
                // A panic must not go on into the parent's tests.
                let check = std::panic::AssertUnwindSafe(check);
                let passed = std::panic::catch_unwind(check).unwrap_or(false);
                libc::_exit(if passed { 0 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            status == 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{in_a_child, in_a_child_by};
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    unsafe extern "C" fn clone_by_system_call() -> libc::pid_t {
        // SAFETY: without flags and a stack it is what fork is, but for the handlers.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        child as libc::pid_t
    }

    #[test]
    fn a_child_without_handlers_knows_it() {
        unsafe extern "C" {
            fn _Fork() -> libc::pid_t;
        }
        // In a process with one thread: `_Fork` leaves malloc's lock as another thread has it.
        assert!(in_a_child(|| {
            let owner = OwnerProcess::current();
            // A child of its own can't know more than it does.
            let unknown = || !children_are_known() && !owner.is_current();
            let forks = [_Fork, clone_by_system_call];
            (forks.into_iter()).all(|fork| in_a_child_by(fork, || unknown() && in_a_child(unknown)))
        }));
        let owner = OwnerProcess::current();
        assert!(in_a_child(|| children_are_known() && !owner.is_current()));
        assert!(children_are_known() && owner.is_current());
    }

    #[test]
    fn children_find_the_descriptor_closed_and_its_number_taken() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (other, _its_end) = UnixStream::pair().unwrap();
        let (guarded, number) = (ClosedInChild::new(OwnedFd::from(here)), other.as_raw_fd());
        let mut own = guarded.try_clone().map(UnixStream::from).unwrap();
        let dead = |descriptor: i32| {
            let mut byte = 0u8;
            // SAFETY: a byte to write to.
            unsafe { libc::recv(descriptor, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) == 0 }
        };
        let descriptor = guarded.as_raw_fd();
        assert!(in_a_child(|| dead(descriptor) && !dead(number)));
        // The parent has noticed nothing.
        there.write_all(b"x").unwrap();
        let mut byte = [0];
        own.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn children_find_them_closed_where_no_further_one_is_to_be_had() {
        // In a process of its own, whose limit is lowered.
        assert!(in_a_child(|| {
            let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
            let guarded = pairs.map(|(here, there)| {
                there.set_nonblocking(true).unwrap();
                (ClosedInChild::new(OwnedFd::from(here)), there)
            });
            let few = libc::rlimit {
                rlim_cur: 256,
                rlim_max: 256,
            };
            // SAFETY: a limit of this process alone, and copies of a descriptor that it has.
            unsafe {
                assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &few), 0);
                while libc::dup(guarded[0].1.as_raw_fd()) >= 0 {}
            }
            let sent = |number: i32| {
                // SAFETY: a byte to read.
                unsafe { libc::send(number, b"y".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) }
            };
            // SAFETY: asks for flags.
            let there = |number: i32| unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0;
            let dead = || {
                let mut numbers = guarded.iter().map(|(one, _)| one.as_raw_fd());
                numbers.all(|number| there(number) && sent(number) < 0)
            };
            let children = in_a_child(dead);
            let nothing = |there: &UnixStream| (&mut &*there).read(&mut [0]).is_err();
            children && guarded.iter().all(|(_, there)| nothing(there)) && !dead()
        }));
    }

    /// Has the system refuse these calls in this process from now on.
    fn refuse(calls: &[libc::c_long]) {
        let step = |code: u32, jt, jf, k| libc::sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        };
        // The number of a call is the first of its data.
        let mut steps = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
        let refusal = libc::SECCOMP_RET_ERRNO | libc::ENFILE as u32;
        for call in calls {
            let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
            steps.push(step(is, 0, 1, *call as u32));
            steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, refusal));
        }
        let allowed = libc::SECCOMP_RET_ALLOW;
        steps.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, allowed));
        let filter = libc::sock_fprog {
            len: steps.len() as u16,
            filter: steps.as_mut_ptr(),
        };
        let set = libc::SECCOMP_SET_MODE_FILTER;
        // SAFETY: a filter with its length.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(
                libc::syscall(libc::SYS_seccomp, set, 0, &raw const filter),
                0
            );
        }
    }

    #[test]
    fn children_find_their_numbers_taken_where_the_system_gives_no_file() {
        // In a process of its own, which is refused them.
        assert!(in_a_child(|| {
            let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
            let guarded =
                pairs.map(|(here, there)| (ClosedInChild::new(OwnedFd::from(here)), there));
            refuse(&[libc::SYS_socketpair, libc::SYS_socket, libc::SYS_openat]);
            assert!(UnixStream::pair().is_err());
            // What file it is, and the descriptor's flags.
            let taken_by = |number: i32| {
                let mut file = std::mem::MaybeUninit::<libc::stat>::uninit();
                // SAFETY: room for what is asked; it is read where there is an answer.
                unsafe {
                    let known = libc::fstat(number, file.as_mut_ptr()) == 0;
                    known.then(|| {
                        (
                            file.assume_init().st_ino,
                            libc::fcntl(number, libc::F_GETFD),
                        )
                    })
                }
            };
            guarded.iter().all(|(one, _)| {
                let number = one.as_raw_fd();
                let (before, _) = taken_by(number).unwrap();
                let another =
                    |(file, flags)| file != before && flags & libc::FD_CLOEXEC == libc::FD_CLOEXEC;
                in_a_child(|| taken_by(number).is_some_and(another))
            })
        }));
    }

    #[test]
    fn what_is_dropped_stays_open_in_children() {
        let (here, there) = UnixStream::pair().unwrap();
        let shared = Arc::new(OwnedFd::from(here));
        drop(ClosedInChild::new(Arc::clone(&shared)));
        there.set_nonblocking(true).unwrap();
        let descriptor = shared.as_raw_fd();
        assert!(in_a_child(move || {
            // SAFETY: a byte to read.
            unsafe { libc::send(descriptor, b"y".as_ptr().cast(), 1, 0) == 1 }
        }));
        let mut byte = [0];
        (&there).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"y");
    }
}
