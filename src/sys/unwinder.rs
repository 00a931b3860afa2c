// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The functions by which the process's unwinder is told of frames. The dynamic linker knows them where the unwinder is a
//! shared library; in a program that is linked statically there are weak references to them.

use super::dl::{image_of, symbol};

/// Functions of one unwinder.
#[derive(Clone, Copy)]
pub(crate) struct FrameRegistrar {
    pub(crate) register: u64,
    pub(crate) deregister: u64,
    /// LLVM's libunwind takes one frame description a call, libgcc a whole section.
    pub(crate) one_by_one: bool,
}

// The addresses of functions that the program has from archives; 0 for what it does not have. Weak references take
// nothing out of an archive, but libgcc and libunwind each have these in the same object as what every throw needs.
std::arch::global_asm!(
    r#"
    .weak __register_frame
    .weak __deregister_frame
    .weak __unw_add_dynamic_fde

    .pushsection .data.rel.ro.jitmem_linked_unwinder, "aw", %progbits
    .globl jitmem_linked_unwinder
    .hidden jitmem_linked_unwinder
    .type jitmem_linked_unwinder, %object
    .p2align 3
jitmem_linked_unwinder:
    .8byte __register_frame
    .8byte __deregister_frame
    .8byte __unw_add_dynamic_fde
    .size jitmem_linked_unwinder, 24
    .popsection
    "#
);

unsafe extern "C" {
    static jitmem_linked_unwinder: [u64; 3];
}

/// Those of a shared library in the process's global scope, or else of the program itself.
pub(crate) fn frame_registrar() -> Option<FrameRegistrar> {
    shared().or_else(linked)
}

fn shared() -> Option<FrameRegistrar> {
    let register = symbol(c"__register_frame")?;
    let deregister = symbol(c"__deregister_frame")?;
    let image = image_of(register);
    let other = symbol(c"__unw_add_dynamic_fde").and_then(image_of);
    Some(FrameRegistrar {
        register,
        deregister,
        one_by_one: image.is_some() && image == other,
    })
}

fn linked() -> Option<FrameRegistrar> {
    // SAFETY: three addresses, which nothing writes once the program is loaded.
    let [register, deregister, other] = unsafe { jitmem_linked_unwinder };
    (register != 0 && deregister != 0).then_some(FrameRegistrar {
        register,
        deregister,
        one_by_one: other != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_and_the_dynamic_linker_know_the_same_functions() {
        // Rust's own programs have libgcc_s.
        let (shared, linked) = (shared().unwrap(), linked().unwrap());
        assert_eq!(shared.register, linked.register);
        assert_eq!(shared.deregister, linked.deregister);
        assert!(!shared.one_by_one && !linked.one_by_one);
    }
}
