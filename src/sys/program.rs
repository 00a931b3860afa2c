// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running a program that was linked into this process.
//!
//! Linked code can do anything at all, so each call is `unsafe`: what the code does is for the one
//! who linked it to know. No lock of ours may be held.

use super::gate;
use crate::lock::{Condvar, Mutex};
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

// Calls the function in its third argument with the first two. Nothing says how to unwind it, so an
// exception that linked code does not catch finds the end of the stack here, as it would in a
// program of its own: the C++ runtime says what was thrown and ends the process, and pthread_exit
// ends the thread. Rust's own frames would take hold of either.
macro_rules! call_linked_code {
    ($($instruction:literal)*) => {
        std::arch::global_asm!(
            r#".pushsection .text.jitmem_call_linked_code, "ax", %progbits"#,
            ".globl jitmem_call_linked_code",
            ".hidden jitmem_call_linked_code",
            ".type jitmem_call_linked_code, %function",
            "jitmem_call_linked_code:",
            $($instruction,)*
            ".size jitmem_call_linked_code, . - jitmem_call_linked_code",
            ".popsection",
        );
    };
}

#[cfg(target_arch = "x86_64")]
call_linked_code!("push rbp" "mov rbp, rsp" "call rdx" "pop rbp" "ret");
#[cfg(target_arch = "aarch64")]
call_linked_code!("stp x29, x30, [sp, #-16]!" "mov x29, sp" "blr x2" "ldp x29, x30, [sp], #16" "ret");
#[cfg(target_arch = "riscv64")]
call_linked_code!("addi sp, sp, -16" "sd ra, 8(sp)" "jalr a2" "ld ra, 8(sp)" "addi sp, sp, 16" "ret");

unsafe extern "C" {
    fn jitmem_call_linked_code();
}

/// The function through which linked code is called: with two arguments, and its address as the
/// third.
pub(super) fn caller() -> *const () {
    jitmem_call_linked_code as *const ()
}

/// Least bytes of stack for threads that run programs: what a main thread has by default.
const STACK: u64 = 8 << 20;

fn code(address: u64) -> *const () {
    std::ptr::with_exposed_provenance(address as usize)
}

/// Calls `int main(int, char **)` with exactly these arguments.
///
/// # Safety
/// Such a function is at this address, and may be called now.
pub(crate) unsafe fn call_main(function: u64, args: &[&[u8]]) -> i32 {
    let mut strings: Vec<Vec<u8>> = args.iter().map(|arg| [*arg, b"\0"].concat()).collect();
    let mut argv: Vec<*mut c_char> = strings
        .iter_mut()
        .map(|string| string.as_mut_ptr().cast())
        .collect();
    argv.push(std::ptr::null_mut());
    let count = c_int::try_from(args.len()).unwrap_or(c_int::MAX);
    type Call = unsafe extern "C" fn(c_int, *mut *mut c_char, *const ()) -> c_int;
    // SAFETY: the caller vouches for the function; strings and array are writable and live through
    // the call.
    unsafe {
        let call = std::mem::transmute::<*const (), Call>(caller());
        call(count, argv.as_mut_ptr(), code(function))
    }
}

/// Calls `int32_t f(void)`.
///
/// # Safety
/// Such a function is at this address, and may be called now.
pub(crate) unsafe fn call_void(function: u64) -> i32 {
    // SAFETY: as the caller says; what the function does not ask for it does not see.
    unsafe { call_int(function, 0) }
}

/// Calls `int32_t f(int32_t)`.
///
/// # Safety
/// Such a function is at this address, and may be called now.
pub(crate) unsafe fn call_int(function: u64, argument: i32) -> i32 {
    type Call = unsafe extern "C" fn(i32, usize, *const ()) -> i32;
    // SAFETY: the caller vouches for the function.
    unsafe {
        let call = std::mem::transmute::<*const (), Call>(caller());
        call(argument, 0, code(function))
    }
}

