// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_section_group`: memory section by section.

use super::handle::{self, Handle};
use super::manager::{jitmem_manager, with_manager};
use super::rtdyld::Substitute;
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::{Error, Result, invalid_argument};
use crate::executor::eh_frame_action;
use crate::lock::Mutex;
use crate::manager::{Dylib, SectionGroup, SectionKind};
use crate::page::{AddressRange, Alignment};
use crate::sys::heap;
use std::ffi::{c_char, c_void};

/// The sections of one object, or of all objects of a host: they are finalized together and freed
/// together. For linkers that ask for one section after the other and know one address of each. The manager's
/// mapper is JITMEM_IN_PROCESS_IN_PLACE. One thread at a time uses a group; different groups of one
/// manager may be used at the same time.
#[allow(non_camel_case_types)]
pub struct jitmem_section_group(pub(super) Mutex<Group>);

/// A group, and what went wrong with it under RuntimeDyld.
pub(super) struct Group {
    /// Why there is none where the host could not be told.
    pub(super) sections: Result<SectionGroup>,
    /// Why the next finalize must fail: the first section that was refused since the last one.
    pub(super) refused: Option<Error>,
    /// The first failure that LLVM was told, and the host was not.
    pub(super) untold: Option<Error>,
    /// What is written in place of sections that could not be allocated.
    pub(super) substitutes: Vec<Substitute>,
}

impl jitmem_section_group {
    pub(super) fn new(sections: Result<SectionGroup>) -> jitmem_section_group {
        jitmem_section_group(Mutex::new(Group {
            sections,
            refused: None,
            untold: None,
            substitutes: Vec::new(),
        }))
    }
}

impl Group {
    /// Finalizes what was allocated since the last time, unless something could not be: then none of it is. A
    /// failure is that of these sections, and what comes later goes on.
    pub(super) fn finalize(&mut self) -> Result<()> {
        let sections = self.sections.as_mut().map_err(|error| error.clone())?;
        match self.refused.take() {
            None => sections.finalize(),
            Some(error) => {
                // LLVM has registered their frames, which the unwinder reads until LLVM deregisters them.
                sections.set_aside();
                Err(error)
            }
        }
    }
}

static SECTION_GROUPS: handle::Pool<jitmem_section_group> =
    handle::Pool::new(handle::Kind::SectionGroup);

impl Handle for jitmem_section_group {
    fn pool() -> &'static handle::Pool<Self> {
        &SECTION_GROUPS
    }
    const NAME: &'static str = "jitmem_section_group";
}

/// What a section holds.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_section_kind {
    /// Code: read and executed once it is finalized.
    JITMEM_SECTION_CODE = 0,
    /// Constants: read once they are finalized.
    JITMEM_SECTION_CONSTANTS = 1,
    /// Data: read and written.
    JITMEM_SECTION_DATA = 2,
}

fn section_kind(kind: u32) -> Result<SectionKind> {
    match kind {
        0 => Ok(SectionKind::Code),
        1 => Ok(SectionKind::Constants),
        2 => Ok(SectionKind::Data),
        _ => Err(invalid_argument(format!(
            "section kind {kind} is none of code 0, constants 1 and data 2"
        ))),
    }
}

/// Runs `body` on a group.
///
/// # Safety
/// `group` is NULL or a handle of this library.
pub(super) unsafe fn on_group<T>(
    group: *const jitmem_section_group,
    body: impl FnOnce(&mut Group) -> Result<T>,
) -> Result<T> {
    // SAFETY: as the caller says.
    let group = unsafe { handle::get(group) }?;
    // A wait might be for a thread that a forked child does not have.
    let mut group = group.0.try_lock().ok_or_else(|| {
        invalid_argument("another thread uses this section group at the moment; make one for each")
    })?;
    heap::check()?;
    body(&mut group)
}

/// Runs `body` on the sections of a group.
///
/// # Safety
/// As [`on_group`].
unsafe fn on_sections<T>(
    group: *const jitmem_section_group,
    body: impl FnOnce(&mut SectionGroup) -> Result<T>,
) -> Result<T> {
    let body = |group: &mut Group| body(group.sections.as_mut().map_err(|error| error.clone())?);
    // SAFETY: as the caller says.
    unsafe { on_group(group, body) }
}

/// Makes a group without sections.
///
/// `dylib` is the number of the JITDylib, or of what else refers to its own code and data: all of it lies in
/// one window. With 0 that holds where the manager has one window, as it does by default. On success
/// `*group` is the new group, to be freed with jitmem_section_group_free. It keeps the manager's memory,
/// also when the manager is freed. Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED with another mapper
/// than JITMEM_IN_PROCESS_IN_PLACE.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `group` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_section_group_create(
    manager: *const jitmem_manager,
    dylib: u64,
    group: *mut *mut jitmem_section_group,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    unsafe {
        with_manager(manager, error, |manager| {
            handle::give_to(group, || {
                let sections = SectionGroup::new(manager, Dylib(dylib))?;
                Ok(jitmem_section_group::new(Ok(sections)))
            })
        })
    }
}

