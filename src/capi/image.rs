// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_image`: linked code from a file.

use super::allocation_request::name;
use super::handle::{self, Handle};
use super::image_recorder::{jitmem_image_export, jitmem_image_key, key};
use super::manager::{jitmem_manager, run};
use super::request::{self, jitmem_action};
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::{eh_frame_action_of, eh_frame_args};
use crate::image::{Image, LinkedAction, LinkedCall, Placed};
use crate::lock::Mutex;
use crate::manager::{Dylib, InFlight, Label, Manager};
use crate::mapper::{Action, WrapperCall};
use crate::page::AddressRange;
use crate::sys::heap::{self, Watch};
use std::ffi::c_char;
use std::mem::{offset_of, size_of};

/// A file that was read and checked whole, and what the last link made of it. One thread at a time uses an
/// image. It takes memory as jitmem_image_open has it, and a descriptor: the file stays open.
#[allow(non_camel_case_types)]
pub struct jitmem_image(Mutex<Opened>);

struct Opened {
    image: Image,
    /// Where the exports are; empty before the image is linked.
    addresses: Vec<u64>,
    /// What is left to be finalized.
    linked: Option<Linked>,
}

/// An image in flight.
struct Linked {
    graph: InFlight,
    frames: Vec<AddressRange>,
    actions: Vec<LinkedAction>,
}

static IMAGES: handle::Pool<jitmem_image> = handle::Pool::new(handle::Kind::Image);

impl Handle for jitmem_image {
    fn pool() -> &'static handle::Pool<Self> {
        &IMAGES
    }
    const NAME: &'static str = "jitmem_image";
}

/// Runs `body` on an image.
///
/// # Safety
/// `image` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
unsafe fn with_image(
    image: *const jitmem_image,
    error: *mut *mut jitmem_error,
    body: impl FnOnce(&mut Opened) -> Result<()>,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let image = unsafe { handle::get(image) }?;
        // A wait might be for a thread that a forked child does not have.
        let mut image = image.0.try_lock().ok_or_else(|| {
            invalid_argument("another thread uses this image at the moment; open one for each")
        })?;
        heap::check()?;
        body(&mut image)
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Reads a file that jitmem_image_recorder_store has written, and checks all of it. Takes at most nine system calls besides the
/// heap's, and for more than 16 MiB one for each 4 MiB. The file stays open, to be read again when it is linked. A file of 320 KiB
/// to 8 MiB is read at once, into memory that the image has until it is linked; in this process the largest segment of 256 KiB to
/// 2 MiB that is not writable stays there, and what is left goes with the image.
///
/// `key` is what it was stored with; it may be NULL if `key_count` is 0. On success `*image` is the image, to be freed with
/// jitmem_image_free. Thread-safe. Waits for the disk.
///
/// Errors: JITMEM_UNSUPPORTED if it was stored for another key, by another version of jitmem, or on another processor, and
/// says what differs; JITMEM_INVALID_ARGUMENT for NULL, and if the file is none, or is torn or damaged; JITMEM_DENIED if it
/// belongs to another user than this one or root, or others may write it; JITMEM_OUT_OF_MEMORY; JITMEM_SYSTEM: what the system
/// says of the file.
///
/// # Safety
/// `path` is NULL or NUL-terminated; `key` is NULL or has `key_count` entries, whose strings are NULL or NUL-terminated;
/// `image` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_open(
    path: *const c_char,
    key: *const jitmem_image_key,
    key_count: usize,
    image: *mut *mut jitmem_image,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let path = unsafe { input::text(path, "path") }?;
        // SAFETY: as the caller says.
        let key = unsafe { self::key(key, key_count) }?;
        let open = || {
            let image = Image::open(path, &key)?;
            Ok(jitmem_image(Mutex::new(Opened {
                addresses: Vec::new(),
                linked: None,
                image,
            })))
        };
        // SAFETY: as the caller says.
        unsafe { handle::give_to(image, open) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Writes the first of `all` to an array, and how many there are.
///
/// # Safety
/// `array` is NULL or has `capacity` entries; `count` is NULL or a place for a number.
unsafe fn write_all<T>(
    all: impl ExactSizeIterator<Item = T>,
    (array, capacity, name): (*mut T, usize, &str),
    count: *mut usize,
) -> Result<()> {
    input::required(count, "count")?;
    if capacity > 0 {
        input::required(array, name)?;
    }
    // SAFETY: not NULL, and the caller says that it is a place for a number.
    unsafe { count.write(all.len()) };
    for (index, one) in all.take(capacity).enumerate() {
        // SAFETY: not NULL, and the caller says that it has `capacity` entries.
        unsafe { array.add(index).write(one) };
    }
    Ok(())
}

/// Gives the symbols that are outside of an image, each once. The first `capacity` of them are written to `symbols`, `*count`
/// is how many there are: with a capacity of 0 `symbols` may be NULL. The strings are valid until the image is freed.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `image` is NULL or a handle of this library; `symbols` is NULL or has `capacity` entries; `count` is NULL or a place for a
/// number; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_imports(
    image: *const jitmem_image,
    symbols: *mut *const c_char,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |opened: &mut Opened| {
        let names = opened.image.c_imports().map(|name| name.as_ptr().cast());
        // SAFETY: as the caller says.
        unsafe { write_all(names, (symbols, capacity, "symbols"), count) }
    };
    // SAFETY: as the caller says.
    unsafe { with_image(image, error, body) }
}

/// Gives the symbols that may be looked up in an image, with the addresses that the last link has given them: 0 before. They are
/// written as jitmem_image_imports does.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `image` is NULL or a handle of this library; `exports` is NULL or has `capacity` entries; `count` is NULL or a place for a
/// number; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_exports(
    image: *const jitmem_image,
    exports: *mut jitmem_image_export,
    capacity: usize,
    count: *mut usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |opened: &mut Opened| {
        let all = opened.image.c_exports().enumerate();
        let all = all.map(|(index, (name, flags))| jitmem_image_export {
            symbol: name.as_ptr().cast(),
            address: opened.addresses.get(index).copied().unwrap_or(0),
            flags,
            reserved: [0; 2],
        });
        // SAFETY: as the caller says.
        unsafe { write_all(all, (exports, capacity, "exports"), count) }
    };
    // SAFETY: as the caller says.
    unsafe { with_image(image, error, body) }
}

