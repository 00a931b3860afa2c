// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Telling valgrind that code has changed, which it does not see where the code is written through
//! another mapping.
//!
//! A client request is a sequence of instructions that does nothing on a processor and that valgrind
//! recognizes (`valgrind.h`): the address of six words in rax, the default answer in rdx, where the
//! answer comes.

use std::sync::OnceLock;

const RUNNING_ON_VALGRIND: u64 = 0x1001;
const DISCARD_TRANSLATIONS: u64 = 0x1002;

/// Asks valgrind; 0 where there is none.
#[cfg(target_arch = "x86_64")]
fn request(code: u64, first: u64, second: u64) -> u64 {
    let words = [code, first, second, 0, 0, 0];
    let answer: u64;
    // SAFETY: rdi is rotated by 128 bits in all and rbx is exchanged with itself, so nothing but the
    // answer changes; valgrind reads the six words.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3",
            "rol rdi, 13",
            "rol rdi, 61",
            "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") words.as_ptr(),
            inlateout("rdx") 0u64 => answer,
            options(nostack),
        );
    }
    answer
}

#[cfg(not(target_arch = "x86_64"))]
fn request(_code: u64, _first: u64, _second: u64) -> u64 {
    0
}

/// Whether valgrind runs this process. Costs a load.
pub(crate) fn is_translated() -> bool {
    static RUNNING: OnceLock<bool> = OnceLock::new();
    *RUNNING.get_or_init(|| request(RUNNING_ON_VALGRIND, 0, 0) != 0)
}

/// Forgets what valgrind has translated of the code in a range. Costs a load where there is no
/// valgrind.
pub(super) fn discard_translations(address: u64, size: u64) {
    if is_translated() {
        request(DISCARD_TRANSLATIONS, address, size);
    }
}
