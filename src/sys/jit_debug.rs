// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! GDB's JIT interface: a list of object files in memory that a debugger reads.
//!
//! A debugger finds the list, and the function where it has a breakpoint, by their names in a symbol
//! table. Both are local to this object file. LLVM's are not, and it needs its own of both: if ours were
//! global, a linker that comes by them first would leave LLVM's in their archive; and libLLVM.so would use
//! the list of a program that exports one, but its own function. gdb looks into every image, and in one
//! that has LLVM as well it prefers LLVM's. lldb takes the first image that has a function and an object of
//! these names, which must be LLVM's where there is LLVM; so these have no type, and lie in sections whose
//! names tell lldb none. In `jitmem-executor`, where no LLVM is and linked code looks for them, they have
//! types and are exported.
//!
//! There libLLVM.so shares the list if linked code loads it, and changes it under a lock of its own. Two
//! entries of ours stay on the list for good, and between them are only ours. LLVM adds its entries at the
//! head of the list and takes only those off, so it writes nothing but the outer sides of the two; and what
//! is outside of them is not read here. What both write is which entry a debugger shall look at: where both
//! tell it of one at the same moment, it may hear of one of them twice and not of the other.

use super::AtForkStatic;
use crate::page::AddressRange;
use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::Relaxed};

std::arch::global_asm!(
    r#"
    .if {typed}
    .globl __jit_debug_register_code
    .globl __jit_debug_descriptor
    .type __jit_debug_register_code, %function
    .type __jit_debug_descriptor, %object
    .endif
    .globl jitmem_debug_register_code
    .globl jitmem_debug_descriptor
    .hidden jitmem_debug_register_code
    .hidden jitmem_debug_descriptor

    .pushsection jitmem_debug_code, "ax", %progbits
    .p2align 4
__jit_debug_register_code:
jitmem_debug_register_code:
    ret
    .size __jit_debug_register_code, . - __jit_debug_register_code
    .popsection

    .pushsection jitmem_debug_list, "aw", %progbits
    .p2align 3
__jit_debug_descriptor:
jitmem_debug_descriptor:
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
    next: AtomicPtr<Entry>,
    previous: AtomicPtr<Entry>,
    object: AtomicPtr<Nothing>,
    size: u64,
}

impl Entry {
    /// That of an object in which there is nothing.
    const fn of_nothing(next: *const Entry, previous: *const Entry) -> Entry {
        Entry {
            next: AtomicPtr::new(next.cast_mut()),
            previous: AtomicPtr::new(previous.cast_mut()),
            object: AtomicPtr::new((&raw const NOTHING).cast_mut()),
            size: size_of::<Nothing>() as u64,
        }
    }
}

/// An ELF file's header; of no sections. gdb complains of what is no object.
#[repr(C)]
struct Nothing {
    magic: [u8; 4],
    class: u8,
    data: u8,
    identification_version: u8,
    rest: [u8; 9],
    kind: u16,
    machine: u16,
    version: u32,
    places: [u64; 3],
    flags: u32,
    header_size: u16,
    counts: [u16; 5],
}

static NOTHING: Nothing = Nothing {
    magic: *b"\x7fELF",
    class: 2, // of 64 bits
    data: if cfg!(target_endian = "little") { 1 } else { 2 },
    identification_version: 1,
    rest: [0; 9],
    kind: 0,
    machine: if cfg!(target_arch = "x86_64") {
        libc::EM_X86_64
    } else if cfg!(target_arch = "aarch64") {
        libc::EM_AARCH64
    } else if cfg!(target_arch = "riscv64") {
        243
    } else {
        0
    },
    version: 1,
    places: [0; 3],
    flags: 0,
    header_size: size_of::<Nothing>() as u16,
    counts: [0; 5],
};

/// Before and behind the entries that are registered here.
static FRONT: Entry = Entry::of_nothing(&raw const BACK, ptr::null());
static BACK: Entry = Entry::of_nothing(ptr::null(), &raw const FRONT);

#[repr(C)]
struct Descriptor {
    version: u32,
    action: AtomicU32,
    relevant: AtomicPtr<Entry>,
    first: AtomicPtr<Entry>,
}

// Names for this crate's other object files.
// SAFETY: above they are what is said here.
unsafe extern "C" {
    #[link_name = "jitmem_debug_descriptor"]
    safe static DESCRIPTOR: Descriptor;
    #[link_name = "jitmem_debug_register_code"]
    safe fn register_code();
}

/// What is registered here.
struct Registered {
    /// Whether the list has [`FRONT`] and [`BACK`].
    has_list: bool,
    count: u64,
    /// By object, and by `count` at that time.
    entries: BTreeMap<(u64, u64), Arc<Entry>>,
}

static LIST: AtForkStatic<Registered> = AtForkStatic::new(Registered {
    has_list: false,
    count: 0,
    entries: BTreeMap::new(),
});

