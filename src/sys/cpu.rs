// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the processor can do, in words: code that was compiled for one may not run on another.

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::cpu_features;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::{__cpuid_count, _xgetbv, CpuidResult};
    use std::fmt::Write;
    use std::sync::OnceLock;

    /// Registers of CPUID that say which instructions there are: leaf, subleaf, register, and the bits that count. Bits
    /// that are not assigned yet count, so that instructions to come do too. Those of the system's own instructions, of
    /// what it has switched on, and of faults that it works around do not, nor do those that differ from one core to the
    /// next. Of leaf 1, edx is left out: it says what all processors of x86-64 have.
    ///
    /// Intel SDM, volume 2A, CPUID; AMD APM, volume 3, appendix E.
    const REGISTERS: [(u32, u32, Register, u32); 18] = [
        (1, 0, Register::Ecx, !0x8926_cdfc),
        (7, 0, Register::Ebx, !0x0210_9486),
        (7, 0, Register::Ecx, !0xc101_2004),
        (7, 0, Register::Edx, !0xfc0c_ae02),
        (7, 1, Register::Eax, !0x4c5e_0140),
        (7, 1, Register::Ebx, !0x0000_000b),
        (7, 1, Register::Ecx, !0x0000_0020),
        (7, 1, Register::Edx, !0x0084_0000),
        (0xd, 1, Register::Eax, !0x0000_0018),
        (0x14, 0, Register::Ebx, 0x0000_0010),
        (0x19, 0, Register::Ebx, !0x0000_0010),
        (0x1e, 1, Register::Eax, !0),
        (0x24, 0, Register::Ebx, !0),
        (0x24, 1, Register::Ecx, !0),
        (0x29, 0, Register::Ebx, !0),
        (0x8000_0001, 0, Register::Ecx, !0x5dca_361e),
        (0x8000_0001, 0, Register::Edx, 0xc840_0000),
        (0x8000_0008, 0, Register::Ebx, 0x0000_0111),
    ];

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(super) enum Register {
        Eax,
        Ebx,
        Ecx,
        Edx,
    }

    impl Register {
        pub(super) fn of(self, words: &mut CpuidResult) -> &mut u32 {
            match self {
                Register::Eax => &mut words.eax,
                Register::Ebx => &mut words.ebx,
                Register::Ecx => &mut words.ecx,
                Register::Edx => &mut words.edx,
            }
        }
    }

    /// The words of CPUID that count, the state that the system saves, and the kernel's word of what it lets programs use.
    pub(crate) fn cpu_features() -> String {
        static FOUND: OnceLock<String> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return found.clone();
        }
        // A hypervisor takes microseconds for each leaf. No lock is held for so long, which a forked child might find taken.
        let found = ask();
        let _ = FOUND.set(found.clone());
        found
    }

    pub(super) fn ask() -> String {
        // SAFETY: every processor of x86-64 has the instruction.
        #[allow(unused_unsafe)]
        let ask = |leaf, subleaf| unsafe { __cpuid_count(leaf, subleaf) };
        let mut text = described(ask);
        const OSXSAVE: u32 = 1 << 27;
        if ask(1, 0).ecx & OSXSAVE != 0 {
            // SAFETY: the system has switched the instruction on.
            let saved = unsafe { _xgetbv(0) };
            let _ = write!(text, "xcr0={saved:x} ");
        }
        // SAFETY: the call reads what the kernel has given this process.
        let kernel = unsafe { libc::getauxval(libc::AT_HWCAP2) };
        let _ = write!(text, "hwcap2={kernel:x}");
        text
    }

    /// The words that are not 0, a space behind each.
    pub(super) fn described(ask: impl Fn(u32, u32) -> CpuidResult) -> String {
        const EXTENDED: u32 = 0x8000_0000;
        let [last, last_extended] = [0, EXTENDED].map(|leaf| ask(leaf, 0).eax);
        let mut text = String::new();
        for leaf in REGISTERS.chunk_by(|one, next| (one.0, one.1) == (next.0, next.1)) {
            let (number, subleaf, ..) = leaf[0];
            let last = if number < EXTENDED {
                last
            } else {
                last_extended
            };
            if number > last {
                // Of such a leaf a processor answers another one.
                continue;
            }
            let mut words = ask(number, subleaf);
            for (_, _, register, counts) in leaf {
                let word = *register.of(&mut words) & counts;
                if word != 0 {
                    let _ = write!(text, "{number:x}.{subleaf}.{register:?}={word:x} ");
                }
            }
        }
        text
    }
}

