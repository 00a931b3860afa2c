// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_manager`: made, changed and freed, and what all functions on it share.

use super::callback::{Context, jitmem_destroy_fn};
use super::guard;
use super::handle::{self, Handle};
use super::mapper::jitmem_mapper;
use super::options::{self, jitmem_manager_options};
use super::status::{self, jitmem_error, jitmem_status};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::manager::Manager;
use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

/// Divides what a mapper reserved among many link graphs. All functions on it are thread-safe and
/// may be called from inside its callbacks.
#[allow(non_camel_case_types)]
pub struct jitmem_manager {
    manager: Manager,
    mapper_name: CString,
    fallback_reason: Option<CString>,
    poisoned: AtomicBool,
}

static MANAGERS: handle::Pool<jitmem_manager> = handle::Pool::new(handle::Kind::Manager);

impl Handle for jitmem_manager {
    fn pool() -> &'static handle::Pool<Self> {
        &MANAGERS
    }
    const NAME: &'static str = "jitmem_manager";
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', "\u{fffd}")).unwrap_or_default()
}

impl jitmem_manager {
    fn new(manager: Manager) -> jitmem_manager {
        let manager = manager.announced();
        let stats = manager.stats();
        jitmem_manager {
            mapper_name: c_string(stats.mapper_name),
            fallback_reason: stats.fallback.as_deref().map(c_string),
            poisoned: AtomicBool::new(false),
            manager,
        }
    }

    pub(super) fn manager(&self) -> &Manager {
        &self.manager
    }

    pub(super) fn mapper_name(&self) -> *const c_char {
        self.mapper_name.as_ptr()
    }

    pub(super) fn fallback_reason(&self) -> *const c_char {
        self.fallback_reason
            .as_ref()
            .map_or(std::ptr::null(), |reason| reason.as_ptr())
    }
}

/// The answer of a call that declines to wait. No text is made: it happens often.
pub(super) fn now<T>(answer: Option<Result<T>>) -> Result<T> {
    answer.unwrap_or_else(|| Err(Error::new(Status::WouldBlock, String::new())))
}

/// Runs `body` on a manager; after a panic the manager refuses further work.
///
/// A callback inside `body` may free the manager, so nothing here looks at it afterwards without
/// asking again whether it is there.
///
/// # Safety
/// `manager` is NULL or a handle of this library.
pub(super) unsafe fn run(
    manager: *const jitmem_manager,
    body: impl FnOnce(&Manager) -> Result<()>,
) -> Result<()> {
    // SAFETY: as the caller says.
    let handle = unsafe { handle::get(manager) }?;
    if handle.poisoned.load(Ordering::Relaxed) {
        return Err(Error::new(
            Status::Internal,
            "this manager refuses further work since a defect in jitmem was reported",
        ));
    }
    guard::catch(|| body(&handle.manager)).unwrap_or_else(|panic| {
        // SAFETY: as the caller says.
        if let Ok(handle) = unsafe { handle::get(manager) } {
            handle.poisoned.store(true, Ordering::Relaxed);
        }
        Err(panic)
    })
}

/// [`run`] for a call that answers with its status.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
pub(super) unsafe fn with_manager(
    manager: *const jitmem_manager,
    error: *mut *mut jitmem_error,
    body: impl FnOnce(&Manager) -> Result<()>,
) -> jitmem_status {
    // SAFETY: as the caller says.
    unsafe { guard::call(error, || run(manager, body)) }
}

