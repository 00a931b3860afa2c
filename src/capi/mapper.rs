// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_mapper`.

use super::handle::{self, Handle};
use super::status::{jitmem_error, jitmem_status};
use super::transport::{jitmem_transport, transport_of};
use super::{guard, input};
use crate::error::{Result, invalid_argument};
use crate::mapper::{ExecutorService, InProcessKind, Mapper};
use crate::transport::Transport;
use std::ffi::c_char;
use std::mem::{offset_of, size_of};
use std::sync::Arc;

/// Where memory comes from. May serve any number of managers; freeing it while managers use it is
/// fine. All functions on it are thread-safe.
#[allow(non_camel_case_types)]
pub struct jitmem_mapper(pub(super) Mapper);

static MAPPERS: handle::Pool<jitmem_mapper> = handle::Pool::new(handle::Kind::Mapper);

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
    /// Two views where one probe shows that the system allows them and no debugger is there, else
    /// mprotect. A debugger is there if a process traces this one, or if the environment has
    /// JITMEM_DEBUG=1; with JITMEM_DEBUG=0 none is.
    JITMEM_IN_PROCESS_AUTO = 0,
    /// Two views of the same pages: no page ever turns executable, graphs share pages. Of shared
    /// anonymous memory or, where the system refuses that, of sealed memfds.
    JITMEM_IN_PROCESS_TWO_VIEWS = 1,
    /// Private pages whose protection changes; whole pages and system calls per allocation.
    /// Debuggers can set software breakpoints there.
    JITMEM_IN_PROCESS_MPROTECT = 2,
    /// Private pages that are written at their own addresses until finalize gives them their
    /// protection, for linkers that know one address per section: working_memory is the address. Whole
    /// pages and a system call per segment of code or constants, at finalize and at deallocate. No page
    /// that was sealed becomes writable again: it is replaced.
    JITMEM_IN_PROCESS_IN_PLACE = 3,
}

fn in_process_kind(kind: u32) -> Result<InProcessKind> {
    match kind {
        0 => Ok(InProcessKind::Auto),
        1 => Ok(InProcessKind::TwoViews),
        2 => Ok(InProcessKind::Mprotect),
        3 => Ok(InProcessKind::InPlace),
        _ => Err(invalid_argument(format!(
            "in-process mapper kind {kind} is none of auto 0, two views 1, mprotect 2 and in place 3"
        ))),
    }
}

/// Makes a mapper of this process's own memory.
///
/// `kind` is one of jitmem_in_process_kind. On success `*mapper` is the new mapper, to be freed
/// with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for an unknown kind or NULL `mapper`; with
/// JITMEM_IN_PROCESS_TWO_VIEWS and _IN_PLACE, what the system answered to one probe (JITMEM_DENIED,
/// JITMEM_OUT_OF_MEMORY, JITMEM_UNSUPPORTED, JITMEM_SYSTEM); in place does not work where memory that
/// was written may not become executable (PR_SET_MDWE).
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
        let make = || Mapper::in_process(in_process_kind(kind)?).map(jitmem_mapper);
        // SAFETY: as the caller says.
        unsafe { handle::give_to(mapper, make) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Which service of an executor, and why this mapper. Set struct_size to
/// sizeof(jitmem_executor_options) and the rest to zero for the defaults.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_executor_options {
    /// sizeof(jitmem_executor_options).
    pub struct_size: usize,
    /// Executor address of jitmem_service_open; 0: what the transport knows by this name.
    pub service: u64,
    /// The number published as jitmem_service_instance; 0: what the transport knows by this name, or
    /// the service that every process with this library has.
    pub instance: u64,
    /// Why a better mapper was not taken, for the statistics; copied; may be NULL.
    pub instead_of: *const c_char,
}

const LEAST_OPTIONS: usize = offset_of!(jitmem_executor_options, instead_of) + size_of::<usize>();

/// Makes a mapper with `make`, which gets transport and service.
///
/// # Safety
/// As [`jitmem_mapper_shared`] has it.
unsafe fn over_service(
    transport: *const jitmem_transport,
    options: *const jitmem_executor_options,
    mapper: *mut *mut jitmem_mapper,
    make: impl FnOnce(Arc<dyn Transport>, ExecutorService) -> Result<Mapper>,
) -> Result<()> {
    // SAFETY: as the caller says.
    let transport = unsafe { transport_of(transport) }?;
    let mut service = ExecutorService::default();
    if !options.is_null() {
        // SAFETY: plain numbers and a pointer; the caller vouches for the size.
        let options =
            unsafe { input::versioned(options, LEAST_OPTIONS, "jitmem_executor_options") }?;
        let given = |number: u64| (number != 0).then_some(number);
        (service.open, service.instance) = (given(options.service), given(options.instance));
        // SAFETY: the caller says that it is NULL or a string.
        let text = unsafe { input::optional_text(options.instead_of, "instead_of") }?;
        service.instead_of = text.map(str::to_owned);
    }
    // SAFETY: as the caller says.
    unsafe { handle::give_to(mapper, || make(transport, service).map(jitmem_mapper)) }
}