/// How an image is to be linked. Set struct_size to sizeof(jitmem_image_link_request) and the rest to zero for the
/// defaults.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_image_link_request {
    /// sizeof(jitmem_image_link_request).
    pub struct_size: usize,
    /// Addresses in the executor, in the order of jitmem_image_imports; may be NULL if address_count is 0.
    pub addresses: *const u64,
    /// How many there are: one for each import.
    pub address_count: usize,
    /// The JITDylib, as for jitmem_manager_allocate; 0: none.
    pub dylib: u64,
    /// A number that means something to the host, as in jitmem_allocation_request.
    pub tag: u64,
    /// A name: UTF-8, at most 4,096 bytes, copied. NULL: none.
    pub name: *const c_char,
    /// The name of the JITDylib, likewise.
    pub dylib_name: *const c_char,
    /// 1: frames are not registered. No exception passes through the code then. 0: finalize registers them.
    pub without_frames: u64,
}

const LEAST: usize = offset_of!(jitmem_image_link_request, without_frames) + size_of::<u64>();

/// Allocates memory for all of an image in a manager and fills it in for the addresses that it has got. It is one
/// allocation, which is the image's until jitmem_image_finalize; what an earlier link has left in flight is given
/// up. An image may be linked any number of times. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, not one address for each import, or two segments too far from each other for a
/// distance of 4 bytes, where each segment has a reservation of its own; the file was written to since it was opened, and is not
/// what was stored), JITMEM_INVALID_HANDLE, JITMEM_SYSTEM (what the system says of the file), and as jitmem_manager_allocate. Nothing
/// is left allocated then.
///
/// # Safety
/// `image` and `manager` are NULL or handles of this library; `request` is NULL or points to a struct of the size that it says, whose
/// addresses are as many as it says and whose names are NULL or NUL-terminated; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_link(
    image: *const jitmem_image,
    manager: *const jitmem_manager,
    request: *const jitmem_image_link_request,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |opened: &mut Opened| {
        // SAFETY: plain numbers and pointers; the caller vouches for the size.
        let given = unsafe { input::versioned(request, LEAST, "jitmem_image_link_request") }?;
        let link = |manager: &Manager| {
            let count = given.address_count;
            // SAFETY: the caller says that there are as many.
            let addresses = unsafe { input::array(given.addresses, count, "addresses") }?;
            let without_frames = match given.without_frames {
                flag @ (0 | 1) => flag == 1,
                other => {
                    let what = format!("without_frames {other} is neither 0 nor 1");
                    return Err(invalid_argument(what));
                }
            };
            // SAFETY: the caller says that these are strings or NULL.
            let own = unsafe { name(given.name, "name") }?;
            // SAFETY: as above.
            let of_dylib = unsafe { name(given.dylib_name, "dylib_name") }?;
            let label = Label::new(Dylib(given.dylib)).tag(given.tag);
            let heap = Watch::begin()?;
            opened.linked = None;
            opened.addresses.clear();
            let image = &opened.image;
            let placed = image.link_to(manager, label.names(own, of_dylib), addresses)?;
            heap.check("link an image")?;
            let Placed {
                graph,
                exports,
                mut frames,
                actions,
            } = placed;
            if without_frames {
                frames.clear();
            }
            opened.addresses = exports;
            opened.linked = Some(Linked {
                graph,
                frames,
                actions,
            });
            Ok(())
        };
        // SAFETY: as the caller says.
        unsafe { run(manager, link) }
    };
    // SAFETY: as the caller says.
    unsafe { with_image(image, error, body) }
}

