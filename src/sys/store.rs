// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Stores of 16 bytes that other threads never see half of. The standard library has none.

/// Whether this processor has such a store.
#[cfg(target_arch = "x86_64")]
pub(crate) fn stores_16_bytes() -> bool {
    std::arch::is_x86_feature_detected!("cmpxchg16b")
}

/// Stores 16 bytes at once.
///
/// # Safety
/// [`stores_16_bytes`], and the pointer is aligned to 16 bytes that may be written.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn store_16(pointer: *mut u8, value: u128) {
    let (low, high) = (value as u64, (value >> 64) as u64);
    // rbx is the compiler's own, which may still choose it for an operand without a name: `low` may be in it, the
    // pointer may not. An exchange that fails gives what is there, and is tried with that.
    // SAFETY: as the caller says.
    unsafe {
        std::arch::asm!(
            "xchg {low}, rbx",
            "2: lock cmpxchg16b [rdi]",
            "jne 2b",
            "mov rbx, {low}",
            low = inout(reg) low => _,
            in("rdi") pointer,
            in("rcx") high,
            inout("rax") 0u64 => _,
            inout("rdx") 0u64 => _,
            options(nostack),
        );
    }
}

/// Whether this processor has such a store.
#[cfg(target_arch = "aarch64")]
pub(crate) fn stores_16_bytes() -> bool {
    true
}

/// Stores 16 bytes at once.
///
/// # Safety
/// The pointer is aligned to 16 bytes that may be written.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn store_16(pointer: *mut u8, value: u128) {
    let (low, high) = (value as u64, (value >> 64) as u64);
    // A pair that is stored exclusively is stored at once, in every version of the architecture.
    // SAFETY: as the caller says; the loop ends when no other core has written meanwhile.
    unsafe {
        std::arch::asm!(
            "2: ldaxp xzr, {scratch}, [{pointer}]",
            "stlxp {failed:w}, {low}, {high}, [{pointer}]",
            "cbnz {failed:w}, 2b",
            pointer = in(reg) pointer,
            low = in(reg) low,
            high = in(reg) high,
            scratch = out(reg) _,
            failed = out(reg) _,
            options(nostack),
        );
    }
}

/// Whether this processor has such a store.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn stores_16_bytes() -> bool {
    false
}

/// Stores 16 bytes at once.
///
/// # Safety
/// [`stores_16_bytes`]: there is no processor here that does.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) unsafe fn store_16(_: *mut u8, _: u128) {
    unreachable!("asked for before")
}
