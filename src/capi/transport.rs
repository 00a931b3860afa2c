// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! `jitmem_transport`: calls of wrapper functions in an executor.

use super::callback::{Context, jitmem_destroy_fn};
use super::handle::{self, Handle, Kind, Waiting};
use super::limits::jitmem_limits;
use super::status::{jitmem_error, jitmem_status};
use super::{guard, input, limits};
use crate::callback_queue::Task;
use crate::completion::Completion;
use crate::error::{Error, Result, Status, invalid_argument, invalid_handle};
use crate::sys::{AtForkStatic, heap};
use crate::transport::deadlines::Watched;
use crate::transport::limits::Asked;
use crate::transport::{self, ExecutorState, Limits, Stream, Transport};
use std::ffi::{CString, c_char, c_void};
use std::mem::{offset_of, size_of};
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::{Arc, Weak};

/// A way to call wrapper functions in an executor. May serve any number of mappers; freeing it while
/// mappers use it is fine. All functions on it are thread-safe.
#[allow(non_camel_case_types)]
pub struct jitmem_transport(pub(super) Arc<dyn Transport>);

static TRANSPORTS: handle::Pool<jitmem_transport> = handle::Pool::new(handle::Kind::Transport);

impl Handle for jitmem_transport {
    fn pool() -> &'static handle::Pool<Self> {
        &TRANSPORTS
    }
    const NAME: &'static str = "jitmem_transport";
}

/// Names one call of a custom transport, which it answers with jitmem_transport_answer.
#[allow(non_camel_case_types)]
pub type jitmem_call = u64;

/// Names callbacks that wait to be run, once, by jitmem_task_run.
#[allow(non_camel_case_types)]
pub type jitmem_task = u64;

/// A transport made by the host. Set struct_size to sizeof(jitmem_transport_callbacks).
#[allow(non_camel_case_types)]
#[derive(Clone, Copy)]
#[repr(C)]
pub struct jitmem_transport_callbacks {
    /// sizeof(jitmem_transport_callbacks).
    pub struct_size: usize,
    /// Passed to every function.
    pub ctx: *mut c_void,
    /// Called once when nothing uses the transport any more; may be NULL.
    pub destroy: jitmem_destroy_fn,
    /// Calls the wrapper function at executor address `function` with `args`, which are valid during
    /// this call only, and has the answer given, now or later, from any thread, exactly once, with
    /// jitmem_transport_answer. Called with no lock held, from any thread, several at a time; must
    /// not wait for the answer and must not throw. Not NULL.
    pub call: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            function: u64,
            args: *const c_void,
            args_size: usize,
            call: jitmem_call,
        ),
    >,
    /// The executor address that was published as `name` when the connection was made; 0 if none
    /// was. Called from any thread. NULL: no names are known.
    pub symbol: Option<unsafe extern "C" fn(ctx: *mut c_void, name: *const c_char) -> u64>,
    /// Has jitmem_task_run called with `task`, now or later, from any thread, exactly once: there run
    /// the callbacks of asynchronous requests that the executor has answered, which may block and
    /// which wait for no other task. Called from any thread; must not throw. NULL: they run in threads
    /// of jitmem's or where jitmem_transport_answer is called.
    pub dispatch: Option<unsafe extern "C" fn(ctx: *mut c_void, task: jitmem_task)>,
    /// How long the executor may take; copied; NULL: the defaults. They count for what mappers and managers
    /// ask over this transport, and for jitmem_transport_call.
    pub limits: *const jitmem_limits,
    /// What the executor is known by among this host's transports: the ends of all that have the same
    /// pointer are waited for together (jitmem_limits.close). It is compared only. NULL: of this one alone.
    pub executor: *const c_void,
}

const LEAST: usize = offset_of!(jitmem_transport_callbacks, call) + size_of::<usize>();

/// A call that the host has not answered. The host's context lives as long.
struct Pending {
    done: Completion<Vec<u8>>,
    context: Arc<Context>,
}

static PENDING: Waiting<Pending> = Waiting::new(Kind::Call);

static TASKS: Waiting<Task> = Waiting::new(Kind::Task);

/// What is known of hosts' executors: see [`Transport::executor`].
static EXECUTORS: AtForkStatic<Vec<(usize, Weak<ExecutorState>)>> = AtForkStatic::new(Vec::new());