/// Makes a mapper of another process's memory on this machine, through shared pages: what the linker
/// writes here is what the executor sees there, and no content is sent. A child that the executor forks has
/// linked code's data as it is then, and neither sees what the other writes, unless the executor shares it
/// (--fork-memory=shared, JITMEM_FORK_MEMORY).
///
/// `options` may be NULL. Calls the executor and waits for its answers, so it must not be called where
/// the transport's answers come from. On success `*mapper` is the new mapper, to be freed with
/// jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or a wrong struct_size, JITMEM_INVALID_HANDLE,
/// JITMEM_UNSUPPORTED if the executor has no service, or another version of it, or memfds can't be
/// handed to it (the message says what was tried), JITMEM_DISCONNECTED.
///
/// # Safety
/// `transport` is NULL or a handle of this library; `options` is NULL or a struct of the size that it
/// says; `mapper` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_shared(
    transport: *const jitmem_transport,
    options: *const jitmem_executor_options,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe { over_service(transport, options, mapper, Mapper::shared) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a mapper of the memory of a process on any machine: content travels in the transport's
/// messages, zero-fill does not.
///
/// As jitmem_mapper_shared, but for handing memfds over.
///
/// # Safety
/// As jitmem_mapper_shared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_remote(
    transport: *const jitmem_transport,
    options: *const jitmem_executor_options,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe { over_service(transport, options, mapper, Mapper::remote) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a mapper of another process's memory on this machine through LLVM's own shared-memory service
/// (ExecutorSharedMemoryMapperService), which executors have that know nothing of jitmem: protections
/// are set for each allocation, so each takes whole pages and a message.
///
/// The transport must know the service's bootstrap symbols by name. `instead_of` says why a better
/// mapper was not taken, for the statistics; copied; may be NULL. On success `*mapper` is the new
/// mapper, to be freed with jitmem_mapper_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED if the executor
/// does not publish the service.
///
/// # Safety
/// `transport` is NULL or a handle of this library; `instead_of` is NULL or a NUL-terminated string;
/// `mapper` and `error` are NULL or places for a pointer. The executor's shared memory is its own, and
/// does not become smaller while the mapper or a manager of it is there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_llvm_shared(
    transport: *const jitmem_transport,
    instead_of: *const c_char,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let make = |transport, reason| unsafe { Mapper::llvm_shared(transport, reason) };
    // SAFETY: as the caller says.
    let body = || unsafe { over_llvm(transport, instead_of, mapper, make) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a mapper of the memory of a process on any machine through LLVM's own memory manager service
/// (SimpleExecutorMemoryManager, of LLVM 14 to 19 or of LLVM 22), which every executor has: content
/// travels in the transport's messages, and each allocation has a reservation of its own. So it takes
/// whole pages, three messages from allocate to deallocate (one deallocates any number), and addresses
/// that the executor chooses.
///
/// The transport must know the service's bootstrap symbols by name, and the executor's pages must be as
/// large as this process's. `instead_of` says why a better mapper was not taken, for the statistics;
/// copied; may be NULL. On success `*mapper` is the new mapper, to be freed with jitmem_mapper_free.
/// Thread-safe.
///
/// What is different for its managers: each reservation counts as a window. An allocation that would
/// lie out of reach of 32-bit references from what is live is refused with JITMEM_WINDOW_FULL; with
/// JITMEM_GROWTH_ANOTHER_WINDOW only from what is live of the same JITDylib. JITMEM_PLACEMENT_FIXED is
/// JITMEM_UNSUPPORTED, commit has no effect, a quota counts whole reservations, and segments of
/// finalize lifetime stay until their allocation is deallocated. The try functions answer
/// JITMEM_WOULD_BLOCK.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_UNSUPPORTED if the executor
/// does not publish the service.
///
/// # Safety
/// As jitmem_mapper_llvm_shared.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_llvm_simple(
    transport: *const jitmem_transport,
    instead_of: *const c_char,
    mapper: *mut *mut jitmem_mapper,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    let body = || unsafe { over_llvm(transport, instead_of, mapper, Mapper::llvm_simple) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a mapper with `make`, which gets transport and reason.
///
/// # Safety
/// As [`jitmem_mapper_llvm_shared`] has it.
unsafe fn over_llvm(
    transport: *const jitmem_transport,
    instead_of: *const c_char,
    mapper: *mut *mut jitmem_mapper,
    make: impl FnOnce(Arc<dyn Transport>, Option<String>) -> Result<Mapper>,
) -> Result<()> {
    // SAFETY: as the caller says.
    let transport = unsafe { transport_of(transport) }?;
    // SAFETY: the caller says that it is NULL or a string.
    let reason = unsafe { input::optional_text(instead_of, "instead_of") }?;
    let reason = reason.map(str::to_owned);
    // SAFETY: as the caller says.
    unsafe { handle::give_to(mapper, || make(transport, reason).map(jitmem_mapper)) }
}

/// Frees a mapper; managers that use it keep what they need. NULL and a mapper that was freed
/// before: does nothing.
///
/// # Safety
/// `mapper` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_mapper_free(mapper: *mut jitmem_mapper) {
    // SAFETY: as the caller says.
    unsafe { guard::free(mapper) }
}