/// [`run`] for a request whose answer goes to a callback. `accept` checks the arguments and makes
/// the completion; from then on the callback hears of every failure, and not even a panic in
/// `submit` is a refusal.
///
/// # Safety
/// As [`with_manager`].
pub(super) unsafe fn with_completion<T>(
    manager: *const jitmem_manager,
    error: *mut *mut jitmem_error,
    accept: impl FnOnce(&Manager) -> Result<T>,
    submit: impl FnOnce(&Manager, T),
) -> jitmem_status {
    let body = || {
        let mut accepted = false;
        // SAFETY: as the caller says.
        let result = unsafe {
            run(manager, |manager| {
                let request = accept(manager)?;
                accepted = true;
                submit(manager, request);
                Ok(())
            })
        };
        if accepted { Ok(()) } else { result }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

// ---- creating ----

/// Lets look-ups tell the handle of a manager.
///
/// # Safety
/// `manager` is not freed meanwhile.
unsafe fn tell_handle(manager: *const jitmem_manager) {
    // SAFETY: as the caller says.
    if let Some(handle) = unsafe { handle::live(manager) } {
        handle.manager.core().set_host_handle(manager.addr());
    }
}

/// Receives a new manager, which it owns, or an error, which is valid during the call.
#[allow(non_camel_case_types)]
pub type jitmem_created_fn = Option<
    unsafe extern "C" fn(
        ctx: *mut c_void,
        manager: *mut jitmem_manager,
        error: *const jitmem_error,
    ),
>;

/// Makes a manager over a mapper and reserves its first window.
///
/// `options` may be NULL for the defaults. On success `*manager` is the new manager, to be freed
/// with jitmem_manager_free. Thread-safe. Waits for the mapper.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or bad options, JITMEM_INVALID_HANDLE for a freed
/// mapper, JITMEM_OUT_OF_MEMORY where no address space is to be had, what the mapper answers.
///
/// # Safety
/// `mapper` is NULL or a handle of this library; `options` is NULL or points to a struct of the
/// size that it says; `manager` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_create(
    mapper: *const jitmem_mapper,
    options: *const jitmem_manager_options,
    manager: *mut *mut jitmem_manager,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let options = unsafe { options::chosen(options) }?;
        // SAFETY: as the caller says.
        let mapper = unsafe { handle::get(mapper) }?;
        let make = || wait(|done| Manager::create(&mapper.0, options, done));
        // SAFETY: as the caller says.
        unsafe { handle::give_to(manager, || make().map(jitmem_manager::new)) }?;
        // SAFETY: a handle was just written there, which the caller does not know yet.
        unsafe { tell_handle(manager.read()) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// jitmem_manager_create without waiting: `fn` receives the manager.
///
/// # Safety
/// As jitmem_manager_create; `fn` and `destroy` may be called with `ctx`, from any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_create_async(
    mapper: *const jitmem_mapper,
    options: *const jitmem_manager_options,
    r#fn: jitmem_created_fn,
    ctx: *mut c_void,
    destroy: jitmem_destroy_fn,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let context = Context::new(ctx, destroy);
    let body = || {
        // SAFETY: as the caller says.
        let options = unsafe { options::chosen(options) }?;
        // SAFETY: as the caller says.
        let mapper = unsafe { handle::get(mapper) }?;
        let callback = r#fn.ok_or_else(|| invalid_argument("fn is NULL"))?;
        let done = Completion::for_host(move |answer: Result<Manager>| {
            let made = answer.and_then(|manager| handle::give(jitmem_manager::new(manager)));
            let (manager, error) = match made {
                Ok(manager) => {
                    // SAFETY: the host does not know it yet.
                    unsafe { tell_handle(manager) };
                    (manager, None)
                }
                Err(error) => (std::ptr::null_mut(), Some(error)),
            };
            lend(error, |error| {
                // SAFETY: the host says that its function takes these.
                unsafe { callback(context.pointer(), manager, error) }
            });
        });
        // The completion is made: a panic is answered through it and is no refusal.
        let _ = guard::catch(|| Manager::create(&mapper.0, options, done));
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Changes the quota of a manager: the most bytes handed out at a time, rounding included; 0: no limit.
/// It may be below what is in use: nothing more is handed out then until enough is deallocated.
/// Thread-safe. Never waits.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `manager` is NULL or a handle of this library; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_set_quota(
    manager: *const jitmem_manager,
    quota: u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = |manager: &Manager| manager.core().set_quota((quota != 0).then_some(quota));
    // SAFETY: as the caller says.
    unsafe { with_manager(manager, error, body) }
}

/// Lends an error object to a callback.
pub(super) fn lend(error: Option<Error>, callback: impl FnOnce(*const jitmem_error)) {
    match error {
        None => callback(std::ptr::null()),
        Some(error) => {
            let object = status::object(error);
            callback(object);
            // SAFETY: made above; the callback only borrowed it.
            drop(unsafe { handle::take(object) });
        }
    }
}

/// Frees a manager: what is still finalized goes last to first with its deallocation actions,
/// what is in flight is abandoned, and the windows are released. No code of it may run any more.
/// NULL and a manager that was freed before: does nothing.
///
/// # Safety
/// `manager` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_manager_free(manager: *mut jitmem_manager) {
    // SAFETY: as the caller says.
    unsafe { guard::free(manager) }
}