fn state_of(executor: *const c_void) -> Arc<ExecutorState> {
    let state = Arc::default();
    if executor.is_null() {
        return state;
    }
    let mut known = EXECUTORS.lock();
    known.retain(|(_, state)| state.strong_count() > 0);
    let same = known.iter().find(|(name, _)| *name == executor as usize);
    if let Some(state) = same.and_then(|(_, state)| state.upgrade()) {
        return state;
    }
    // Without memory for it the transport is waited for alone.
    if known.try_reserve(1).is_ok() {
        known.push((executor as usize, Arc::downgrade(&state)));
    }
    state
}

struct Host {
    table: jitmem_transport_callbacks,
    context: Arc<Context>,
    limits: Limits,
    executor: Arc<ExecutorState>,
    _watched: Option<Watched>,
}

// SAFETY: the table is documented to be called from any thread, several at a time.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Transport for Host {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let context = Arc::clone(&self.context);
        let call = match PENDING.add(Pending { done, context }) {
            Ok(call) => call,
            Err(Pending { done, .. }) => {
                return done.complete(Err(heap::exhausted("call of a custom transport")));
            }
        };
        let host = self
            .table
            .call
            .expect("checked when the transport was made");
        let (ctx, size) = (self.context.pointer(), args.len());
        // SAFETY: the host says that its function takes these; `args` lives through the call.
        unsafe { host(ctx, function, args.as_ptr().cast(), size, call) }
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let host = self.table.symbol?;
        let name = CString::new(name).ok()?;
        // SAFETY: the host says that its function takes a context and a string.
        let address = unsafe { host(self.context.pointer(), name.as_ptr()) };
        (address != 0).then_some(address)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn executor(&self) -> Option<Arc<ExecutorState>> {
        Some(Arc::clone(&self.executor))
    }

    fn dispatch(&self, task: Task) {
        let Some(host) = self.table.dispatch else {
            return task();
        };
        // The host's context lives until its last task has run.
        let context = Arc::clone(&self.context);
        let task: Task = Box::new(move || {
            task();
            drop(context);
        });
        let task = match TASKS.add(task) {
            Ok(task) => task,
            Err(task) => return task(),
        };
        // SAFETY: the host says that its function takes these.
        unsafe { host(self.context.pointer(), task) }
    }
}

/// Makes a transport of a host's callbacks.
///
/// `callbacks` is copied. `destroy` is called with `ctx` once, when nothing uses the transport any
/// more or if this call fails. On success `*transport` is the new transport, to be freed with
/// jitmem_transport_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, a wrong struct_size, a missing function. If the struct
/// can't be read (NULL, a wrong struct_size, fields that this library does not know) `destroy` is
/// not called.
///
/// # Safety
/// `callbacks` is NULL or points to a struct of the size that it says, whose functions may be called
/// as documented; `transport` and `error` are NULL or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_custom(
    callbacks: *const jitmem_transport_callbacks,
    transport: *mut *mut jitmem_transport,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: numbers, pointers and optional functions; the caller vouches for the size.
        let table = unsafe { input::versioned(callbacks, LEAST, "jitmem_transport_callbacks") }?;
        let context = Arc::new(Context::new(table.ctx, table.destroy));
        let make = || match table.call {
            None => Err(invalid_argument("jitmem_transport_callbacks.call is NULL")),
            Some(_) => {
                // SAFETY: the caller says that it is NULL or such a struct.
                let limits = unsafe { limits::chosen(table.limits) }?;
                let watched = Watched::begin(&limits)?;
                Ok(jitmem_transport(Arc::new(Host {
                    table,
                    context,
                    limits,
                    executor: state_of(table.executor),
                    _watched: watched,
                })))
            }
        };
        // SAFETY: as the caller says.
        unsafe { handle::give_to(transport, make) }
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Makes a transport of one end of a connected stream socket, at whose other end any ORC executor
/// serves, for instance one that was started with filedescs=N,N.
///
/// Waits until the executor has introduced itself, for 30 seconds at most, and has the default limits
/// (jitmem_transport_connect has others). From then on the transport owns `fd`, which
/// nothing else may read or write, has it closed on exec and reads it in threads of its own; when the handle
/// and the last mapper are gone it ends the connection. If this call fails `fd` is the caller's
/// still. What linked code asks of a controller's ORC runtime (jit-dispatch) gets an empty answer. On
/// success `*transport` is the new transport, to be freed with jitmem_transport_free. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL or no connected stream socket; JITMEM_TIMED_OUT;
/// JITMEM_DISCONNECTED if the other end is closed; JITMEM_MAPPER_FAILED if it is no executor; JITMEM_OUT_OF_MEMORY.
///
/// # Safety
/// `fd` is no descriptor that something else in this process owns; `transport` and `error` are NULL
/// or places for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_socket(
    fd: i32,
    transport: *mut *mut jitmem_transport,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    // SAFETY: as the caller says.
    unsafe { jitmem_transport_connect(fd, std::ptr::null(), transport, error) }
}