/// The kernel's words of bits for them.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn cpu_features() -> String {
    // Kernels that do not have the third and fourth answer 0.
    const AT_HWCAP3: libc::c_ulong = 29;
    const AT_HWCAP4: libc::c_ulong = 30;
    // SAFETY: the call reads what the kernel has given this process.
    let word = |which| unsafe { libc::getauxval(which) };
    let words = [libc::AT_HWCAP, libc::AT_HWCAP2, AT_HWCAP3, AT_HWCAP4].map(word);
    format!("{words:x?}")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::x86_64::Register::{self, Eax, Ebx, Ecx, Edx};
    use super::x86_64::{ask, described};
    use std::arch::x86_64::CpuidResult;

    /// A processor that says of itself only this bit.
    fn with_bit(leaf: u32, subleaf: u32, register: Register, bit: u32) -> String {
        described(|asked, of| {
            let mut words = CpuidResult {
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
            };
            if asked & !(1 << 31) == 0 {
                words.eax = asked | 0xff;
            }
            if (asked, of) == (leaf, subleaf) {
                *register.of(&mut words) |= 1 << bit;
            }
            words
        })
    }

    #[test]
    fn each_instruction_set_counts() {
        for (name, leaf, subleaf, register, bit) in [
            ("sse4.2", 1, 0, Ecx, 20),
            ("fma", 1, 0, Ecx, 12),
            ("avx2", 7, 0, Ebx, 5),
            ("clwb", 7, 0, Ebx, 24),
            ("vaes", 7, 0, Ecx, 9),
            ("amx-tile", 7, 0, Edx, 24),
            ("avx512fp16", 7, 0, Edx, 23),
            ("uintr", 7, 0, Edx, 5),
            ("sha512", 7, 1, Eax, 0),
            ("sm3", 7, 1, Eax, 1),
            ("sm4", 7, 1, Eax, 2),
            ("avxvnni", 7, 1, Eax, 4),
            ("cmpccxadd", 7, 1, Eax, 7),
            ("avxifma", 7, 1, Eax, 23),
            ("movrs", 7, 1, Eax, 31),
            ("avxvnniint8", 7, 1, Edx, 4),
            ("avxneconvert", 7, 1, Edx, 5),
            ("avxvnniint16", 7, 1, Edx, 10),
            ("avx10", 7, 1, Edx, 19),
            ("apx", 7, 1, Edx, 21),
            ("xsavec", 0xd, 1, Eax, 1),
            ("ptwrite", 0x14, 0, Ebx, 4),
            ("widekl", 0x19, 0, Ebx, 2),
            ("amx-tf32", 0x1e, 1, Eax, 6),
            ("avx10.2", 0x24, 0, Ebx, 1),
            ("ndd", 0x29, 0, Ebx, 0),
            ("lzcnt", 0x8000_0001, 0, Ecx, 5),
            ("xop", 0x8000_0001, 0, Ecx, 11),
            ("fma4", 0x8000_0001, 0, Ecx, 16),
            ("rdtscp", 0x8000_0001, 0, Edx, 27),
            ("clzero", 0x8000_0008, 0, Ebx, 0),
        ] {
            assert_ne!(with_bit(leaf, subleaf, register, bit), "", "{name}");
        }
    }

    #[test]
    fn what_code_can_not_use_does_not_count() {
        for (name, leaf, subleaf, register, bit) in [
            ("number of the core", 1, 0, Ebx, 24),
            ("vmx", 1, 0, Ecx, 5),
            ("osxsave", 1, 0, Ecx, 27),
            ("hypervisor", 1, 0, Ecx, 31),
            ("smep", 7, 0, Ebx, 7),
            ("la57", 7, 0, Ecx, 16),
            ("hybrid", 7, 0, Edx, 15),
            ("ssbd", 7, 0, Edx, 31),
            ("fred", 7, 1, Eax, 17),
            ("xsaves", 0xd, 1, Eax, 3),
            ("svm", 0x8000_0001, 0, Ecx, 2),
            ("nx", 0x8000_0001, 0, Edx, 20),
            ("ibrs", 0x8000_0008, 0, Ebx, 14),
        ] {
            assert_eq!(with_bit(leaf, subleaf, register, bit), "", "{name}");
        }
    }

    #[test]
    fn every_core_says_the_same() {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let mine = sched_getaffinity(None).unwrap();
        let asked = std::thread::spawn(move || {
            let cores = (0..CpuSet::MAX_CPU).filter(|core| mine.is_set(*core));
            let on = |core| {
                let mut one = CpuSet::new();
                one.set(core);
                sched_setaffinity(None, &one).unwrap();
                ask()
            };
            cores.map(on).collect::<Vec<_>>()
        });
        let mut asked = asked.join().unwrap();
        asked.dedup();
        assert_eq!(asked, [super::cpu_features()]);
    }
}
