// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What differs between processors.

#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "x86"))))]
use crate::page::AddressRange;

/// The bytes that freed code is filled with; running any of them traps at once.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
pub(crate) const TRAP: &[u8] = &[0xcc]; // int3
/// The bytes that freed code is filled with; running any of them traps at once.
#[cfg(target_arch = "aarch64")]
pub(crate) const TRAP: &[u8] = &[0x00, 0x00, 0x20, 0xd4]; // brk #0
/// The bytes that freed code is filled with; running any of them traps at once.
#[cfg(any(target_arch = "riscv64", target_arch = "riscv32"))]
pub(crate) const TRAP: &[u8] = &[0x02, 0x90]; // c.ebreak

/// What freed code is, from the beginning of an instruction on.
#[cfg(test)]
pub(crate) fn traps(size: usize) -> Vec<u8> {
    TRAP.iter().copied().cycle().take(size).collect()
}

/// Whether instruction fetch sees stores made through any alias without maintenance.
pub(crate) const COHERENT_FETCH: bool = cfg!(any(target_arch = "x86_64", target_arch = "x86"));

/// Makes new code at an executable address visible to instruction fetch.
///
/// `address` is the executable view: on processors with virtually tagged instruction caches the
/// writer's alias would not do.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
pub(crate) fn flush_instruction_cache(address: u64, size: u64) {
    // x86 keeps cached code coherent with stores through any alias (Intel SDM 3A, "Self-modifying code"). What
    // was prefetched through another one is ARCHITECTURE's "Cross-modifying code".
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
    super::valgrind::discard_translations(address, size);
}

/// Makes new code at an executable address visible to instruction fetch. A core that may have fetched what
/// was there before sees it once it serializes: [`synchronize_fetches`].
///
/// `address` is the executable view: on processors with virtually tagged instruction caches the
/// writer's alias would not do.
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
pub(crate) fn flush_instruction_cache(address: u64, size: u64) {
    match AddressRange::new(address, size).filter(|code| code.size() > MUCH_CODE) {
        Some(code) => for_parts_with_memory(code, |part| clear_cache(part.start(), part.size())),
        None => clear_cache(address, size),
    }
    super::valgrind::discard_translations(address, size);
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
fn clear_cache(address: u64, size: u64) {
    unsafe extern "C" {
        fn __clear_cache(start: *mut libc::c_void, end: *mut libc::c_void);
    }
    let start = std::ptr::with_exposed_provenance_mut(address as usize);
    let end = std::ptr::with_exposed_provenance_mut((address + size) as usize);
    // SAFETY: the compiler runtime's function takes any mapped range and changes no memory.
    unsafe { __clear_cache(start, end) }
}

/// Bytes of code from which on it is worth system calls to know which pages hold any.
#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
const MUCH_CODE: u64 = 1 << 20;

/// Passes what of a mapped range lies in pages that may hold something. To maintain caches of another page is
/// to read it, for which the kernel takes memory. It has no need: the kernel maintains what it maps for
/// execution.
#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "x86"))))]
fn for_parts_with_memory(range: AddressRange, mut act: impl FnMut(AddressRange)) {
    let page = super::page_size();
    let pages = range.rounded_out(page).expect("a mapped range ends");
    let starts = (pages.start()..pages.end()).step_by(page.bytes() as usize);
    for (start, there) in starts.zip(super::resident(pages)) {
        let end = (start + page.bytes()).min(range.end());
        let start = start.max(range.start());
        if there {
            act(AddressRange::new(start, end - start).expect("a part of a range"));
        }
    }
}

/// Ends what [`flush_instruction_cache`] began for new code: no core runs what it fetched there before. A
/// system call where fetches are not coherent, so it is made once for all that a request brings. Code that
/// is made to trap does without.
pub(crate) fn synchronize_fetches() {
    if !COHERENT_FETCH {
        synchronize_cores();
    }
}

/// Has every core that runs this process serialize: it forgets instructions that it has fetched ahead,
/// and all that was stored before is seen by what it runs from now on. `false` where the system has no
/// such call (before Linux 4.16, or where a sandbox forbids it): then it is left to the store that
/// publishes the code, and to each core's next interrupt, which serializes as well.
pub(crate) fn synchronize_cores() -> bool {
    const SYNC_CORE: i64 = 1 << 5;
    const REGISTER_SYNC_CORE: i64 = 1 << 6;
    let membarrier = |command: i64| {
        super::gate("membarrier").is_ok()
            // SAFETY: membarrier takes plain numbers.
            && unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    };
    // A process that is not registered yet is told so, and registers once.
    membarrier(SYNC_CORE) || (membarrier(REGISTER_SYNC_CORE) && membarrier(SYNC_CORE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{At, page_size, replace_by_shared_memory, reserve, unmap};

    #[test]
    fn caches_of_pages_without_memory_are_left_alone() {
        let page = page_size().bytes();
        let size = 1100 * page;
        let start = reserve(At::Anywhere, size).unwrap();
        // SAFETY: it was just reserved, for this test alone, which writes where it may.
        unsafe {
            replace_by_shared_memory(start, size, crate::group::Protection::READ_WRITE).unwrap();
            for touched in [0, 7, 1023, 1024, 1099] {
                let byte = std::ptr::with_exposed_provenance_mut::<u8>(
                    (start + touched * page + 9) as usize,
                );
                byte.write_volatile(1);
            }
        }
        let range = AddressRange::new(start + 16, size - 32).unwrap();
        let mut parts = Vec::new();
        for_parts_with_memory(range, |part| {
            parts.push((part.start() - start, part.end() - start));
        });
        let whole = |number: u64| (number * page, (number + 1) * page);
        let expected = [
            (16, page),
            whole(7),
            whole(1023),
            whole(1024),
            (1099 * page, size - 16),
        ];
        // Where something is swapped out, all may be there.
        assert!(parts == expected || parts.len() == 1100, "{parts:?}");
        // SAFETY: as above.
        unsafe { unmap(start, size) }.unwrap();
    }
}
