// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What linked code and the libraries that it opens find in LLVM's executors by dlsym: the names of
//! every release at once; and what libgcc asks for frames. build.rs exports them.

use jitmem::executor::exports::{
    llvm_deregister_eh_frames, llvm_register_debug_object, llvm_register_eh_frames, unwind_find_fde,
};

#[cfg(target_arch = "x86_64")]
macro_rules! jump {
    () => {
        "jmp {}"
    };
}
#[cfg(target_arch = "aarch64")]
macro_rules! jump {
    () => {
        "b {}"
    };
}
#[cfg(target_arch = "riscv64")]
macro_rules! jump {
    () => {
        "tail {}"
    };
}

macro_rules! exports {
    ($($name:literal $function:ident;)*) => {$(
        std::arch::global_asm!(
            concat!(".pushsection .text.", $name, r#", "ax", %progbits"#),
            concat!(".globl ", $name),
            concat!(".type ", $name, ", %function"),
            concat!($name, ":"),
            jump!(),
            concat!(".size ", $name, ", . - ", $name),
            ".popsection",
            sym $function,
        );
    )*};
}

exports! {
    "llvm_orc_registerEHFrameSectionWrapper" llvm_register_eh_frames;
    "llvm_orc_registerEHFrameSectionAllocAction" llvm_register_eh_frames;
    "llvm_orc_deregisterEHFrameSectionWrapper" llvm_deregister_eh_frames;
    "llvm_orc_deregisterEHFrameSectionAllocAction" llvm_deregister_eh_frames;
    "llvm_orc_registerJITLoaderGDBWrapper" llvm_register_debug_object;
    "llvm_orc_registerJITLoaderGDBAllocAction" llvm_register_debug_object;
    "_Unwind_Find_FDE" unwind_find_fde;
}
