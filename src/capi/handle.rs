// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Numbers that are never given twice: handles, and what waits until the host answers or runs it.
//!
//! What C sees as a pointer is a number: the slot of a table, and how many handles that slot had
//! before. So a freed handle is recognized however many were made since, and no value that a host
//! passes is ever an address that is read. A slot serves again at once; one that has no number left
//! is not used any more, which costs its bytes once in 2^29 handles.

use super::input;
use crate::error::{Result, invalid_argument, invalid_handle};
use crate::sys::AtForkStatic;
use crate::sys::heap::{self, Watch};
use std::cell::UnsafeCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

// The bits of a handle, lowest first: three zero bits, so that it looks aligned to hosts that keep
// flags there; the slot's index; the C type; and the generation, which begins with 1, so that no
// handle is NULL.
const INDEX_SHIFT: u32 = 3;
const KIND_SHIFT: u32 = INDEX_SHIFT + INDEX_BITS;
const GENERATION_SHIFT: u32 = KIND_SHIFT + 4;
const INDEX_BITS: u32 = 28;

/// Part `n` of a table has this many slots, times 2^n.
const FIRST_PART: usize = 16;
/// What a slot without a value has in place of its number.
const VACANT: u64 = 0;
/// As many as the bits of an index can tell apart.
const PARTS: usize = INDEX_BITS as usize - FIRST_PART.ilog2() as usize;

/// The C types that are such numbers.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Error = 1,
    Mapper,
    Manager,
    Transport,
    Service,
    WriteScope,
    Request,
    Call,
    Task,
    StartedCall,
    SectionGroup,
    ImageRecorder,
    Image,
}

struct Slot<T> {
    /// The handle that is live here; 0 while there is none.
    live: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

/// The handles of one type. Its memory is that of the most that were ever live at once.
pub(super) struct Pool<T: 'static> {
    kind: Kind,
    /// The handles to give next, one for each slot without a live one.
    spare: AtForkStatic<Vec<u64>>,
    /// Never moved, so a slot is looked up without a lock.
    parts: [OnceLock<Box<[Slot<T>]>>; PARTS],
}

// SAFETY: a slot's value is written by the thread that took its number out of `spare` or `live`, and is
// sent to others as `T`. It is shared by `get` alone, whose handles are `Sync`.
unsafe impl<T: Send> Sync for Pool<T> {}

impl<T: Send> Pool<T> {
    pub(super) const fn new(kind: Kind) -> Pool<T> {
        Pool {
            kind,
            spare: AtForkStatic::new(Vec::new()),
            parts: [const { OnceLock::new() }; PARTS],
        }
    }

    /// The slot that a handle would have, whatever the number.
    fn slot(&self, handle: u64) -> Option<&Slot<T>> {
        let index = (handle >> INDEX_SHIFT) as usize & ((1 << INDEX_BITS) - 1);
        let number = index + FIRST_PART;
        let part = (number / FIRST_PART).ilog2() as usize;
        let slots = self.parts.get(part)?.get()?;
        slots.get(number - (FIRST_PART << part))
    }

    /// Adds a part, which at least doubles the table, and its handles to `spare`; `None` if the heap is
    /// exhausted.
    fn grow(&self, spare: &mut Vec<u64>) -> Option<()> {
        let part = self.parts.iter().position(|part| part.get().is_none());
        let part = part.expect("fewer handles are live than an index has numbers");
        let size = FIRST_PART << part;
        let mut slots = Vec::new();
        slots.try_reserve_exact(size).ok()?;
        slots.resize_with(size, || Slot {
            live: AtomicU64::new(VACANT),
            value: UnsafeCell::new(None),
        });
        // There is room for all slots, so freeing a handle takes no memory.
        let first = size - FIRST_PART;
        spare.try_reserve(first + size).ok()?;
        spare.extend((first..first + size).rev().map(|index| {
            1 << GENERATION_SHIFT | (self.kind as u64) << KIND_SHIFT | (index as u64) << INDEX_SHIFT
        }));
        let added = self.parts[part].set(slots.into_boxed_slice());
        assert!(added.is_ok(), "`spare` is locked");
        Some(())
    }

