// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Taking arguments from C: NULL, counts, and structs that may grow.

use crate::error::{Error, Result, invalid_argument};
use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Debug;
use std::mem::size_of;
use std::ptr::NonNull;

/// Fails if a place to write or read is NULL or misaligned.
#[inline]
pub(super) fn required<T>(pointer: *const T, name: &str) -> Result<()> {
    match !pointer.is_null() && pointer.is_aligned() {
        true => Ok(()),
        false => Err(not_a_place(pointer.cast(), name)),
    }
}

#[cold]
fn not_a_place(pointer: *const c_void, name: &str) -> Error {
    invalid_argument(match pointer.is_null() {
        true => format!("{name} is NULL"),
        false => format!("{name} at {pointer:p} is misaligned"),
    })
}

/// A place for an answer that a caller may leave out.
pub(super) struct Optional<T>(Option<NonNull<T>>);

impl<T> Optional<T> {
    /// Fails if the place is misaligned.
    ///
    /// # Safety
    /// `pointer` is NULL or a place for a value, for as long as this lives.
    pub(super) unsafe fn new(pointer: *mut T, name: &str) -> Result<Optional<T>> {
        let place = NonNull::new(pointer);
        if place.is_some() {
            required(pointer, name)?;
        }
        Ok(Optional(place))
    }

    pub(super) fn set(self, value: T) {
        if let Some(place) = self.0 {
            // SAFETY: aligned, and the caller of `new` says that it is a place for a value.
            unsafe { place.write(value) };
        }
    }
}

/// A string of C.
///
/// # Safety
/// `pointer` is NULL or a NUL-terminated string that stays as it is during `'a`.
pub(super) unsafe fn text<'a>(pointer: *const c_char, name: &str) -> Result<&'a str> {
    required(pointer, name)?;
    // SAFETY: not NULL, and the caller says that it is a string.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str()
        .map_err(|_| invalid_argument(format!("{name} is not UTF-8")))
}

/// [`text`] of at most `most` bytes; no more of it is read.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn short_text<'a>(
    pointer: *const c_char,
    most: usize,
    name: &str,
) -> Result<&'a str> {
    required(pointer, name)?;
    // SAFETY: the caller says that it is a string.
    let size = unsafe { libc::strnlen(pointer, most + 1) };
    if size > most {
        return Err(invalid_argument(format!(
            "{name} has more than {most} bytes"
        )));
    }
    // SAFETY: a NUL follows these bytes.
    unsafe { text(pointer, name) }
}

/// [`text`] that may be NULL.
///
/// # Safety
/// As [`text`].
pub(super) unsafe fn optional_text<'a>(
    pointer: *const c_char,
    name: &str,
) -> Result<Option<&'a str>> {
    if pointer.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller says.
    unsafe { text(pointer, name) }.map(Some)
}

/// What a host says of a failure.
///
/// # Safety
/// `pointer` is NULL or a NUL-terminated string that stays as it is during `'a`.
pub(super) unsafe fn message<'a>(pointer: *const c_char) -> Cow<'a, str> {
    if pointer.is_null() {
        return "no message".into();
    }
    // SAFETY: not NULL, and the caller says that it is a string.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy()
}

/// A yes or no.
pub(super) fn flag(value: u32, name: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(invalid_argument(format!(
            "{name} {value} is neither 0 nor 1"
        ))),
    }
}

#[cold]
fn too_long(pointer: *const c_void, count: usize, name: &str) -> Error {
    invalid_argument(format!(
        "{name} at {pointer:p} with {count} elements: longer than memory"
    ))
}

/// An array of C.
///
/// # Safety
/// `pointer` is NULL or points to `count` elements that stay as they are during `'a`.
#[inline]
pub(super) unsafe fn array<'a, T>(pointer: *const T, count: usize, name: &str) -> Result<&'a [T]> {
    if count == 0 {
        return Ok(&[]);
    }
    required(pointer, name)?;
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(too_long(pointer.cast(), count, name));
    }
    // SAFETY: not NULL, aligned, and the caller vouches for the elements.
    Ok(unsafe { std::slice::from_raw_parts(pointer, count) })
}

/// A struct that begins with its size and may be shorter (an older header) or longer (a newer
/// one) than ours. What is missing is zero; what is too much must be zero.
///
/// # Safety
/// `T` is a C struct of plain numbers and pointers for which all zero bytes are a value, and
/// `pointer` is NULL or points to as many bytes as its first field says.
pub(super) unsafe fn versioned<T>(pointer: *const T, least: usize, name: &str) -> Result<T> {
    required(pointer, name)?;
    // SAFETY: the struct begins with a size_t.
    let given = unsafe { pointer.cast::<usize>().read() };
    check_size(given, least, name)?;
    // SAFETY: all zero bytes are a value of T.
    let mut value: T = unsafe { std::mem::zeroed() };
    let common = given.min(size_of::<T>());
    let bytes = pointer.cast::<u8>();
    // SAFETY: both sides have at least `common` bytes.
    unsafe {
        std::ptr::from_mut(&mut value)
            .cast::<u8>()
            .copy_from_nonoverlapping(bytes, common)
    };
    for offset in common..given {
        // SAFETY: the caller's struct has `given` bytes.
        if unsafe { bytes.add(offset).read() } != 0 {
            return Err(invalid_argument(format!(
                "{name} uses a field at byte {offset} that this library ({}) does not know; \
                 update the library",
                env!("CARGO_PKG_VERSION")
            )));
        }
    }
    Ok(value)
}

/// Checks the fields that a struct in an array keeps for later versions. A caller that uses them was
/// compiled against a newer library and must not have them ignored.
#[inline]
pub(super) fn unused<Field, const N: usize>(reserved: [Field; N], name: &str) -> Result<()>
where
    Field: Copy + Default + PartialEq + Debug,
{
    match reserved == [Field::default(); N] {
        true => Ok(()),
        false => Err(used_fields(&reserved, name)),
    }
}

#[cold]
fn used_fields(reserved: &[impl Debug], name: &str) -> Error {
    invalid_argument(format!(
        "{name}.reserved is not 0 but {reserved:x?}, which this library ({}) does not know; set it \
         to 0 or update the library",
        env!("CARGO_PKG_VERSION")
    ))
}

/// Checks the size that a C struct claims to have.
#[inline]
pub(super) fn check_size(given: usize, least: usize, name: &str) -> Result<()> {
    if (least..=4096).contains(&given) {
        return Ok(());
    }
    Err(invalid_argument(format!(
        "{name}.struct_size is {given}; set it to sizeof({name}), which is at least {least}"
    )))
}
