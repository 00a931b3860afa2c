// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! GDB's JIT interface: a list of object files in memory that a debugger reads.
//!
//! A debugger finds the list, and the function where it has a breakpoint, by their names in a symbol
//! table. Both are weak, so that a program that links LLVM statically as well has one of each, and
//! libjitmem.so does not export them: libLLVM.so's own references to its list would come here then,
//! while its function stays where it is, and a debugger would look for the objects of the one in the
//! list of the other. gdb looks into every image. lldb takes the first that has a function and an object
//! of these names, which must be LLVM's where there is LLVM; so these have no type, and lie in
//! sections whose names tell lldb none. In `jitmem-executor`, where no LLVM is, they have types.

use super::AtForkStatic;
use crate::page::AddressRange;

std::arch::global_asm!(
    r#"
    .if {typed}
    .type __jit_debug_register_code, %function
    .type __jit_debug_descriptor, %object
    .endif

    .pushsection jitmem_debug_code, "ax", %progbits
    .weak __jit_debug_register_code
    .p2align 4
__jit_debug_register_code:
    ret
    .size __jit_debug_register_code, . - __jit_debug_register_code
    .popsection

    .pushsection jitmem_debug_list, "aw", %progbits
    .weak __jit_debug_descriptor
    .p2align 3
__jit_debug_descriptor:
    .4byte 1
    .4byte 0
    .8byte 0
    .8byte 0
    .size __jit_debug_descriptor, 24
    .popsection
    "#,
    typed = const cfg!(feature = "executor-program") as u32,
);

const REGISTER: u32 = 1;
const UNREGISTER: u32 = 2;

#[repr(C)]
struct Entry {
    next: *mut Entry,
    previous: *mut Entry,
    object: u64,
    size: u64,
}

#[repr(C)]
struct Descriptor {
    version: u32,
    action: u32,
    relevant: *mut Entry,
    first: *mut Entry,
}

unsafe extern "C" {
    static mut __jit_debug_descriptor: Descriptor;
    fn __jit_debug_register_code();
}

static LIST: AtForkStatic<()> = AtForkStatic::new(());

/// Puts an object file in memory at the head of the list; with `tell`, a debugger that is there
/// looks at it now. The entry stays until it is deregistered.
pub(crate) fn register_debug_object(object: u64, size: u64, tell: bool) {
    let list = LIST.lock();
    let descriptor = &raw mut __jit_debug_descriptor;
    // SAFETY: the lock keeps others of ours out, and what is on the list is not freed.
    unsafe {
        let next = (*descriptor).first;
        let entry = Box::into_raw(Box::new(Entry {
            next,
            previous: std::ptr::null_mut(),
            object,
            size,
        }));
        if !next.is_null() {
            (*next).previous = entry;
        }
        (*descriptor).first = entry;
        (*descriptor).relevant = entry;
        (*descriptor).action = REGISTER;
        if tell {
            __jit_debug_register_code();
        }
    }
    drop(list);
}

/// Takes the entry off the list that an object at `object` was registered with last, and has a
/// debugger forget it now. Returns whether there was one.
pub(crate) fn deregister_debug_object(object: u64) -> bool {
    deregister(1, |other| other == object) != 0
}

/// Does so with all objects in memory that goes: LLVM up to 22 deregisters none.
pub(crate) fn deregister_debug_objects_within(memory: AddressRange) {
    deregister(usize::MAX, |object| {
        (memory.start()..memory.end()).contains(&object)
    });
}

/// Takes so many entries at most off the list, the newest first. Returns how many there were.
fn deregister(most: usize, which: impl Fn(u64) -> bool) -> usize {
    let list = LIST.lock();
    let descriptor = &raw mut __jit_debug_descriptor;
    let mut count = 0;
    // SAFETY: the lock keeps others of ours out; entries on the list are boxes, and one is off it
    // when it is freed, after the debugger has read it.
    unsafe {
        let mut entry = (*descriptor).first;
        while !entry.is_null() && count < most {
            let this = entry;
            let Entry {
                next,
                previous,
                object,
                ..
            } = *this;
            entry = next;
            if !which(object) {
                continue;
            }
            if previous.is_null() {
                (*descriptor).first = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
            (*descriptor).relevant = this;
            (*descriptor).action = UNREGISTER;
            __jit_debug_register_code();
            (*descriptor).relevant = std::ptr::null_mut();
            drop(Box::from_raw(this));
            count += 1;
        }
    }
    drop(list);
    count
}

/// Where the entry is that was registered first; 0 if there is none.
pub(crate) fn oldest_debug_entry() -> u64 {
    let _list = LIST.lock();
    let descriptor = &raw const __jit_debug_descriptor;
    // SAFETY: the lock keeps others of ours out, and what is on the list is not freed.
    unsafe {
        let mut entry = (*descriptor).first;
        while !entry.is_null() && !(*entry).next.is_null() {
            entry = (*entry).next;
        }
        entry.expose_provenance() as u64
    }
}

/// Where list and function are, by the names that they are looked up by.
pub(crate) fn debug_symbols() -> [(&'static str, u64); 2] {
    let function: unsafe extern "C" fn() = __jit_debug_register_code;
    let function = (function as *const ()).expose_provenance() as u64;
    let descriptor = (&raw const __jit_debug_descriptor).expose_provenance() as u64;
    [
        ("__jit_debug_descriptor", descriptor),
        ("__jit_debug_register_code", function),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::testing::reading;
    use super::*;

    #[test]
    fn entries_go_to_the_head_of_a_list_that_a_debugger_can_follow() {
        register_debug_object(0x1000, 1, true);
        for object in [0x4000, 0x4fff] {
            register_debug_object(object, 1, true);
        }
        register_debug_object(0x3000, 3, true);
        register_debug_object(0x2000, 2, true);
        assert!(deregister_debug_object(0x3000));
        assert!(!deregister_debug_object(0x3000));
        deregister_debug_objects_within(AddressRange::new(0x4000, 0x1000).unwrap());
        let [(_, descriptor), _] = debug_symbols();
        let mut memory = reading();
        assert_eq!(memory.load(descriptor), Ok(1u32));
        let action: u32 = memory.load(descriptor + 4).unwrap();
        assert!([REGISTER, UNREGISTER].contains(&action), "{action}");
        // Other tests may register objects of their own meanwhile.
        let mut found = Vec::new();
        let mut entry: u64 = memory.load(descriptor + 16).unwrap();
        let mut previous = 0;
        while entry != 0 {
            assert_eq!(memory.load(entry + 8), Ok(previous));
            let object: u64 = memory.load(entry + 16).unwrap();
            if (0x1000..0x5000).contains(&object) {
                found.push((object, memory.load::<u64>(entry + 24).unwrap()));
            }
            previous = entry;
            entry = memory.load(entry).unwrap();
        }
        assert_eq!(found, [(0x2000, 2), (0x1000, 1)]);
    }
}