    /// A place for a value; `None` if the heap is exhausted, or if a thread that does not exist has the
    /// table locked, in a child that was made without fork handlers.
    fn vacancy(&'static self) -> Option<Vacancy<T>> {
        let mut spare = self.spare.lock_if_any()?;
        if spare.is_empty() {
            self.grow(&mut spare)?;
        }
        let number = spare.pop().expect("it was just filled");
        Some(Vacancy { pool: self, number })
    }

    /// A number serves later.
    fn put_back(&'static self, number: u64) {
        if let Some(mut spare) = self.spare.lock_if_any() {
            spare.push(number);
        }
    }

    /// Ends a number and gives its value; `None` for one that was ended before or never given.
    ///
    /// # Safety
    /// Nothing has a reference to the value.
    unsafe fn end(&'static self, number: u64) -> Option<T> {
        if number == VACANT {
            return None;
        }
        let slot = self.slot(number)?;
        slot.live
            .compare_exchange(number, VACANT, Ordering::AcqRel, Ordering::Relaxed)
            .ok()?;
        // SAFETY: the thread that changed `live` owns the value until the next number is in `spare`.
        let value = unsafe { (*slot.value.get()).take() };
        // A slot that has had all its generations serves no more.
        if let Some(next) = number.checked_add(1 << GENERATION_SHIFT) {
            self.put_back(next);
        }
        value
    }
}

/// A number that was taken and is not given yet.
struct Vacancy<T: Send + 'static> {
    pool: &'static Pool<T>,
    number: u64,
}

impl<T: Send> Vacancy<T> {
    /// The number, under which `value` is found from now on.
    fn fill(self, value: T) -> u64 {
        let number = self.number;
        let slot = self.pool.slot(number).expect("its part is there");
        std::mem::forget(self);
        // SAFETY: its number came out of `spare`, so no other thread refers to it.
        unsafe { *slot.value.get() = Some(value) };
        slot.live.store(number, Ordering::Release);
        number
    }
}

impl<T: Send> Drop for Vacancy<T> {
    fn drop(&mut self) {
        self.pool.put_back(self.number);
    }
}

/// Values that wait to be taken, by number, and are never looked at before.
pub(super) struct Waiting<T: 'static>(Pool<T>);

impl<T: Send> Waiting<T> {
    pub(super) const fn new(kind: Kind) -> Waiting<T> {
        Waiting(Pool::new(kind))
    }

    /// The number under which `value` waits; the value itself if the heap is exhausted.
    pub(super) fn add(&'static self, value: T) -> Result<u64, T> {
        match self.0.vacancy() {
            Some(vacancy) => Ok(vacancy.fill(value)),
            None => Err(value),
        }
    }

    /// What waits under a number, once.
    pub(super) fn take(&'static self, number: u64) -> Option<T> {
        // SAFETY: nothing here hands out references.
        unsafe { self.0.end(number) }
    }
}

/// A C handle type; pointers to it are really numbers of a [`Pool`].
pub(super) trait Handle: Send + Sync + Sized + 'static {
    fn pool() -> &'static Pool<Self>;
    const NAME: &'static str;
}

/// A new handle.
///
/// # Errors
/// `OutOfMemory`; the value is dropped then.
pub(super) fn give<T: Handle>(value: T) -> Result<*mut T> {
    vacancy().map(|vacancy| pointer(vacancy.fill(value)))
}

fn vacancy<T: Handle>() -> Result<Vacancy<T>> {
    let vacancy = T::pool().vacancy();
    vacancy.ok_or_else(|| heap::exhausted(T::NAME))
}

fn pointer<T>(number: u64) -> *mut T {
    std::ptr::without_provenance_mut(number as usize)
}