/// Calls `void f(const void *)`: what registers an `.eh_frame` section, and its reverse.
///
/// # Safety
/// `function` is the unwinder's, and takes what is at `frames`.
pub(crate) unsafe fn call_on_frames(function: u64, frames: u64) {
    let frames: *const c_void = std::ptr::with_exposed_provenance(frames as usize);
    // SAFETY: as the caller says.
    unsafe {
        let function: unsafe extern "C" fn(*const c_void) = std::mem::transmute(code(function));
        function(frames)
    }
}

fn stack_size() -> usize {
    let stack = super::limit(libc::RLIMIT_STACK).unwrap_or(STACK).max(STACK);
    // Up to a multiple of any page size.
    usize::try_from(stack.next_multiple_of(1 << 16)).unwrap_or(STACK as usize)
}

/// Starts a thread that may run linked code: with the name and the signals of the thread that starts
/// it, and as much stack as a main thread.
pub(crate) fn spawn_for_programs(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    gate("clone")?;
    super::thread::start(stack_size(), body)
}

/// Bytes for signal handlers where a program has used up the rest of its stack: much more than any
/// processor's registers take.
const HANDLERS_STACK: usize = 64 << 10;

/// What a thread has that runs a program, until nothing of the program is left in it.
struct Belongings {
    /// How often destructors of thread-specific data will be called yet; the last call is the end.
    rounds: u32,
    /// For signal handlers that ask for it: a stack overflow could not be reported otherwise.
    handlers_stack: Box<[MaybeUninit<u8>]>,
    /// Whether the thread uses it. A sanitizer gives each thread such a stack and takes away what it
    /// finds at the end; that one stays.
    uses_stack: bool,
    /// Dropped last: the thread that waits sees that.
    _gone: Gone,
}

/// Tells a thread that waits that this was dropped.
struct Gone(Arc<(Mutex<bool>, Condvar)>);

impl Drop for Gone {
    fn drop(&mut self) {
        *self.0.0.lock() = true;
        self.0.1.notify_one();
    }
}

impl Belongings {
    fn new(gone: Gone) -> Box<Belongings> {
        Box::new(Belongings {
            rounds: ROUNDS,
            handlers_stack: Box::new_uninit_slice(HANDLERS_STACK),
            uses_stack: false,
            _gone: gone,
        })
    }

    /// Leaves them to this thread, which lets go of them at its very end, however it ends.
    fn settle(mut self: Box<Self>, key: libc::pthread_key_t) {
        let stack = libc::stack_t {
            ss_sp: self.handlers_stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: self.handlers_stack.len(),
        };
        let mut before = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: asks into a place for the answer, which is valid when it is all zero. No other code
        // uses the memory while the thread is there; where the kernel wants more of it, there is no
        // such stack. `let_go` takes the box back.
        unsafe {
            libc::sigaltstack(std::ptr::null(), before.as_mut_ptr());
            if before.assume_init().ss_flags & libc::SS_DISABLE != 0 {
                let set = libc::sigaltstack(&raw const stack, std::ptr::null_mut());
                self.uses_stack = set == 0;
            }
            libc::pthread_setspecific(key, Box::into_raw(self).cast());
        }
    }
}

/// PTHREAD_DESTRUCTOR_ITERATIONS of the C library: so often destructors of thread-specific data run
/// where they leave new data behind.
const ROUNDS: u32 = 4;

/// The key of [`Belongings`]; `None` if the process has no more keys.
fn belongings_key() -> Option<libc::pthread_key_t> {
    static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: a place for a key, and a destructor for what is stored under it.
        let code = unsafe { libc::pthread_key_create(&mut key, Some(let_go)) };
        (code == 0).then_some(key)
    })
}