/// When the program is loaded nothing else changes the list.
#[cfg(not(miri))]
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

#[cfg(not(miri))]
extern "C" fn begin() {
    LIST.lock().begin();
}

/// Has a debugger look at an entry now.
fn tell(entry: *mut Entry, action: u32) {
    // Neither means anything once the function has returned.
    DESCRIPTOR.relevant.store(entry, Relaxed);
    DESCRIPTOR.action.store(action, Relaxed);
    register_code();
}

impl Registered {
    /// Puts [`FRONT`] and [`BACK`] at the head of the list.
    fn begin(&mut self) {
        if std::mem::replace(&mut self.has_list, true) {
            return;
        }
        let first = DESCRIPTOR.first.load(Relaxed);
        BACK.next.store(first, Relaxed);
        if !first.is_null() {
            let back = (&raw const BACK).cast_mut();
            // SAFETY: an entry on the list.
            unsafe { (*first).previous.store(back, Relaxed) };
        }
        let front = (&raw const FRONT).cast_mut();
        DESCRIPTOR.first.store(front, Relaxed);
    }

    /// Behind [`FRONT`].
    fn add(&mut self, object: u64, size: u64) -> *mut Entry {
        self.begin();
        let next = FRONT.next.load(Relaxed);
        let entry = Arc::new(Entry {
            next: AtomicPtr::new(next),
            previous: AtomicPtr::new((&raw const FRONT).cast_mut()),
            object: AtomicPtr::new(ptr::with_exposed_provenance_mut(object as usize)),
            size,
        });
        let this = Arc::as_ptr(&entry).cast_mut();
        // SAFETY: BACK, or one of `entries`.
        unsafe { (*next).previous.store(this, Relaxed) };
        FRONT.next.store(this, Relaxed);
        self.count += 1;
        self.entries.insert((object, self.count), entry);
        this
    }

    fn remove(&mut self, key: (u64, u64)) {
        let Some(entry) = self.entries.remove(&key) else {
            return;
        };
        let next = entry.next.load(Relaxed);
        let previous = entry.previous.load(Relaxed);
        // SAFETY: FRONT, BACK or one of `entries` each.
        unsafe {
            (*previous).next.store(next, Relaxed);
            (*next).previous.store(previous, Relaxed);
        }
        tell(Arc::as_ptr(&entry).cast_mut(), UNREGISTER);
    }
}

/// Puts an object file in memory on the list; with `now`, a debugger that is there looks at it now.
/// The entry stays until it is deregistered.
pub(crate) fn register_debug_object(object: u64, size: u64, now: bool) {
    let mut list = LIST.lock();
    let entry = list.add(object, size);
    if now {
        tell(entry, REGISTER);
    }
}

/// Takes the entry off the list that an object at `object` was registered with last, and has a
/// debugger forget it now. Returns whether there was one.
pub(crate) fn deregister_debug_object(object: u64) -> bool {
    let mut list = LIST.lock();
    let mut there = list.entries.range((object, 0)..=(object, u64::MAX));
    let last = there.next_back().map(|(key, _)| *key);
    last.map(|key| list.remove(key)).is_some()
}

/// Does so with all objects in memory that goes: LLVM up to 22 deregisters none.
pub(crate) fn deregister_debug_objects_within(memory: AddressRange) {
    let mut list = LIST.lock();
    let within = (memory.start(), 0)..(memory.end(), 0);
    while let Some((key, _)) = list.entries.range(within.clone()).next() {
        let key = *key;
        list.remove(key);
    }
}

/// Where the entry is that was registered first; 0 if there is none.
pub(crate) fn oldest_debug_entry() -> u64 {
    let _list = LIST.lock();
    let oldest = BACK.previous.load(Relaxed);
    match ptr::eq(oldest, &raw const FRONT) {
        true => 0,
        false => oldest.expose_provenance() as u64,
    }
}