/// Writes a handle of what `make` makes to a place of the caller's, which is checked before. What was
/// made while the heap was exhausted is dropped again: it would keep the reserve for long.
///
/// # Safety
/// `place` is NULL or a place for a pointer.
pub(super) unsafe fn give_to<T: Handle>(
    place: *mut *mut T,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    let make = || {
        let heap = Watch::begin()?;
        let made = make()?;
        heap.check(T::NAME).map(|()| made)
    };
    // SAFETY: as the caller says.
    unsafe { give_all_to(place, make) }
}

/// [`give_to`] for what can't be dropped again as if it had never been made.
///
/// # Safety
/// As [`give_to`].
pub(super) unsafe fn give_all_to<T: Handle>(
    place: *mut *mut T,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    input::required(place, T::NAME.trim_start_matches("jitmem_"))?;
    heap::check()?;
    let vacancy = vacancy()?;
    let handle = pointer(vacancy.fill(make()?));
    // SAFETY: not NULL, and the caller says that it is a place for a pointer.
    unsafe { place.write(handle) };
    Ok(())
}

/// The value behind a handle; `None` for any other number.
///
/// # Safety
/// `handle` is not freed while the reference is used.
#[inline]
pub(super) unsafe fn live<'a, T: Handle>(handle: *const T) -> Option<&'a T> {
    let number = handle.addr() as u64;
    let slot = T::pool().slot(number);
    let live = slot.filter(|slot| slot.live.load(Ordering::Acquire) == number);
    // SAFETY: a live slot's value is only replaced by `take`, which the caller excludes.
    live.and_then(|slot| unsafe { &*slot.value.get() }.as_ref())
}

/// [`live`], or an error that says what is wrong with the number.
///
/// # Safety
/// As [`live`].
#[inline]
pub(super) unsafe fn get<'a, T: Handle>(handle: *const T) -> Result<&'a T> {
    let live = match handle.is_null() {
        true => None,
        // SAFETY: as the caller says.
        false => unsafe { live(handle) },
    };
    live.ok_or_else(|| unknown(handle.addr(), T::NAME))
}

/// Number `n` of those that no table has a slot for: an index has more numbers than all parts have slots.
pub(super) fn never_given(kind: Kind, n: u32) -> u64 {
    debug_assert!(n < FIRST_PART as u32);
    let index = (1 << INDEX_BITS) - 1 - u64::from(n);
    1 << GENERATION_SHIFT | (kind as u64) << KIND_SHIFT | index << INDEX_SHIFT
}

/// The error for a number that is no live handle.
#[cold]
fn unknown(handle: usize, name: &str) -> crate::error::Error {
    if handle == 0 {
        return invalid_argument(format!("{name} is NULL"));
    }
    let never = handle & ((1 << INDEX_SHIFT) - 1) != 0;
    invalid_handle(match never {
        true => format!("{handle:#x} is no {name}: it is misaligned"),
        false => format!("{name} {handle:#x} was freed before or never was one"),
    })
}

