// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the processor can do, in words: code that was compiled for one may not run on another.

/// The instruction sets that compilers choose by, as far as this processor has them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpu_features() -> String {
    macro_rules! detected {
        ($($name:tt)*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let features = detected!(
        "sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "popcnt" "cmpxchg16b" "movbe" "lzcnt" "bmi1" "bmi2" "tbm"
        "adx" "avx" "f16c" "fma" "avx2" "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512ifma"
        "avx512vbmi" "avx512vbmi2" "avx512vnni" "avx512bitalg" "avx512vpopcntdq" "avx512bf16"
        "avx512vp2intersect" "avx512fp16" "aes" "pclmulqdq" "sha" "gfni" "vaes" "vpclmulqdq" "rdrand" "rdseed"
        "rtm" "ermsb" "xsave" "xsaveopt" "xsavec" "xsaves"
    );
    let present = features.iter().filter(|(_, there)| *there);
    present.map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

/// The kernel's words of bits for them.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn cpu_features() -> String {
    // SAFETY: the call reads what the kernel has given this process.
    let word = |which| unsafe { libc::getauxval(which) };
    format!("{:#x} {:#x}", word(libc::AT_HWCAP), word(libc::AT_HWCAP2))
}