/// An action that is stored with an image.
///
/// # Safety
/// As [`WrapperCall::new`] has it: what the file says of it is right.
unsafe fn stored(action: LinkedAction) -> Action {
    let call = |call: Option<LinkedCall>| match call {
        // SAFETY: as the caller says.
        Some(LinkedCall { function, args }) => unsafe { WrapperCall::new(function, args) },
        None => WrapperCall::NONE,
    };
    Action {
        finalize: call(action.finalize),
        dealloc: call(action.dealloc),
    }
}

/// Makes a linked image visible in the executor, registers its frames, runs the actions that are stored with it, and `actions`
/// behind those, first to last, as jitmem_manager_finalize does. `*allocation` is its handle from then on, for
/// jitmem_manager_deallocate, and the image may be freed. Where the executor's unwinder asks an index and content is shared, frames
/// take no message.
/// `actions` may be NULL if `count` is 0. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; nothing is linked), JITMEM_INVALID_HANDLE; JITMEM_UNSUPPORTED where it is not known what
/// registers frames in the executor (jitmem_image_link_request.without_frames): the image is in flight as before. As
/// jitmem_manager_finalize, and JITMEM_INVALID_HANDLE if the manager was freed: the memory is free then, and the image may be
/// linked again.
///
/// # Safety
/// `image` is NULL or a handle of this library; `actions` is as for jitmem_manager_finalize; `allocation` is NULL or a place
/// for a handle; `error` is NULL or a place for a pointer. The unwind information and the actions of the file are right: nothing that
/// others have written is in it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_finalize(
    image: *const jitmem_image,
    actions: *const jitmem_action,
    count: usize,
    allocation: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |opened: &mut Opened| {
        input::required(allocation, "allocation")?;
        // SAFETY: as the caller says.
        let given = unsafe { request::actions(actions, count) }?;
        let Some(linked) = &opened.linked else {
            return Err(invalid_argument(
                "finalize an image: nothing is in flight; link it before",
            ));
        };
        let frames = linked.frames.len();
        let count = frames + linked.actions.len() + given.len();
        let mut actions = heap::room_for(count, "finalize an image")?;
        for section in &linked.frames {
            let registration = linked.graph.registration()?;
            let section = eh_frame_args(section.start(), section.size());
            // SAFETY: it is a part of the allocation, which is there while they are registered; the caller vouches for
            // the content.
            actions.push(unsafe { eh_frame_action_of(registration, section) });
        }
        let Some(linked) = opened.linked.take() else {
            return Err(Error::new(Status::Internal, "it was there before"));
        };
        // SAFETY: the caller vouches for them.
        let stored = linked
            .actions
            .into_iter()
            .map(|action| unsafe { stored(action) });
        actions.extend(stored.chain(given));
        let handle = linked.graph.finalize(actions)?;
        // SAFETY: not NULL, and the caller says that it is a place for a handle.
        unsafe { allocation.write(handle.0) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { with_image(image, error, body) }
}

/// Frees an image; what is in flight of it is given up, what was finalized stays. NULL and one that was freed before:
/// does nothing.
///
/// # Safety
/// `image` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_image_free(image: *mut jitmem_image) {
    // SAFETY: as the caller says.
    unsafe { guard::free(image) }
}