/// jitmem_transport_socket with limits of the host's, which count for what mappers and managers ask over
/// the transport as well.
///
/// `limits` is copied; NULL: the defaults.
///
/// Errors: as there, and JITMEM_INVALID_ARGUMENT for limits with a wrong struct_size.
///
/// # Safety
/// As jitmem_transport_socket; `limits` is NULL or a struct of the size that it says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_connect(
    fd: i32,
    limits: *const jitmem_limits,
    transport: *mut *mut jitmem_transport,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let make = || {
        if fd < 0 {
            return Err(invalid_argument(format!("fd {fd} is no descriptor")));
        }
        // SAFETY: the caller says that it is NULL or such a struct.
        let limits = unsafe { limits::chosen(limits) }?;
        // SAFETY: no negative number, and the caller says that nothing else owns it.
        let socket = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        let stream = Stream::connect_within(Arc::clone(&socket), limits).map_err(|error| {
            // It stays the caller's.
            Arc::into_inner(socket).map(IntoRawFd::into_raw_fd);
            error.context(format!("connect to the executor at descriptor {fd}"))
        })?;
        Ok(jitmem_transport(Arc::new(stream)))
    };
    // A transport that was dropped would take the socket along.
    // SAFETY: as the caller says.
    let body = || unsafe { handle::give_all_to(transport, make) };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Sends a token over one end of a connected stream socket, before anything else is sent there, to an executor
/// that wants one: jitmem-executor with --token-file. Then jitmem_transport_socket, or LLVM's
/// SimpleRemoteEPC, may have the descriptor, which stays the caller's here. An executor closes the
/// connection on which another token comes. Nothing is encrypted. May wait until the executor reads.
/// Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, no connected stream socket, or less than 16 or more than
/// 4096 bytes; JITMEM_DISCONNECTED if the other end is closed.
///
/// # Safety
/// `fd` is a descriptor that the caller may use, or none; `token` is NULL or has `size` bytes; `error` is
/// NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_send_token(
    fd: i32,
    token: *const c_void,
    size: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let token: &[u8] = unsafe { input::array(token.cast(), size, "token")? };
        if fd < 0 {
            return Err(invalid_argument(format!("fd {fd} is no descriptor")));
        }
        // SAFETY: no negative number, and the caller keeps it open.
        transport::send_token(unsafe { BorrowedFd::borrow_raw(fd) }, token)
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Answers a call of a custom transport, from any thread.
///
/// `status` is a jitmem_status: 0 with the result's `size` bytes at `bytes` (copied); another with
/// `message` (NULL or UTF-8 text, copied), which for a function that answered an out-of-band error is
/// JITMEM_MAPPER_FAILED, and for an executor that is gone JITMEM_DISCONNECTED. Callbacks of
/// those who wait may run inside this call. Thread-safe.
///
/// Errors: JITMEM_INVALID_HANDLE for a call that was answered before or never made;
/// JITMEM_INVALID_ARGUMENT for `bytes` NULL with a size (the call is not answered).
///
/// # Safety
/// `bytes` has `size` bytes or is NULL; `message` is NULL or a NUL-terminated string; `error` is NULL
/// or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_answer(
    call: jitmem_call,
    status: u32,
    message: *const c_char,
    bytes: *const c_void,
    size: usize,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: the caller says that they are there.
        let bytes = unsafe { input::array(bytes.cast::<u8>(), size, "bytes") }?;
        let Some(Pending { done, context }) = PENDING.take(call) else {
            return Err(invalid_handle(format!(
                "call {call:#x} was answered before or never made"
            )));
        };
        done.complete(if status == 0 {
            // Without memory for it the call fails: it would be answered by nothing else.
            heap::copy_of(bytes, "answer of an executor")
        } else {
            // SAFETY: as the caller says.
            let text = unsafe { input::message(message) };
            let status = Status::said_by_others(status);
            Err(Error::new(status, text))
        });
        drop(context);
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Runs the callbacks that a custom transport's `dispatch` was given.
///
/// Errors: JITMEM_INVALID_HANDLE for a task that has run before or never was one.
///
/// # Safety
/// `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_task_run(
    task: jitmem_task,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        let Some(run) = TASKS.take(task) else {
            return Err(invalid_handle(format!(
                "task {task:#x} has run before or never was one"
            )));
        };
        run();
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Receives the result of a call; `bytes` is valid during the call of this function only.
#[allow(non_camel_case_types)]
pub type jitmem_bytes_fn =
    Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: *const c_void, size: usize)>;

