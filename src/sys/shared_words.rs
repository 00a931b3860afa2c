// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Words that a process shares with the children that it forks, and waits for.

use super::gate;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A word with a value beside it. Either process may write both at any time.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct SharedWord {
    word: AtomicU32,
    value: AtomicU64,
}

/// So many of them, all zero, which stay for good.
pub(crate) fn shared_words<const COUNT: usize>() -> io::Result<&'static [SharedWord; COUNT]> {
    gate("mmap")?;
    let (read_write, shared) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_ANONYMOUS,
    );
    let size = size_of::<[SharedWord; COUNT]>();
    // SAFETY: a new mapping, which stays for good.
    let words = unsafe { libc::mmap(std::ptr::null_mut(), size, read_write, shared, -1, 0) };
    if words == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: so large, aligned to a page, and zero is a value of atomics.
    Ok(unsafe { &*words.cast() })
}

impl SharedWord {
    pub(crate) fn load(&self) -> u32 {
        self.word.load(Ordering::Acquire)
    }

    /// The value that belongs to the word that was loaded.
    pub(crate) fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }

    /// Whether it was `from` and is `to` now.
    pub(crate) fn change(&self, from: u32, to: u32) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        self.word
            .compare_exchange(from, to, success, failure)
            .is_ok()
    }

    /// Sets both; gives the word there was.
    pub(crate) fn set(&self, word: u32, value: u64) -> u32 {
        self.value.store(value, Ordering::Relaxed);
        self.word.swap(word, Ordering::AcqRel)
    }

    /// Has those that wait look again.
    pub(crate) fn wake(&self) {
        let all = i32::MAX;
        // SAFETY: the address of a word.
        unsafe { libc::syscall(libc::SYS_futex, &self.word, libc::FUTEX_WAKE, all) };
    }

    /// Waits until it is another one, or `more` says that there is no more to wait for, which is asked again when
    /// [`wake`](SharedWord::wake) is called.
    pub(crate) fn wait_while(&self, word: u32, more: impl Fn() -> bool) {
        while more() && self.load() == word {
            let forever = std::ptr::null::<libc::timespec>();
            // SAFETY: the address of a word; a null for no limit.
            unsafe { libc::syscall(libc::SYS_futex, &self.word, libc::FUTEX_WAIT, word, forever) };
        }
    }
}
