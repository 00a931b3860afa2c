// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_mapper`.

use super::handle::{self, Handle};
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input};
use crate::error::{Result, invalid_argument};
use crate::mapper::{InProcess, InProcessKind, Mapper};
use std::sync::Arc;

/// Where memory comes from. May serve any number of managers; freeing it while managers use it is
/// fine. All functions on it are thread-safe.
#[allow(non_camel_case_types)]
pub struct jitmem_mapper(pub(super) Arc<dyn Mapper>);

static MAPPERS: handle::Pool<jitmem_mapper> = handle::Pool::new(0x6a69_746d_6d61_7070);

impl Handle for jitmem_mapper {
    fn pool() -> &'static handle::Pool<Self> {
        &MAPPERS
    }
    const NAME: &'static str = "jitmem_mapper";
}

/// Which in-process mapper to make.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum jitmem_in_process_kind {
    /// Two views where one probe shows that the system allows them, else mprotect.
    JITMEM_IN_PROCESS_AUTO = 0,
    /// Two views of sealed memfds: no page ever turns executable, graphs share pages.
    JITMEM_IN_PROCESS_TWO_VIEWS = 1,
    /// Private pages whose protection changes; whole pages and system calls per allocation.
    JITMEM_IN_PROCESS_MPROTECT = 2,
}

fn in_process_kind(kind: u32) -> Result<InProcessKind> {
    match kind {
        0 => Ok(InProcessKind::Auto),
        1 => Ok(InProcessKind::TwoViews),
        2 => Ok(InProcessKind::Mprotect),
        _ => Err(invalid_argument(format!(
            "in-process mapper kind {kind} is none of auto 0, two views 1 and mprotect 2"
        ))),
    }
}

/// Makes a mapper of this process's own memory.
///
/// `kind` is one of jitmem_in_process_kind. On success `*mapper` is the new mapper, to be freed
/// with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for an unknown kind or NULL `mapper`; with
/// JITMEM_IN_PROCESS_TWO_VIEWS, what the system answered to one probe (JITMEM_DENIED,
/// JITMEM_OUT_OF_MEMORY, JITMEM_UNSUPPORTED, JITMEM_SYSTEM).
///
/// # Safety
/// `mapper` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_in_process(
    kind: u32,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        input::required(mapper, "mapper")?;
        let new = InProcess::new(in_process_kind(kind)?)?;
        let handle = handle::give(jitmem_mapper(Arc::new(new)));
        // SAFETY: not NULL, and the caller says it is a place for a pointer.
        unsafe { mapper.write(handle) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Frees a mapper; managers that use it keep what they need. NULL and a mapper that was freed
/// before: does nothing.
///
/// # Safety
/// `mapper` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_free(mapper: *mut jitmem_mapper) {
    // SAFETY: as the caller says.
    let taken = unsafe { handle::take(mapper) };
    let _ = guard::catch(|| drop(taken));
}
