// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_limits`.

use super::input;
use crate::error::Result;
use crate::transport::Limits;
use std::mem::{offset_of, size_of};
use std::time::Duration;

/// In place of a number of milliseconds: as long as the executor takes.
const NO_LIMIT: u64 = u64::MAX;

/// How long what is asked of an executor may take, in milliseconds; 0: the default;
/// UINT64_MAX: as long as the executor takes. Set struct_size to sizeof(jitmem_limits) and the rest to zero
/// for the defaults.
///
/// An executor that is stopped, by a debugger or a freezer, is not dead: without a limit what was asked
/// of it is answered when it is continued. A request whose limit is over is answered with
/// JITMEM_TIMED_OUT. What the executor may still do is not undone by that: an allocation whose finalize
/// or deallocate was not answered in time is the host's no more, and its memory is not used again before
/// the executor has answered.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_limits {
    /// sizeof(jitmem_limits).
    pub struct_size: usize,
    /// Until the executor has introduced itself; then until a mapper has its session and its way to pass
    /// descriptors; then until a manager has its first window. Each of the three may take that long.
    /// Default: 30,000.
    pub set_up: u64,
    /// A request of a manager's that runs no linked code: memory is reserved, mapped, given back.
    /// Default: UINT64_MAX.
    pub memory: u64,
    /// What runs linked code: finalize and deallocate with actions, and jitmem_transport_call; an executor that joins a group
    /// runs the actions of up to 16 allocations in as many times the limit. Default:
    /// UINT64_MAX.
    pub code: u64,
    /// A connection or session as a whole, from its beginning. Afterwards it has ended, whatever the
    /// executor does, and all that waits for it is answered with JITMEM_TIMED_OUT. Default:
    /// UINT64_MAX.
    pub session: u64,
    /// The end of managers, mappers and transport of one executor together. Afterwards they are left as
    /// they are; the executor's memory goes with it. Default: 10,000.
    pub close: u64,
    /// Bytes, not milliseconds, that the answer to a call may have; UINT64_MAX: any number. A larger answer
    /// fails the call with JITMEM_MAPPER_FAILED and takes no memory. What mappers and managers ask for is bounded
    /// further, by what they ask. No effect in custom transports, which have their answers already. Default:
    /// 268,435,456.
    pub answer: u64,
}

const LEAST: usize = offset_of!(jitmem_limits, close) + size_of::<u64>();

/// The time that a number of milliseconds says.
pub(super) fn limit(milliseconds: u64, default: Option<Duration>) -> Option<Duration> {
    match milliseconds {
        0 => default,
        NO_LIMIT => None,
        _ => Some(Duration::from_millis(milliseconds)),
    }
}

/// What a host has chosen; NULL is the defaults.
///
/// # Safety
/// `limits` is NULL or points to a struct of the size that it says.
pub(super) unsafe fn chosen(limits: *const jitmem_limits) -> Result<Limits> {
    let default = Limits::default();
    if limits.is_null() {
        return Ok(default);
    }
    // SAFETY: numbers; the caller vouches for the size.
    let given = unsafe { input::versioned(limits, LEAST, "jitmem_limits") }?;
    Ok(Limits {
        set_up: limit(given.set_up, default.set_up),
        memory: limit(given.memory, default.memory),
        code: limit(given.code, default.code),
        session: limit(given.session, default.session),
        close: limit(given.close, default.close),
        answer: match given.answer {
            0 => default.answer,
            most => most,
        },
    })
}