/// Ends a handle and gives its value; `None` for NULL and for one that was freed before.
///
/// # Safety
/// No other thread uses `handle`.
pub(super) unsafe fn take<T: Handle>(handle: *mut T) -> Option<T> {
    if handle.is_null() {
        return None; // the common case
    }
    // SAFETY: as the caller says.
    unsafe { T::pool().end(handle.addr() as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give<T: Handle>(value: T) -> *mut T {
        super::give(value).unwrap()
    }

    /// A handle type with a pool of its own for each test.
    macro_rules! handle_type {
        ($name:ident) => {
            #[derive(Debug, PartialEq)]
            struct $name(u32);

            impl Handle for $name {
                fn pool() -> &'static Pool<Self> {
                    static POOL: Pool<$name> = Pool::new(Kind::Service);
                    &POOL
                }
                const NAME: &'static str = stringify!($name);
            }
        };
    }

    fn is_live<T: Handle>(handle: *mut T) -> bool {
        // SAFETY: the reference goes at once.
        unsafe { get(handle) }.is_ok()
    }

    fn end<T: Handle>(handle: *mut T) -> Option<T> {
        // SAFETY: each test has its handles for itself.
        unsafe { take(handle) }
    }

    fn parts<T: Handle>() -> usize {
        let parts = T::pool().parts.iter();
        parts.filter(|part| part.get().is_some()).count()
    }

    #[test]
    fn a_freed_handle_stays_freed_after_a_million_others() {
        handle_type!(Many);
        let old = give(Many(0));
        assert_eq!(end(old), Some(Many(0)));
        for number in 1..=1_000_000 {
            let new = give(Many(number));
            assert_ne!(new, old);
            assert!(!is_live(old), "after {number} others");
            assert_eq!(end(old), None);
            assert_eq!(end(new), Some(Many(number)));
        }
        assert_eq!(parts::<Many>(), 1, "the table never grew");
    }

    #[test]
    fn a_number_of_no_value_takes_none() {
        static WAITING: Waiting<u32> = Waiting::new(Kind::Task);
        let first = WAITING.add(1).unwrap();
        for number in [0, first ^ 1 << GENERATION_SHIFT, first ^ 1 << INDEX_SHIFT] {
            assert_eq!(WAITING.take(number), None);
        }
        assert_eq!(WAITING.take(first), Some(1));
        // The slot is vacant now.
        assert_eq!(WAITING.take(0), None);
        let both = [2, 3].map(|value| WAITING.add(value).unwrap());
        assert_eq!(both.map(|number| WAITING.take(number)), [Some(2), Some(3)]);
    }

    #[test]
    fn many_live_handles_are_told_apart() {
        handle_type!(Live);
        let handles: Vec<_> = (0..10_000).map(|number| give(Live(number))).collect();
        for (number, handle) in (0..).zip(&handles) {
            // SAFETY: the reference goes at once.
            assert_eq!(unsafe { get(*handle) }.ok(), Some(&Live(number)));
        }
        for (number, handle) in (0..).zip(&handles) {
            assert_eq!(end(*handle), Some(Live(number)));
        }
        assert!(handles.iter().all(|handle| !is_live(*handle)));
        let again: Vec<_> = (0..10_000).map(|number| give(Live(number))).collect();
        assert!(handles.iter().all(|handle| !is_live(*handle)));
        assert!(again.iter().all(|handle| is_live(*handle)));
        assert_eq!(parts::<Live>(), 10, "16 slots, doubled up to 16,368");
    }

    #[test]
    fn a_slot_that_has_no_number_left_serves_no_more() {
        handle_type!(Last);
        let first = give(Last(1)).addr() as u64;
        assert!(end(std::ptr::without_provenance_mut::<Last>(first as usize)).is_some());
        let last = first | u64::MAX << GENERATION_SHIFT;
        *Last::pool().spare.lock().last_mut().unwrap() = last;
        assert_eq!(give(Last(2)).addr() as u64, last);
        assert!(end(std::ptr::without_provenance_mut::<Last>(last as usize)).is_some());
        let index = |handle: u64| handle << (64 - KIND_SHIFT);
        let next = give(Last(3));
        assert_ne!(index(next.addr() as u64), index(first));
        assert!(is_live(next));
    }

    #[test]
    fn any_other_number_is_refused() {
        handle_type!(Other);
        let handle = give(Other(1));
        let number = handle.addr();
        for bit in 0..usize::BITS {
            let wrong = std::ptr::without_provenance_mut::<Other>(number ^ 1 << bit);
            assert!(!is_live(wrong), "{wrong:p}");
            assert_eq!(end(wrong), None);
        }
        for wrong in [1, 8, number + 1, usize::MAX] {
            assert!(!is_live(std::ptr::without_provenance_mut::<Other>(wrong)));
        }
        assert!(is_live(handle));
    }
}
