// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calling executor addresses, and being called: wrapper functions with LLVM's
//! `CWrapperFunctionResult` ABI.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// What a wrapper function returns: LLVM's `CWrapperFunctionResult`, 16 bytes (in RAX:RDX on x86-64,
/// X0:X1 on AArch64).
///
/// Up to 8 bytes are inline in `data`, first byte lowest; more are in a `malloc`ed block that
/// `data` points to; size 0 with `data` non-zero is an out-of-band error, `data` then being a
/// `malloc`ed C string.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct RawWrapperResult {
    data: u64,
    size: usize,
}

impl RawWrapperResult {
    /// Of both words, as the C API's own type has them.
    pub(crate) fn of(data: u64, size: usize) -> RawWrapperResult {
        RawWrapperResult { data, size }
    }

    /// Both words, for the C API's own type.
    pub(crate) fn parts(self) -> (u64, usize) {
        (self.data, self.size)
    }
}

/// What a wrapper function answered, owned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WrapperResult {
    /// The result bytes.
    Bytes(Vec<u8>),
    /// It could not answer; this is its message.
    OutOfBand(String),
}

/// What a wrapper function of ours answers: result bytes, or an out-of-band error.
pub(crate) type Answer = Result<Vec<u8>, String>;

type WrapperFunction = unsafe extern "C" fn(*const u8, usize) -> RawWrapperResult;

/// Frees a block that JIT'd code or LLVM got from the C library.
///
/// # Safety
/// A block from malloc, which nothing uses any more.
unsafe fn free_wrapper_buffer(address: u64) {
    let block: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: as the caller says.
    unsafe { libc::free(block) }
}

/// A call of a wrapper function in the executor, which is LLVM's name for a function of the C type
/// `CWrapperFunctionResult (const char *args, size_t size)`.
///
/// An allocation action answers with a serialized `error` (LLVM's `SPSError`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WrapperCall {
    function: u64,
    args: Vec<u8>,
}

impl WrapperCall {
    /// No call.
    pub const NONE: WrapperCall = WrapperCall {
        function: 0,
        args: Vec::new(),
    };

    /// A call of the wrapper function at executor address `function`, 0 for none, with `args`, its
    /// serialized arguments.
    ///
    /// ```no_run
    /// # use jitmem::*;
    /// # let manager = Manager::new(&Mapper::in_process(InProcessKind::Auto)?, Options::default())?;
    /// # let graph = manager.allocate([], Dylib::NONE)?;
    /// // SAFETY: this would be false: nothing is at address 16, and finalize calls it.
    /// let finalize = unsafe { WrapperCall::new(0x10, Vec::new()) };
    /// let dealloc = WrapperCall::NONE;
    /// graph.finalize([Action { finalize, dealloc }])?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// A program without `unsafe` can't do so:
    ///
    /// ```compile_fail,E0133
    /// # #![forbid(unsafe_code)]
    /// # use jitmem::*;
    /// # let manager = Manager::new(&Mapper::in_process(InProcessKind::Auto)?, Options::default())?;
    /// # let graph = manager.allocate([], Dylib::NONE)?;
    /// let finalize = WrapperCall::new(0x10, Vec::new());
    /// let dealloc = WrapperCall::NONE;
    /// graph.finalize([Action { finalize, dealloc }])?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Safety
    /// Each time that the value or a clone of it is used, as the methods that take it say, a wrapper function is at this
    /// address in the executor of the manager that it is given to; the function may then be called
    /// with these bytes, in any thread; and what it answers is as LLVM's ABI has it: a result of more
    /// than 8 bytes and an error message are blocks from `malloc`, which are the caller's to free.
    pub unsafe fn new(function: u64, args: Vec<u8>) -> WrapperCall {
        WrapperCall { function, args }
    }

    /// The function's executor address; 0 for no call.
    pub fn function(&self) -> u64 {
        self.function
    }

    /// Its serialized arguments.
    pub fn args(&self) -> &[u8] {
        &self.args
    }

    /// Whether there is no function to call.
    pub fn is_none(&self) -> bool {
        self.function == 0
    }

    /// Makes the call in this process, which is the executor. No lock of ours may be held here.
    pub(crate) fn call(&self) -> WrapperResult {
        if self.is_none() {
            return WrapperResult::Bytes(Vec::new());
        }
        // SAFETY: as the one who made this value says.
        unsafe { call_wrapper(self.function, &self.args) }
    }
}

