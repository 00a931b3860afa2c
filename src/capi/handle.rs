// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Handles that can tell when they were freed.
//!
//! The memory of a handle is never returned to the heap: a freed one goes to the back of a queue
//! and serves again only after many others. So looking at a freed handle is no undefined
//! behaviour, and its mark says what it is.

use super::input;
use crate::error::{Result, invalid_argument, invalid_handle};
use parking_lot::Mutex;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// A freed cell serves again only when this many are free.
const QUARANTINE: usize = 64;

#[repr(C)]
struct Cell<T> {
    /// The type's mark while live, its complement once freed.
    mark: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

/// The cells of one handle type.
pub(super) struct Pool<T: 'static> {
    mark: u64,
    free: Mutex<VecDeque<&'static Cell<T>>>,
}

// SAFETY: the pool only keeps cells that nothing else refers to; values cross threads as T: Send.
unsafe impl<T: Send> Sync for Pool<T> {}

impl<T> Pool<T> {
    pub(super) const fn new(mark: u64) -> Pool<T> {
        Pool {
            mark,
            free: Mutex::new(VecDeque::new()),
        }
    }
}

/// A C handle type; pointers to it are really pointers to a cell.
pub(super) trait Handle: Send + Sized + 'static {
    fn pool() -> &'static Pool<Self>;
    const NAME: &'static str;
}

/// A new handle.
pub(super) fn give<T: Handle>(value: T) -> *mut T {
    let pool = T::pool();
    let reused = {
        let mut free = pool.free.lock();
        if free.len() > QUARANTINE {
            free.pop_front()
        } else {
            None
        }
    };
    let cell: &'static Cell<T> = reused.unwrap_or_else(|| {
        let value = UnsafeCell::new(None);
        Box::leak(Box::new(Cell {
            mark: AtomicU64::new(!pool.mark),
            value,
        }))
    });
    // SAFETY: the cell is fresh or came out of the queue: nothing else refers to it.
    unsafe { *cell.value.get() = Some(value) };
    cell.mark.store(pool.mark, Ordering::Release);
    std::ptr::from_ref(cell).cast::<T>().cast_mut()
}

/// Writes a handle of what `make` makes to a place of the caller's, which is checked before.
///
/// # Safety
/// `place` is NULL or a place for a pointer.
pub(super) unsafe fn give_to<T: Handle>(
    place: *mut *mut T,
    make: impl FnOnce() -> Result<T>,
) -> Result<()> {
    input::required(place, T::NAME.trim_start_matches("jitmem_"))?;
    let handle = give(make()?);
    // SAFETY: not NULL, and the caller says that it is a place for a pointer.
    unsafe { place.write(handle) };
    Ok(())
}

fn cell<T: Handle>(handle: *const T) -> Result<*const Cell<T>> {
    if handle.is_null() {
        return Err(invalid_argument(format!("{} is NULL", T::NAME)));
    }
    let cell = handle.cast::<Cell<T>>();
    if !cell.is_aligned() {
        return Err(invalid_handle(format!("{:p} is no {}", handle, T::NAME)));
    }
    Ok(cell)
}

/// The value behind a handle.
///
/// # Safety
/// `handle` is NULL or came from [`give`], and is not freed while the reference is used.
pub(super) unsafe fn get<'a, T: Handle>(handle: *const T) -> Result<&'a T> {
    let cell = cell(handle)?;
    // SAFETY: cells are never returned to the heap, so the mark can be read at any time.
    let mark = unsafe { &(*cell).mark }.load(Ordering::Acquire);
    if mark != T::pool().mark {
        return Err(invalid_handle(format!(
            "{} {handle:p} was freed before or never was one",
            T::NAME
        )));
    }
    // SAFETY: a live cell's value is only replaced by `take`, which the caller excludes.
    let value = unsafe { &*(*cell).value.get() };
    value
        .as_ref()
        .ok_or_else(|| invalid_handle(format!("{} {handle:p} is being freed", T::NAME)))
}

/// Ends a handle and gives its value; `None` for NULL and for one that was freed before.
///
/// # Safety
/// `handle` is NULL or came from [`give`], and no other thread uses it.
pub(super) unsafe fn take<T: Handle>(handle: *mut T) -> Option<T> {
    if handle.is_null() {
        return None; // the common case: no words for an error that is not read
    }
    let cell = cell(handle).ok()?;
    let pool = T::pool();
    // SAFETY: cells live for ever.
    let cell: &'static Cell<T> = unsafe { &*cell };
    cell.mark
        .compare_exchange(pool.mark, !pool.mark, Ordering::AcqRel, Ordering::Relaxed)
        .ok()?;
    // SAFETY: the thread that changed the mark from live owns the value.
    let value = unsafe { (*cell.value.get()).take() };
    pool.free.lock().push_back(cell);
    value
}