/// Where list and function are, by the names that they are looked up by.
pub(crate) fn debug_symbols() -> [(&'static str, u64); 2] {
    let function: unsafe extern "C" fn() = register_code;
    let function = (function as *const ()).expose_provenance() as u64;
    let descriptor = (&raw const DESCRIPTOR).expose_provenance() as u64;
    [
        ("__jit_debug_descriptor", descriptor),
        ("__jit_debug_register_code", function),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::fork::testing::in_a_child;
    use super::super::testing::reading;
    use super::*;
    use std::collections::VecDeque;
    use std::sync::atomic::AtomicBool;

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

    /// LLVM's lock; what it has on the list is not ours.
    struct Llvm;

    impl Llvm {
        /// An entry at the head of the list.
        fn add(object: u64) -> &'static Entry {
            let first = DESCRIPTOR.first.load(Relaxed);
            let entry: &'static Entry = Box::leak(Box::new(Entry {
                next: AtomicPtr::new(first),
                previous: AtomicPtr::default(),
                object: AtomicPtr::new(ptr::with_exposed_provenance_mut(object as usize)),
                size: 1,
            }));
            let this = ptr::from_ref(entry).cast_mut();
            if !first.is_null() {
                // SAFETY: an entry on the list.
                unsafe { (*first).previous.store(this, Relaxed) };
            }
            DESCRIPTOR.first.store(this, Relaxed);
            entry
        }

        /// Takes one of its own off the list. What the memory is used for then leads nowhere.
        fn remove(entry: &Entry) {
            let next = entry.next.swap(NOWHERE, Relaxed);
            let previous = entry.previous.swap(NOWHERE, Relaxed);
            // SAFETY: entries on the list.
            unsafe {
                if !next.is_null() {
                    (*next).previous.store(previous, Relaxed);
                }
                match previous.is_null() {
                    true => DESCRIPTOR.first.store(next, Relaxed),
                    false => (*previous).next.store(next, Relaxed),
                }
            }
        }
    }

    /// In the first page, where nothing is.
    const NOWHERE: *mut Entry = ptr::without_provenance_mut(8);

    /// All entries on the list, as a debugger reads it.
    fn listed() -> Vec<&'static Entry> {
        let mut entries: Vec<&'static Entry> = Vec::new();
        let mut next = DESCRIPTOR.first.load(Relaxed);
        while !next.is_null() {
            // SAFETY: an entry on the list, in a child in which no other thread changes it.
            let entry = unsafe { &*next };
            let before = entries
                .last()
                .map_or(ptr::null(), |last| ptr::from_ref(*last));
            assert!(ptr::eq(entry.previous.load(Relaxed), before));
            next = entry.next.load(Relaxed);
            entries.push(entry);
        }
        entries
    }

    fn object_of(entry: &Entry) -> u64 {
        entry.object.load(Relaxed).addr() as u64
    }

    fn page(number: u64) -> AddressRange {
        AddressRange::new(0x10_0000_0000 + 0x1000 * number, 0x1000).unwrap()
    }

    #[test]
    fn a_release_reads_no_entry_but_those_that_it_takes_off_the_list() {
        assert!(in_a_child(|| {
            for number in 0..100 {
                register_debug_object(page(number).start(), 1, true);
            }
            let others = [1, 50].map(|number| Llvm::add(page(number).start() + 8));
            let listed = listed();
            let target = page(50).start();
            for entry in &listed {
                if object_of(entry) != target {
                    entry.next.store(NOWHERE, Relaxed);
                }
            }
            deregister_debug_objects_within(page(1000));
            deregister_debug_objects_within(page(50));
            let there = |entry: &Entry| object_of(entry) == target + 8 && entry.size == 1;
            !deregister_debug_object(target)
                && !deregister_debug_object(target + 8)
                && others.iter().any(|entry| there(entry))
        }));
    }

    #[test]
    fn llvm_changes_its_part_of_the_list_meanwhile() {
        assert!(in_a_child(|| {
            let stop = AtomicBool::new(false);
            let untouched = std::thread::scope(|scope| {
                let llvm = scope.spawn(|| {
                    let mut gone: VecDeque<&'static Entry> = VecDeque::new();
                    let mut untouched = true;
                    while !stop.load(Relaxed) {
                        let entries = [1, 2, 3].map(Llvm::add);
                        for place in [1, 0, 2] {
                            Llvm::remove(entries[place]);
                            gone.push_back(entries[place]);
                        }
                        while gone.len() > 300 {
                            untouched &= gone.pop_front().is_none_or(leads_nowhere);
                        }
                    }
                    untouched && gone.into_iter().all(leads_nowhere)
                });
                for round in 0..5_000 {
                    register_debug_object(page(round).start(), 1, true);
                    register_debug_object(page(0).start() - 8, 1, true);
                    if round % 2 == 1 {
                        deregister_debug_objects_within(page(round));
                    }
                    assert!(deregister_debug_object(page(0).start() - 8));
                }
                stop.store(true, Relaxed);
                llvm.join().unwrap()
            });
            let listed: Vec<u64> = listed().into_iter().map(object_of).collect();
            let is_there = |round: &u64| listed.contains(&page(*round).start());
            untouched && (0..5_000).filter(is_there).eq((0..5_000).step_by(2))
        }));
    }

    /// Whether it is as it was left when it was taken off the list; its memory is given back.
    fn leads_nowhere(entry: &'static Entry) -> bool {
        // SAFETY: it was a box.
        let entry = unsafe { Box::from_raw(ptr::from_ref(entry).cast_mut()) };
        [&entry.next, &entry.previous].map(|place| place.load(Relaxed)) == [NOWHERE; 2]
    }
}