unsafe extern "C" fn let_go(belongings: *mut c_void) {
    // SAFETY: `settle` has stored a box, and each round has stored it again.
    let mut belongings = unsafe { Box::from_raw(belongings.cast::<Belongings>()) };
    belongings.rounds -= 1;
    if let (1.., Some(key)) = (belongings.rounds, belongings_key()) {
        // A program's own thread-specific data goes first, in every round.
        // SAFETY: as in `settle`.
        unsafe { libc::pthread_setspecific(key, Box::into_raw(belongings).cast()) };
        return;
    }
    if belongings.uses_stack {
        let none = libc::stack_t {
            ss_sp: std::ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: handlers run on the thread's own stack again.
        unsafe { libc::sigaltstack(&raw const none, std::ptr::null_mut()) };
    }
}

/// Does something in a thread like that, and waits until nothing of it is left: the destructors of
/// thread-locals and thread-specific data have run as well. `None` if linked code has ended the
/// thread, or it has panicked. A thread of Rust's own would expect neither. As under LLVM's executor it
/// is detached: linked code can't join it, and finds it so already.
pub(crate) fn run_in_own_thread<R: Send, F: FnOnce() -> R + Send>(
    body: F,
) -> io::Result<Option<R>> {
    struct Task<F, R> {
        body: Option<F>,
        result: Option<R>,
        belongings: Option<(Box<Belongings>, libc::pthread_key_t)>,
    }

    extern "C" fn start<F: FnOnce() -> R, R>(task: *mut c_void) -> *mut c_void {
        // SAFETY: the thread that started this one keeps the task until the belongings are gone, and does
        // not look at it meanwhile.
        let task = unsafe { &mut *task.cast::<Task<F, R>>() };
        if let Some((belongings, key)) = task.belongings.take() {
            belongings.settle(key);
        }
        if let Some(body) = task.body.take() {
            task.result = catch_unwind(AssertUnwindSafe(body)).ok();
        }
        std::ptr::null_mut()
    }

    gate("clone")?;
    let key = belongings_key().ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?;
    let told = Arc::new((Mutex::new(false), Condvar::new()));
    let gone = Gone(Arc::clone(&told));
    let mut task = Task {
        body: Some(body),
        result: None,
        belongings: Some((Belongings::new(gone), key)),
    };
    let mut attributes = MaybeUninit::uninit();
    let mut thread = MaybeUninit::uninit();
    // SAFETY: attributes are initialized, used and destroyed; the task outlives the thread's use of it,
    // whose end is waited for below.
    let code = unsafe {
        libc::pthread_attr_init(attributes.as_mut_ptr());
        libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), stack_size());
        libc::pthread_attr_setdetachstate(attributes.as_mut_ptr(), libc::PTHREAD_CREATE_DETACHED);
        let code = libc::pthread_create(
            thread.as_mut_ptr(),
            attributes.as_ptr(),
            start::<F, R>,
            (&raw mut task).cast(),
        );
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        code
    };
    if code != 0 {
        return Err(io::Error::from_raw_os_error(code));
    }
    let mut is_gone = told.0.lock();
    while !*is_gone {
        is_gone = told.1.wait(is_gone);
    }
    drop(is_gone);
    Ok(task.result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    unsafe extern "C" fn main(argc: c_int, argv: *mut *mut c_char) -> c_int {
        // SAFETY: as `call_main` promises.
        let args = unsafe { std::slice::from_raw_parts(argv, argc as usize + 1) };
        assert!(args[argc as usize].is_null());
        let mut sum = 0;
        for arg in &args[..argc as usize] {
            // SAFETY: a writable string.
            unsafe {
                sum = sum * 10 + CStr::from_ptr(*arg).to_bytes().len() as c_int;
                **arg = b'x' as c_char;
            }
        }
        -sum
    }

    /// Calls a function of the tests, or of the C library.
    fn call(function: u64, argument: i32) -> i32 {
        // SAFETY: all of them take an integer, or nothing.
        unsafe { call_int(function, argument) }
    }

    unsafe extern "C" fn seven() -> i32 {
        7
    }

    unsafe extern "C" fn negate(value: i32) -> i32 {
        -value
    }

    #[test]
    fn programs_get_exactly_what_is_passed() {
        let main: unsafe extern "C" fn(c_int, *mut *mut c_char) -> c_int = main;
        let main = (main as *const ()).expose_provenance() as u64;
        // SAFETY: it is one.
        let call_main = |args: &[&[u8]]| unsafe { call_main(main, args) };
        assert_eq!(call_main(&[b"abc", b"", b"x"]), -301);
        assert_eq!(call_main(&[]), 0);
        let seven: unsafe extern "C" fn() -> i32 = seven;
        let seven = (seven as *const ()).expose_provenance() as u64;
        // SAFETY: it is one.
        assert_eq!(unsafe { call_void(seven) }, 7);
        let negate: unsafe extern "C" fn(i32) -> i32 = negate;
        let negate = (negate as *const ()).expose_provenance() as u64;
        assert_eq!(call(negate, i32::MAX), -i32::MAX);
    }

    #[test]
    fn a_thread_of_its_own_answers_unless_linked_code_has_ended_it() {
        let word = "word".to_owned();
        let answer = run_in_own_thread(|| word.len()).unwrap();
        assert_eq!(answer, Some(4));
        let end = super::super::symbol(c"pthread_exit").unwrap();
        assert_eq!(run_in_own_thread(|| call(end, 0)).unwrap(), None);
    }

    #[test]
    fn what_a_program_leaves_in_its_thread_goes_first() {
        use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
        static KEY: AtomicU32 = AtomicU32::new(0);
        static CALLS: AtomicU32 = AtomicU32::new(0);
        unsafe extern "C" fn again(value: *mut c_void) {
            static VALUE: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
            std::thread::sleep(std::time::Duration::from_millis(5));
            CALLS.fetch_add(1, Ordering::SeqCst);
            VALUE.store(value, Ordering::SeqCst);
            // SAFETY: a key that is there.
            unsafe { libc::pthread_setspecific(KEY.load(Ordering::SeqCst), value) };
        }
        run_in_own_thread(|| ()).unwrap(); // its key is the older one
        let mut key = 0;
        // SAFETY: a place for a key; it is stored before any thread has data under it.
        unsafe { assert_eq!(libc::pthread_key_create(&mut key, Some(again)), 0) };
        KEY.store(key, Ordering::SeqCst);
        let end = super::super::symbol(c"pthread_exit").unwrap();
        let leave = move || {
            // SAFETY: a key that is there.
            unsafe { libc::pthread_setspecific(key, std::ptr::dangling_mut::<c_void>()) };
            call(end, 0)
        };
        assert_eq!(run_in_own_thread(leave).unwrap(), None);
        // In the last round ours may go before.
        assert!(CALLS.load(Ordering::SeqCst) >= ROUNDS - 1);
        // SAFETY: no thread has data under it any more.
        unsafe { libc::pthread_key_delete(key) };
    }

    #[test]
    fn signal_handlers_have_a_stack_beside_the_programs() {
        let known = run_in_own_thread(|| {
            let mut stack = MaybeUninit::<libc::stack_t>::uninit();
            // SAFETY: asks only, and the answer is complete where there is no error.
            unsafe {
                assert_eq!(libc::sigaltstack(std::ptr::null(), stack.as_mut_ptr()), 0);
                let stack = stack.assume_init();
                (stack.ss_flags, stack.ss_size)
            }
        });
        assert_eq!(known.unwrap(), Some((0, HANDLERS_STACK)));
    }

    #[test]
    fn thread_locals_are_gone_when_a_thread_of_its_own_is() {
        use std::sync::atomic::{AtomicBool, Ordering};
        static GONE: AtomicBool = AtomicBool::new(false);
        struct Local;
        impl Drop for Local {
            fn drop(&mut self) {
                GONE.store(true, Ordering::Relaxed);
            }
        }
        thread_local!(static LOCAL: Local = const { Local });
        run_in_own_thread(|| LOCAL.with(|_| ())).unwrap();
        assert!(GONE.load(Ordering::Relaxed));
    }
}
