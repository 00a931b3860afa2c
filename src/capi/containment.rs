// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Bounds of a process that is an executor.

use super::guard;
use super::input::{self, Optional};
use super::status::{jitmem_error, jitmem_status};
use crate::error::{Result, invalid_argument};
use crate::executor::containment::{Containment, Means, Profile};
use std::ffi::{CStr, OsStr, c_char};
use std::mem::{offset_of, size_of};
use std::os::unix::ffi::OsStrExt;

/// What linked code may not do: docs/containment.md has a row for each.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_profile {
    /// It may do what the process may.
    JITMEM_PROFILE_NONE = 0,
    /// Start programs, reach other processes' memory, devices and the system's administration.
    JITMEM_PROFILE_NO_EXEC = 1,
    /// That, start processes, make sockets, open files but to read those of `readable`.
    JITMEM_PROFILE_CONFINED = 2,
    /// That, and open anything; change code.
    JITMEM_PROFILE_SEALED = 3,
}

/// Bits of what the kernel has refused to a process that is otherwise bounded.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_not_in_force {
    /// Landlock (Linux 5.13, for JITMEM_PROFILE_NO_EXEC 5.19): devices can be opened, though not used, and files of the
    /// system written as their modes say.
    JITMEM_NO_LANDLOCK = 1,
    /// PR_SET_MDWE (Linux 6.3): a filter refuses the same calls.
    JITMEM_NO_MDWE = 2,
}

/// Bounds for linked code, and with it for the process. Set struct_size to sizeof(jitmem_containment) and the rest
/// to zero for none.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_containment {
    /// sizeof(jitmem_containment).
    pub struct_size: usize,
    /// A jitmem_profile. With any, all capabilities are dropped, too.
    pub profile: u32,
    /// 1: no memory is writable and executable, and none that is there becomes executable. So it is with
    /// JITMEM_PROFILE_SEALED.
    pub fixed_code: u32,
    /// 1: no sockets but Unix sockets.
    pub no_network: u32,
    /// 1: no new memfds, shared memory and mappings that grow down, which RLIMIT_DATA does not count.
    pub no_shared_memory: u32,
    /// 1: all capabilities are dropped without a profile, too.
    pub no_capabilities: u32,
    /// 1: nothing is refused; the kernel logs what would be.
    pub audit: u32,
    /// With JITMEM_PROFILE_CONFINED what can be read: files, and folders with all in them.
    pub readable: *const *const c_char,
    /// Number of them.
    pub readable_count: usize,
}

const LEAST: usize = offset_of!(jitmem_containment, readable_count) + size_of::<usize>();

/// # Safety
/// `bounds` points to a struct of the size that it says, whose paths are strings.
#[cold]
unsafe fn chosen(bounds: *const jitmem_containment) -> Result<Containment> {
    // SAFETY: numbers and pointers; the caller vouches for the size.
    let given = unsafe { input::versioned(bounds, LEAST, "jitmem_containment") }?;
    // SAFETY: the caller vouches for the array.
    let paths = unsafe { input::array(given.readable, given.readable_count, "readable") }?;
    let mut readable = Vec::new();
    for path in paths {
        input::required(*path, "a path of readable")?;
        // SAFETY: not NULL, and the caller says that it is a string.
        let path = unsafe { CStr::from_ptr(*path) };
        readable.push(OsStr::from_bytes(path.to_bytes()).into());
    }
    Ok(Containment {
        profile: match given.profile {
            0 => None,
            1 => Some(Profile::NoExec),
            2 => Some(Profile::Confined),
            3 => Some(Profile::Sealed),
            other => {
                return Err(invalid_argument(format!(
                    "profile {other} is none of 0 to 3"
                )));
            }
        },
        fixed_code: input::flag(given.fixed_code, "fixed_code")?,
        no_network: input::flag(given.no_network, "no_network")?,
        no_shared_memory: input::flag(given.no_shared_memory, "no_shared_memory")?,
        no_capabilities: input::flag(given.no_capabilities, "no_capabilities")?,
        audit: input::flag(given.audit, "audit")?,
        readable,
    })
}

/// Puts bounds in force, for good: what jitmem-executor's options of these names do, for a program whose whole purpose
/// is to be an executor. To be called when all else is open that it needs, right before jitmem_executor_serve and in
/// the same thread: filters of system calls are for all threads, but capabilities and paths for this one and those
/// that it starts. Called again, it adds bounds.
///
/// `not_in_force` may be NULL; else it gets the bits of jitmem_not_in_force that hold. Not thread-safe beside
/// itself.
///
/// Errors: JITMEM_INVALID_ARGUMENT for a wrong struct_size, an unknown profile, a flag that is neither 0 nor 1, a path
/// that can't be found; what the system says where it refuses capabilities, filters, or, for
/// JITMEM_PROFILE_CONFINED, Landlock. Some of the bounds may be in force then.
///
/// # Safety
/// `bounds` points to a struct of the size that it says; paths are strings; `not_in_force` is NULL or a place for a
/// number, `error` NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_executor_contain(
    bounds: *const jitmem_containment,
    not_in_force: *mut u32,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let not_in_force = unsafe { Optional::new(not_in_force, "not_in_force") }?;
        // SAFETY: as the caller says.
        let bounds = unsafe { chosen(bounds) }?;
        bounds.prepare();
        let refused = bounds
            .enter()?
            .into_iter()
            .filter(|layer| layer.refused.is_some());
        let bits = refused.map(|layer| match layer.means {
            Means::Landlock => jitmem_not_in_force::JITMEM_NO_LANDLOCK as u32,
            Means::Mdwe => jitmem_not_in_force::JITMEM_NO_MDWE as u32,
            Means::Capabilities | Means::Seccomp => 0,
        });
        not_in_force.set(bits.fold(0, |all, bit| all | bit));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}