/// Gives memory for a section, at the address where it stays.
///
/// `kind` is one of jitmem_section_kind; `alignment` is a power of two, or 0 for none, and at most 1 GiB: a
/// window that is twice as large has a place for it, wherever it lies. `name` is for errors and may be NULL.
/// `*memory` reads zero, and may be written until the group is finalized, data until the group is freed. A
/// section of 0 bytes has an address of its own. Sections of one kind share pages until they are finalized.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL, an unknown kind, an alignment that is no power of two or more than
/// 1 GiB), JITMEM_INVALID_HANDLE, JITMEM_WINDOW_FULL, JITMEM_QUOTA_EXCEEDED, JITMEM_OUT_OF_MEMORY.
///
/// # Safety
/// `group` is NULL or a handle of this library; `name` is NULL or a NUL-terminated string; `memory` and
/// `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_section_group_allocate(
    group: *const jitmem_section_group,
    kind: u32,
    size: u64,
    alignment: u64,
    name: *const c_char,
    memory: *mut *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        input::required(memory, "memory")?;
        // SAFETY: as the caller says.
        let allocated = unsafe { allocate(group, kind, size, alignment, name) }?;
        // SAFETY: not NULL, and the caller says that it is a place for a pointer.
        unsafe { memory.write(allocated.cast()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Allocates a section, and names it in the error.
///
/// # Safety
/// As [`jitmem_section_group_allocate`].
pub(super) unsafe fn allocate(
    group: *const jitmem_section_group,
    kind: u32,
    size: u64,
    alignment: u64,
    name: *const c_char,
) -> Result<*mut u8> {
    let allocated = section_kind(kind).and_then(|kind| {
        let power = Alignment::try_from(alignment.max(1)).map_err(|error| {
            error
                .remedy("pass a power of two up to 1 GiB, as the object file has it, or 0 for none")
        })?;
        // SAFETY: as the caller says.
        unsafe { on_sections(group, |sections| sections.allocate(kind, size, power)) }
    });
    allocated.map_err(|error| {
        let name = match name.is_null() {
            true => "without a name".into(),
            // SAFETY: as the caller says.
            false => unsafe { input::message(name) },
        };
        error.context(format_args!(
            "section {name} of {size} bytes, alignment {alignment}"
        ))
    })
}

/// Has the next finalize register an `.eh_frame` section, which lies in a section of the group, with the
/// unwinder, so that exceptions pass through the code that it describes. It is deregistered before the group's
/// memory goes.
///
/// `section` has `size` bytes and ends with a zero length inside or behind them, as linkers lay it out.
///
/// Errors: JITMEM_INVALID_ARGUMENT (NULL; what lies in no section), JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `group` is NULL or a handle of this library; `section` is NULL, or such a section is there when the group
/// is finalized and stays as it is until the group is freed; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_section_group_register_eh_frame(
    group: *const jitmem_section_group,
    section: *const c_void,
    size: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        input::required(section.cast::<u8>(), "section")?;
        let start = section.expose_provenance() as u64;
        // SAFETY: as the caller says.
        let action = unsafe { eh_frame_action(start, size) };
        // SAFETY: as the caller says.
        unsafe {
            on_sections(group, |sections| {
                let bytes = AddressRange::new(start, size.max(1));
                if !bytes.is_some_and(|bytes| sections.holds(bytes)) {
                    return Err(invalid_argument(format!(
                        "register frames of {size} bytes at {start:#x}: they lie in no section of the group; pass the \
                         address that jitmem_section_group_allocate gave for .eh_frame"
                    )));
                }
                sections.on_finalize(action);
                Ok(())
            })
        }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Gives all sections of a group that were allocated since the last time their protection, and registers
/// their frames. May be called again: what is allocated afterwards lies in other pages.
///
/// Errors: JITMEM_INVALID_HANDLE, JITMEM_OUT_OF_MEMORY, JITMEM_DENIED, JITMEM_ACTION_FAILED (a section of
/// frames is none). The sections that were to be finalized are gone then, and what was finalized before
/// stays. For a group of jitmem_rtdyld_create_context also the first failure of jitmem_rtdyld_finalize_memory since
/// the last call, once.
///
/// # Safety
/// `group` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_section_group_finalize(
    group: *const jitmem_section_group,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe {
        on_group(group, |group| {
            group.finalize()?;
            group.untold.take().map_or(Ok(()), Err)
        })
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Deregisters the frames of a group and gives its memory back, finalized or not. Its code must not run any
/// more. NULL and a group that was freed before: does nothing.
///
/// # Safety
/// `group` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_section_group_free(group: *mut jitmem_section_group) {
    // SAFETY: as the caller says.
    unsafe { guard::free(group) }
}