/// Calls the wrapper function at `function` in this process. No lock of ours may be held here.
///
/// # Safety
/// As [`WrapperCall::new`] has it.
pub(crate) unsafe fn call_wrapper(function: u64, args: &[u8]) -> WrapperResult {
    type Call = unsafe extern "C" fn(*const u8, usize, *const ()) -> RawWrapperResult;
    let function: *const () = std::ptr::with_exposed_provenance(function as usize);
    // SAFETY: the caller says that a wrapper function is at this address. `args` lives through the
    // call, and the ABI is the one declared above.
    let raw = unsafe {
        let call = std::mem::transmute::<*const (), Call>(super::program::caller());
        call(args.as_ptr(), args.len(), function)
    };
    // SAFETY: as above.
    unsafe { take(raw) }
}

/// The bytes of a result, whose blocks are freed.
///
/// # Safety
/// A wrapper function has just answered so.
unsafe fn take(raw: RawWrapperResult) -> WrapperResult {
    let block: *const u8 = std::ptr::with_exposed_provenance(raw.data as usize);
    match raw.size {
        0 if raw.data == 0 => WrapperResult::Bytes(Vec::new()),
        0 => {
            // SAFETY: an out-of-band error is a NUL-terminated string from malloc.
            let message = unsafe { std::ffi::CStr::from_ptr(block.cast()) };
            let message = message.to_string_lossy().into_owned();
            // SAFETY: as above; the text was copied.
            unsafe { free_wrapper_buffer(raw.data) };
            WrapperResult::OutOfBand(message)
        }
        size @ 1..=8 => WrapperResult::Bytes(raw.data.to_le_bytes()[..size].to_vec()),
        size if raw.data == 0 => {
            WrapperResult::OutOfBand(format!("result of {size} bytes at address 0"))
        }
        size => {
            // SAFETY: a result of more than 8 bytes is a block of `size` bytes from malloc.
            let bytes = unsafe { std::slice::from_raw_parts(block, size) };
            let bytes = bytes.to_vec();
            // SAFETY: as above; the bytes were copied.
            unsafe { free_wrapper_buffer(raw.data) };
            WrapperResult::Bytes(bytes)
        }
    }
}

/// Answers a call of a wrapper function of ours. A panic becomes an out-of-band error.
///
/// # Safety
/// `args` points to `size` bytes that do not change meanwhile; it may be NULL if there are none.
pub(crate) unsafe fn serve(
    args: *const u8,
    size: usize,
    body: impl FnOnce(&[u8]) -> Answer,
) -> RawWrapperResult {
    let args = match size {
        0 => &[],
        // SAFETY: the caller vouches for the bytes.
        size => unsafe { std::slice::from_raw_parts(args, size) },
    };
    // Made sure of before, so that what the body has done is never done in vain.
    let Some(room) = Room::new() else {
        return no_answer();
    };
    let answer = catch_unwind(AssertUnwindSafe(|| body(args))).unwrap_or_else(|_| {
        Err(
            "jitmem panicked, which is a defect in it: please report what it wrote to stderr"
                .into(),
        )
    });
    room.give(answer)
}

/// Answers a call of a wrapper function of ours whose arguments are a buffer, as in orc-rt's form.
///
/// # Safety
/// `args` is a buffer as wrapper functions answer them, which this function takes over.
pub(crate) unsafe fn serve_buffer(
    args: RawWrapperResult,
    body: impl FnOnce(&[u8]) -> Answer,
) -> RawWrapperResult {
    let few = args.data.to_le_bytes();
    match args.size {
        // Not arguments, but why there are none.
        0 if args.data != 0 => args,
        // SAFETY: these bytes are here.
        size @ 0..=8 => unsafe { serve(few.as_ptr(), size, body) },
        size if args.data == 0 => {
            let message = format!("arguments of {size} bytes at address 0");
            // SAFETY: there are no bytes.
            unsafe { serve(std::ptr::null(), 0, |_| Err(message)) }
        }
        // SAFETY: more than 8 bytes are a block from malloc, which is this function's.
        size => unsafe {
            let block = std::ptr::with_exposed_provenance(args.data as usize);
            let answer = serve(block, size, body);
            free_wrapper_buffer(args.data);
            answer
        },
    }
}

/// Rooms that serve where malloc has none, so that what frees something is done none the less: one for an
/// action, one for the call that brings it.
static SPARE_ROOMS: [AtomicPtr<u8>; 2] = [const { AtomicPtr::new(ptr::null_mut()) }; 2];

static UNANSWERED: AtomicUsize = AtomicUsize::new(0);

