// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A message that lies about its lengths costs no more memory than its own bytes can hold.

use jitmem::wire::frame::Setup;
use jitmem::wire::sps::{
    ActionPair, Bytes, Decode, Encode, Expected, Outcome, SymbolDef, from_bytes, to_bytes,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

/// The system's allocator, which remembers for each thread what it has and what it had at most.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    LIVE.set(LIVE.get() + change);
    MOST.set(MOST.get().max(LIVE.get()));
}

// SAFETY: the system's allocator does all of the work. Counting allocates nothing: the cells are
// initialized by constants and have no destructors.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the memory is the system's, as all of it is; the rest is the caller's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Heap bytes that `work` has at most while it runs.
fn heap_of<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = LIVE.get();
    MOST.set(before);
    let result = work();
    (result, MOST.get() - before)
}

fn refused_for_nothing<'a, T: Decode<'a>>(bytes: &'a [u8]) {
    let (result, heap) = heap_of(|| from_bytes::<T>(bytes).map(|_| ()));
    let name = std::any::type_name::<T>();
    assert!(result.is_err(), "{name} from {bytes:x?}");
    assert_eq!(heap, 0, "{name} from {bytes:x?}");
}

#[test]
fn the_allocator_counts() {
    let (bytes, heap) = heap_of(|| vec![1u8; 1000]);
    assert_eq!((bytes.len(), heap), (1000, 1000));
    let (_, heap) = heap_of(|| drop(bytes));
    assert_eq!(heap, 0);
}

#[test]
fn an_absurd_count_costs_nothing() {
    for count in [33, 1 << 20, 1 << 40, 1 << 61, u64::MAX] {
        let bytes = [&u64::to_le_bytes(count), [1u8; 32].as_slice()].concat();
        refused_for_nothing::<Bytes<'_>>(&bytes);
        refused_for_nothing::<String>(&bytes);
        refused_for_nothing::<Vec<u8>>(&bytes);
        refused_for_nothing::<Vec<String>>(&bytes);
        refused_for_nothing::<Vec<ActionPair<'_>>>(&bytes);
        refused_for_nothing::<BTreeMap<String, Bytes<'_>>>(&bytes);
        let failure = [&[1], bytes.as_slice()].concat();
        refused_for_nothing::<Outcome>(&failure);
        refused_for_nothing::<Expected<Vec<SymbolDef>>>(&failure);
        let (setup, heap) = heap_of(|| Setup::recognize(&bytes).map(|_| ()));
        assert!(setup.is_err());
        assert_eq!(heap, 0);
    }
}

/// The most that the bytes could bear out is claimed on each level; the last level lies.
#[test]
fn a_lie_inside_a_long_message_costs_what_came_before_it() {
    const SIZE: usize = 1 << 20;
    let mut bytes = Vec::new();
    ((SIZE / 8) as u64).encode(&mut bytes);
    (((SIZE - 8) / 8) as u64).encode(&mut bytes);
    bytes.resize(SIZE + 8, 0xff);
    let (result, heap) = heap_of(|| from_bytes::<Vec<Vec<Vec<u64>>>>(&bytes));
    assert!(result.is_err());
    assert!(heap < 1024, "{heap} bytes for nothing");
}

/// What is true may cost more than its bytes, since a value in memory is larger than on the wire,
/// but in proportion.
#[test]
fn a_true_count_costs_in_proportion() {
    const COUNT: usize = 10_000;
    let outcomes = vec![Outcome(Ok(())); COUNT];
    let bytes = to_bytes(&outcomes);
    let (decoded, heap) = heap_of(|| from_bytes::<Vec<Outcome>>(&bytes));
    assert_eq!(decoded, Ok(outcomes));
    // A vector that doubles has at most its old half beside it while it moves.
    let most = 3 * COUNT * size_of::<Outcome>();
    assert!(heap as usize <= most, "{heap} of {most} bytes");
}
