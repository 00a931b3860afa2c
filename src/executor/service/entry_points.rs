// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The service's functions as wrapper functions that a controller calls by address.

use super::{Function, Service, call};
use crate::sys::{Answer, RawWrapperResult, session_wrapper_address, wrapper_address};
use crate::wire::service::Functions;
use crate::wire::sps::ExecutorAddr;
use std::ffi::{CStr, c_char, c_void};
use std::sync::LazyLock;

/// A wrapper function: where it is for controllers, and what to call in this process.
#[derive(Clone, Copy)]
pub(crate) struct EntryPoint {
    pub(crate) address: u64,
    pub(crate) answer: fn(&[u8]) -> Answer,
}

/// Opens a session with a service of this process.
pub(crate) fn open(args: &[u8]) -> Answer {
    super::open(args, &functions())
}

fn attach(args: &[u8]) -> Answer {
    call(Function::Attach, args, Vec::new())
}

fn reserve(args: &[u8]) -> Answer {
    call(Function::Reserve, args, Vec::new())
}

fn change(args: &[u8]) -> Answer {
    call(Function::Change, args, Vec::new())
}

fn apply(args: &[u8]) -> Answer {
    call(Function::Apply, args, Vec::new())
}

fn close(args: &[u8]) -> Answer {
    call(Function::Close, args, Vec::new())
}

unsafe extern "C" {
    /// The wrapper of [`open`] that dlsym finds, which the C API defines. It is published under its name,
    /// so what is published is this one.
    fn jitmem_service_open(args: *const c_char, size: usize) -> RawWrapperResult;
    /// The same of [`open_by_session`].
    fn jitmem_service_open_by_session(
        session: *mut c_void,
        args: RawWrapperResult,
        reply: Option<unsafe extern "C" fn(*mut c_void, RawWrapperResult, u64)>,
        call: u64,
    );
}

/// Looked up once: a compiler may give a function a second address elsewhere.
static ALL: LazyLock<[EntryPoint; 6]> = LazyLock::new(|| {
    macro_rules! all {
        ($($function:ident),*) => {
            [$(EntryPoint { address: wrapper_address($function), answer: $function }),*]
        };
    }
    let mut all = all![open, attach, reserve, change, apply, close];
    all[0].address = (jitmem_service_open as *const ()).expose_provenance() as u64;
    all
});

/// All of them.
pub(crate) fn entry_points() -> [EntryPoint; 6] {
    *ALL
}

/// What the answer to `open` names.
pub(crate) fn functions() -> Functions {
    let [_, attach, reserve, change, apply, close] =
        entry_points().map(|function| ExecutorAddr(function.address));
    Functions {
        attach,
        reserve,
        change,
        apply,
        close,
    }
}

/// Opens a session whose controller reaches this process through a session of orc-rt's.
pub(crate) fn open_by_session(args: &[u8]) -> Answer {
    super::open(args, &session_functions())
}

/// What the answer to `open` names there: the same functions in orc-rt's form.
fn session_functions() -> Functions {
    static ALL: LazyLock<Functions> = LazyLock::new(|| Functions {
        attach: ExecutorAddr(session_wrapper_address(attach)),
        reserve: ExecutorAddr(session_wrapper_address(reserve)),
        change: ExecutorAddr(session_wrapper_address(change)),
        apply: ExecutorAddr(session_wrapper_address(apply)),
        close: ExecutorAddr(session_wrapper_address(close)),
    });
    ALL.clone()
}

/// The names and values that an executor publishes for a service.
pub(crate) fn symbols(service: &Service) -> [(&'static CStr, u64); 2] {
    let [open, ..] = entry_points();
    named(open.address, service)
}

/// The same for an executor that calls wrapper functions in orc-rt's form.
pub(crate) fn session_symbols(service: &Service) -> [(&'static CStr, u64); 2] {
    let open = (jitmem_service_open_by_session as *const ()).expose_provenance() as u64;
    named(open, service)
}

fn named(open: u64, service: &Service) -> [(&'static CStr, u64); 2] {
    [
        (c"jitmem_service_open", open),
        (c"jitmem_service_instance", service.instance()),
    ]
}