/// How often so far a wrapper function of ours had no memory for its answer.
pub(crate) fn unanswered() -> usize {
    UNANSWERED.load(Ordering::Relaxed)
}

/// What is answered without memory: nothing, which no function answers that has something to say.
#[cold]
fn no_answer() -> RawWrapperResult {
    UNANSWERED.fetch_add(1, Ordering::Relaxed);
    RawWrapperResult { data: 0, size: 0 }
}

/// A block from malloc, for a result that the caller of a wrapper function frees.
struct Room(*mut u8);

impl Room {
    /// Bytes of it, which most results fit.
    const SIZE: usize = 256;

    /// `None` if the heap is exhausted and others have the spare rooms.
    fn new() -> Option<Room> {
        // SAFETY: a plain allocation.
        let mut block = unsafe { libc::malloc(Room::SIZE) }.cast::<u8>();
        if block.is_null() {
            let mut spare = SPARE_ROOMS
                .iter()
                .map(|spare| spare.swap(ptr::null_mut(), Ordering::AcqRel));
            block = spare.find(|spare| !spare.is_null()).unwrap_or(block);
        }
        (!block.is_null()).then_some(Room(block))
    }

    /// Makes it a spare one, unless there are enough.
    fn spare(&self) -> bool {
        SPARE_ROOMS.iter().any(|spare| {
            let none = ptr::null_mut();
            spare.load(Ordering::Relaxed).is_null()
                && spare
                    .compare_exchange(none, self.0, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
        })
    }

    fn give(self, answer: Answer) -> RawWrapperResult {
        match answer {
            Ok(bytes) if bytes.len() <= 8 => {
                let mut data = [0; 8];
                data[..bytes.len()].copy_from_slice(&bytes);
                RawWrapperResult {
                    data: u64::from_le_bytes(data),
                    size: bytes.len(),
                }
            }
            Ok(bytes) => match self.fill(&bytes) {
                Ok(data) => RawWrapperResult {
                    data,
                    size: bytes.len(),
                },
                Err(_) => no_answer(),
            },
            Err(message) => {
                let mut text = message.replace('\0', "\u{fffd}").into_bytes();
                text.push(0);
                let data = self.fill(&text).or_else(|room| {
                    text.truncate(Room::SIZE - 1);
                    text.push(0);
                    room.fill(&text)
                });
                let data = data.unwrap_or(0);
                RawWrapperResult { data, size: 0 }
            }
        }
    }

    /// A copy of `bytes`, by its address; the room itself if they do not fit and there is no larger one.
    fn fill(self, bytes: &[u8]) -> Result<u64, Room> {
        let mut block = self.0;
        if bytes.len() > Room::SIZE {
            // SAFETY: the block is this one's, and goes on in the new one.
            block = unsafe { libc::realloc(block.cast(), bytes.len()) }.cast();
            if block.is_null() {
                return Err(self);
            }
        }
        std::mem::forget(self);
        // SAFETY: the block has room for as many bytes, and nothing else uses it.
        unsafe { block.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(block.expose_provenance() as u64)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.spare() {
            // SAFETY: a block from malloc, which `fill` has not given away.
            unsafe { libc::free(self.0.cast()) };
        }
    }
}

/// A function or closure that holds nothing, so that it can be had without being stored anywhere.
trait Stateless: Copy {
    const PROOF: () = assert!(
        size_of::<Self>() == 0,
        "the function must not hold anything"
    );

    fn conjure() -> Self {
        let () = Self::PROOF;
        // SAFETY: a value without bytes is read from anywhere; one existed, and it is Copy.
        unsafe { std::ptr::NonNull::<Self>::dangling().read() }
    }
}

impl<F: Copy> Stateless for F {}

/// The address of a wrapper function that answers as `_body` does.
pub(crate) fn wrapper_address<F: Fn(&[u8]) -> Answer + Copy>(_body: F) -> u64 {
    unsafe extern "C" fn wrapper<F: Fn(&[u8]) -> Answer + Copy>(
        args: *const u8,
        size: usize,
    ) -> RawWrapperResult {
        // SAFETY: callers keep to the ABI of wrapper functions.
        unsafe { serve(args, size, F::conjure()) }
    }
    let wrapper: WrapperFunction = wrapper::<F>;
    (wrapper as *const ()).expose_provenance() as u64
}

/// The address of a wrapper function in orc-rt's form that answers as `_body` does: through a function of the
/// session that calls it, before it returns.
pub(crate) fn session_wrapper_address<F: Fn(&[u8]) -> Answer + Copy>(_body: F) -> u64 {
    type Return = unsafe extern "C" fn(*mut c_void, RawWrapperResult, u64);
    type Wrapper = unsafe extern "C" fn(*mut c_void, RawWrapperResult, Return, u64);
    unsafe extern "C" fn wrapper<F: Fn(&[u8]) -> Answer + Copy>(
        session: *mut c_void,
        args: RawWrapperResult,
        reply: Return,
        call: u64,
    ) {
        // SAFETY: sessions keep to the ABI of such functions.
        unsafe { reply(session, serve_buffer(args, F::conjure()), call) }
    }
    let wrapper: Wrapper = wrapper::<F>;
    (wrapper as *const ()).expose_provenance() as u64
}

/// The address of a `__orc_rt_jit_dispatch` function: `_body` is given context, tag and argument
/// bytes.
pub(crate) fn dispatch_address<F: Fn(u64, u64, &[u8]) -> Answer + Copy>(_body: F) -> u64 {
    type Dispatch = unsafe extern "C" fn(usize, usize, *const u8, usize) -> RawWrapperResult;
    unsafe extern "C" fn dispatch<F: Fn(u64, u64, &[u8]) -> Answer + Copy>(
        context: usize,
        tag: usize,
        args: *const u8,
        size: usize,
    ) -> RawWrapperResult {
        let body = |args: &[u8]| F::conjure()(context as u64, tag as u64, args);
        // SAFETY: callers keep to the ABI of the dispatch function.
        unsafe { serve(args, size, body) }
    }
    let dispatch: Dispatch = dispatch::<F>;
    (dispatch as *const ()).expose_provenance() as u64
}

/// What linked code and controllers do, for tests, whose addresses are good.
#[cfg(test)]
pub(crate) mod testing {
    use super::super::Memory;
    use super::*;

    /// [`super::call_wrapper`].
    pub(crate) fn call_wrapper(function: u64, args: &[u8]) -> WrapperResult {
        // SAFETY: the tests pass addresses of wrapper functions.
        unsafe { super::call_wrapper(function, args) }
    }

    /// [`WrapperCall::new`].
    pub(crate) fn wrapper_call(function: u64, args: Vec<u8>) -> WrapperCall {
        // SAFETY: as above, or the call is never made.
        unsafe { WrapperCall::new(function, args) }
    }

    /// Calls `int32_t f(void)`.
    pub(crate) fn call_void(function: u64) -> i32 {
        // SAFETY: the tests pass addresses of such functions.
        unsafe { crate::sys::call_void(function) }
    }

    /// [`Memory::to_read`].
    pub(crate) fn reading() -> Memory {
        // SAFETY: the tests read their own pages, or where nothing is.
        unsafe { Memory::to_read() }
    }

    /// [`Memory::to_write`].
    pub(crate) fn writing() -> Memory {
        // SAFETY: the tests write their own pages, or where nothing is.
        unsafe { Memory::to_write() }
    }

    /// Calls a `__orc_rt_jit_dispatch` function.
    pub(crate) fn call_dispatch(
        function: u64,
        context: u64,
        tag: u64,
        args: &[u8],
    ) -> WrapperResult {
        type Dispatch = unsafe extern "C" fn(usize, usize, *const u8, usize) -> RawWrapperResult;
        let pointer: *const () = std::ptr::with_exposed_provenance(function as usize);
        // SAFETY: the tests pass addresses of such functions, and bytes that live through the call.
        unsafe {
            let dispatch = std::mem::transmute::<*const (), Dispatch>(pointer);
            take(dispatch(
                context as usize,
                tag as usize,
                args.as_ptr(),
                args.len(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::call_wrapper;
    use super::*;

    unsafe extern "C" fn inline_result(args: *const u8, size: usize) -> RawWrapperResult {
        // SAFETY: the test passes at least one byte.
        let first = unsafe { *args };
        RawWrapperResult {
            data: u64::from(first) + 1,
            size,
        }
    }

    unsafe extern "C" fn big_result(_: *const u8, _: usize) -> RawWrapperResult {
        // SAFETY: plain allocation, then a write inside it.
        let block = unsafe { libc::calloc(1, 9) };
        RawWrapperResult {
            data: block.expose_provenance() as u64,
            size: 9,
        }
    }

    unsafe extern "C" fn failing(_: *const u8, _: usize) -> RawWrapperResult {
        // SAFETY: duplicates a literal.
        let message = unsafe { libc::strdup(c"broken".as_ptr()) };
        RawWrapperResult {
            data: message.expose_provenance() as u64,
            size: 0,
        }
    }

    unsafe extern "C" fn empty(_: *const u8, _: usize) -> RawWrapperResult {
        RawWrapperResult { data: 0, size: 0 }
    }

    #[test]
    fn every_form_of_result_is_taken() {
        let call = |function: WrapperFunction, args: &[u8]| {
            call_wrapper(function as *const () as u64, args)
        };
        assert_eq!(call(inline_result, &[6]), WrapperResult::Bytes(vec![7]));
        assert_eq!(
            call(inline_result, &[6, 0]),
            WrapperResult::Bytes(vec![7, 0])
        );
        assert_eq!(call(big_result, &[]), WrapperResult::Bytes(vec![0; 9]));
        assert_eq!(
            call(failing, &[]),
            WrapperResult::OutOfBand("broken".to_owned())
        );
        assert_eq!(call(empty, &[]), WrapperResult::Bytes(vec![]));
    }

    #[test]
    fn what_is_given_is_what_is_taken() {
        let echo = wrapper_address(|args: &[u8]| Ok(args.to_vec()));
        for size in [0, 1, 7, 8, 9, 4096] {
            let bytes: Vec<u8> = (0..size).map(|index| index as u8).collect();
            assert_eq!(call_wrapper(echo, &bytes), WrapperResult::Bytes(bytes));
        }
        let failing = wrapper_address(|_: &[u8]| Err("a\0b".to_owned()));
        let answer = call_wrapper(failing, &[]);
        assert_eq!(answer, WrapperResult::OutOfBand("a\u{fffd}b".to_owned()));
        let silent = wrapper_address(|_: &[u8]| Err(String::new()));
        let answer = call_wrapper(silent, &[]);
        assert_eq!(answer, WrapperResult::OutOfBand(String::new()));
    }

    #[test]
    fn a_session_is_answered_through_its_function() {
        type Answered = Vec<(u64, WrapperResult)>;
        unsafe extern "C" fn reply(session: *mut c_void, answer: RawWrapperResult, call: u64) {
            // SAFETY: the session below, which nothing else refers to meanwhile; and the answer is this
            // function's.
            unsafe { (*session.cast::<Answered>()).push((call, take(answer))) };
        }
        type Return = unsafe extern "C" fn(*mut c_void, RawWrapperResult, u64);
        type Wrapper = unsafe extern "C" fn(*mut c_void, RawWrapperResult, Return, u64);
        let address = session_wrapper_address(|args: &[u8]| Ok(args.to_vec()));
        let echo: *const () = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: that is its type.
        let echo = unsafe { std::mem::transmute::<*const (), Wrapper>(echo) };
        let mut session: Answered = Vec::new();
        let mut call = |args| {
            let session: *mut Answered = &mut session;
            // SAFETY: the session is as `reply` wants it.
            unsafe { echo(session.cast(), args, reply, args.size as u64) };
        };
        let bytes = |size: usize| (0..size).map(|index| index as u8).collect::<Vec<u8>>();
        for size in [0, 8, 9, 4096] {
            call(Room::new().unwrap().give(Ok(bytes(size))));
        }
        call(Room::new().unwrap().give(Err("not sent".to_owned())));
        call(RawWrapperResult { data: 0, size: 9 });
        let out_of_band = |text: &str| WrapperResult::OutOfBand(text.to_owned());
        let expected = [
            (0, WrapperResult::Bytes(bytes(0))),
            (8, WrapperResult::Bytes(bytes(8))),
            (9, WrapperResult::Bytes(bytes(9))),
            (4096, WrapperResult::Bytes(bytes(4096))),
            (0, out_of_band("not sent")),
            (9, out_of_band("arguments of 9 bytes at address 0")),
        ];
        assert_eq!(session, expected);
    }

    #[test]
    fn a_panic_is_an_out_of_band_error() {
        let panicking = wrapper_address(|_: &[u8]| panic!("on purpose"));
        let WrapperResult::OutOfBand(message) = call_wrapper(panicking, &[]) else {
            panic!("it answered");
        };
        assert!(message.contains("defect"), "{message}");
    }

    #[test]
    fn dispatch_passes_context_and_tag() {
        let address = dispatch_address(|context, tag, args: &[u8]| {
            Ok([&context.to_le_bytes()[..], &tag.to_le_bytes(), args].concat())
        });
        let expected = [&1u64.to_le_bytes()[..], &2u64.to_le_bytes(), b"abc"].concat();
        let answer = testing::call_dispatch(address, 1, 2, b"abc");
        assert_eq!(answer, WrapperResult::Bytes(expected));
    }
}