/// Calls the wrapper function at executor address `function` with `args` and waits for its result,
/// with which `result` (may be NULL) is called in this thread before this call returns. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, JITMEM_INVALID_HANDLE, JITMEM_MAPPER_FAILED with the
/// function's own message, JITMEM_DISCONNECTED, JITMEM_TIMED_OUT.
///
/// # Safety
/// `transport` is NULL or a handle of this library; `args` has `args_size` bytes or is NULL; `result`
/// may be called with `ctx`; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_call(
    transport: *const jitmem_transport,
    function: u64,
    args: *const c_void,
    args_size: usize,
    result: jitmem_bytes_fn,
    ctx: *mut c_void,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let transport = unsafe { handle::get(transport) }?;
        // SAFETY: the caller says that they are there.
        let args = unsafe { input::array(args.cast::<u8>(), args_size, "args") }?;
        let args = heap::copy_of(args, "arguments of a call")?;
        let transport = Arc::clone(&transport.0);
        let deadline = transport.limits().deadline(Asked::Code);
        let bytes = transport::call_within(&transport, function, args, deadline)?;
        if let Some(result) = result {
            // SAFETY: the host's function takes a context and bytes that live through the call.
            unsafe { result(ctx, bytes.as_ptr().cast(), bytes.len()) };
        }
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// The address that the executor published as `name` when the connection was made. Thread-safe.
///
/// Errors: JITMEM_INVALID_ARGUMENT for NULL, text that is not UTF-8, or a name that was not
/// published; JITMEM_INVALID_HANDLE.
///
/// # Safety
/// `transport` is NULL or a handle of this library; `name` is NULL or a NUL-terminated string;
/// `address` is NULL or a place for a number; `error` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_symbol(
    transport: *const jitmem_transport,
    name: *const c_char,
    address: *mut u64,
    error: *mut *mut jitmem_error,
) -> jitmem_status {
    let body = || {
        // SAFETY: as the caller says.
        let transport = unsafe { handle::get(transport) }?;
        input::required(address, "address")?;
        // SAFETY: the caller says that it is NULL or a string.
        let name = unsafe { input::text(name, "name") }?;
        let found = transport
            .0
            .symbol(name)
            .ok_or_else(|| invalid_argument(format!("the executor published no symbol {name}")))?;
        // SAFETY: not NULL, and the caller says it is a place for a number.
        unsafe { address.write(found) };
        Ok(())
    };
    // SAFETY: as the caller says.
    unsafe { guard::call(error, body) }
}

/// Frees a transport; mappers that use it keep what they need. NULL and a transport that was freed
/// before: does nothing.
///
/// # Safety
/// `transport` is NULL or came from this library, and no other thread uses this handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitmem_transport_free(transport: *mut jitmem_transport) {
    // SAFETY: as the caller says.
    unsafe { guard::free(transport) }
}

/// The transport behind a handle.
///
/// # Safety
/// `transport` is NULL or a handle of this library.
pub(super) unsafe fn transport_of(
    transport: *const jitmem_transport,
) -> Result<Arc<dyn Transport>> {
    // SAFETY: as the caller says.
    unsafe { handle::get(transport) }.map(|transport| Arc::clone(&transport.0))
}
