// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Running a program that was linked into this process.
//!
//! Linked code can do anything at all, so each call is `unsafe`: what the code does is for the one
//! who linked it to know. No lock of ours may be held.

use super::gate;
use rustix::process::Resource;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

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

/// Calls `void *f(void *pc)` of the unwinder's, or `f(void *pc, void *more)`. Async-signal-safe if that is.
///
/// # Safety
/// `function` is such a function, and what is at `more` is what it takes.
pub(crate) unsafe fn call_unwinder(
    function: u64,
    pc: *const c_void,
    more: *mut c_void,
) -> *const c_void {
    type Find = unsafe extern "C" fn(*const c_void, *mut c_void) -> *const c_void;
    // SAFETY: as the caller says; in the C ABI a function leaves an argument alone that it does not know.
    unsafe {
        let function: Find = std::mem::transmute(code(function));
        function(pc, more)
    }
}

/// The least that a limit of address space brings that down to.
const STACK_UNDER_LIMIT: u64 = 256 << 10;

/// Each stack takes no more of a limit of address space than one part in so many, divided by the programs in
/// flight. So a lone program has all it may need, and a thousand under 4 GiB take half of that.
const PART_OF_LIMIT: u64 = 8;

/// Bytes that the program's user has asked for; 0 for what fits the process's limits.
static CHOSEN_STACK: AtomicUsize = AtomicUsize::new(0);

/// Programs that have threads of their own.
static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);

/// Sets the stack of threads that are started from here on to run linked code.
pub(crate) fn set_stack_size(bytes: usize) {
    CHOSEN_STACK.store(bytes, Ordering::Relaxed);
}

pub(super) fn stack_size() -> usize {
    let chosen = CHOSEN_STACK.load(Ordering::Relaxed);
    if chosen != 0 {
        return chosen;
    }
    let main = super::limit(Resource::Stack).unwrap_or(STACK).max(STACK);
    let programs = IN_FLIGHT.load(Ordering::Relaxed) as u64 + 1;
    let stack = fitting_stack(main, super::limit(Resource::As), programs);
    // Up to a multiple of any page size.
    usize::try_from(stack.next_multiple_of(1 << 16)).unwrap_or(STACK as usize)
}

/// What of a stack's size fits a limit of address space, for the last of so many programs.
fn fitting_stack(stack: u64, limit: Option<u64>, programs: u64) -> u64 {
    limit.map_or(stack, |limit| {
        stack.min((limit / PART_OF_LIMIT / programs).max(STACK_UNDER_LIMIT))
    })
}

/// Address space that glibc reserves for each arena of malloc's.
#[cfg(target_env = "gnu")]
const ARENA: u64 = 64 << 20;

/// Has malloc make no more arenas than take a sixteenth of the limit of address space, if there is one: it
/// makes up to eight for each processor as threads come. Those who have set MALLOC_ARENA_MAX know better.
pub(crate) fn fit_heap_to_limit() {
    #[cfg(target_env = "gnu")]
    if let (Some(limit), None) = (
        super::limit(Resource::As),
        std::env::var_os("MALLOC_ARENA_MAX"),
    ) {
        let most = c_int::try_from(limit / 16 / ARENA).unwrap_or(c_int::MAX);
        // SAFETY: sets a number.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most.max(1)) };
    }
}

/// Starts a thread that may run linked code: with the name and the signals of the thread that starts
/// it, and as much stack as a main thread where that fits the process's limits.
pub(crate) fn spawn_for_programs(body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    gate("clone")?;
    super::thread::start(stack_size(), body)
}

/// Bytes for signal handlers where a program has used up the rest of its stack: much more than any
/// processor's registers take.
const HANDLERS_STACK: usize = 64 << 10;

/// What a thread of its own is for.
pub(crate) trait OwnThread: Send + 'static {
    /// Runs linked code, which may end the thread and so never come back.
    fn run(&mut self);

    /// Nothing of the program is left in the thread: the destructors of thread-locals and thread-specific
    /// data have run as well. This is the last that the thread does.
    fn ended(&mut self);
}

/// What a thread has that runs a program, until nothing of the program is left in it.
struct Belongings {
    /// How often destructors of thread-specific data will be called yet; the last call is the end.
    rounds: u32,
    /// For signal handlers that ask for it: a stack overflow could not be reported otherwise.
    handlers_stack: Box<[MaybeUninit<u8>]>,
    /// Whether the thread uses it. A sanitizer gives each thread such a stack and takes away what it
    /// finds at the end; that one stays.
    uses_stack: bool,
    key: libc::pthread_key_t,
    /// Here and not on the thread's stack, which linked code may leave without unwinding.
    program: Box<dyn OwnThread>,
}

impl Belongings {
    /// Leaves them to this thread, which lets go of them at its very end, however it ends.
    ///
    /// # Safety
    /// They are a box's, for this thread alone.
    unsafe fn settle(belongings: *mut Belongings) {
        let mut before = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: asks into a place for the answer, which is valid when it is all zero. No other code
        // uses the memory while the thread is there; where the kernel wants more of it, there is no
        // such stack. `let_go` takes the box back.
        unsafe {
            let stack = libc::stack_t {
                ss_sp: (*belongings).handlers_stack.as_mut_ptr().cast(),
                ss_flags: 0,
                ss_size: HANDLERS_STACK,
            };
            libc::sigaltstack(std::ptr::null(), before.as_mut_ptr());
            if before.assume_init().ss_flags & libc::SS_DISABLE != 0 {
                let set = libc::sigaltstack(&raw const stack, std::ptr::null_mut());
                (*belongings).uses_stack = set == 0;
            }
            libc::pthread_setspecific((*belongings).key, belongings.cast());
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
    if belongings.rounds > 0 {
        // A program's own thread-specific data goes first, in every round.
        let key = belongings.key;
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
    IN_FLIGHT.fetch_sub(1, Ordering::Relaxed);
    // What a panic says is on stderr.
    let _ = catch_unwind(AssertUnwindSafe(|| belongings.program.ended()));
}

/// Runs a program in a thread of its own. As under LLVM's executor it is detached: linked code can't join
/// it, and finds it so already.
pub(crate) fn start_own_thread(program: Box<dyn OwnThread>) -> io::Result<()> {
    extern "C" fn start(belongings: *mut c_void) -> *mut c_void {
        let belongings = belongings.cast::<Belongings>();
        // SAFETY: this thread's alone, until `let_go` takes them back at the end of the thread.
        let program = unsafe {
            Belongings::settle(belongings);
            &mut *(*belongings).program
        };
        // What a panic says is on stderr.
        let _ = catch_unwind(AssertUnwindSafe(|| program.run()));
        std::ptr::null_mut()
    }

    gate("clone")?;
    let key = belongings_key().ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))?;
    let belongings = Box::into_raw(Box::new(Belongings {
        rounds: ROUNDS,
        handlers_stack: Box::new_uninit_slice(HANDLERS_STACK),
        uses_stack: false,
        key,
        program,
    }));
    let stack = stack_size();
    IN_FLIGHT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the thread takes the box.
    let created = unsafe { super::thread::create(stack, start, belongings.cast()) };
    created.inspect_err(|_| {
        IN_FLIGHT.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: no thread has taken it.
        drop(unsafe { Box::from_raw(belongings) });
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::sync::mpsc::{Sender, channel};

    /// Runs something in a thread of its own; `None` if the thread was ended by linked code.
    fn run_in_own_thread<R: Send + 'static>(
        body: impl FnOnce() -> R + Send + 'static,
    ) -> io::Result<Option<R>> {
        struct Task<F, R> {
            body: Option<F>,
            result: Option<R>,
            ended: Sender<Option<R>>,
        }
        impl<R: Send + 'static, F: FnOnce() -> R + Send + 'static> OwnThread for Task<F, R> {
            fn run(&mut self) {
                self.result = self.body.take().map(|body| body());
            }

            fn ended(&mut self) {
                self.ended.send(self.result.take()).unwrap();
            }
        }
        let (ended, result) = channel();
        let (body, none) = (Some(body), None);
        start_own_thread(Box::new(Task {
            body,
            result: none,
            ended,
        }))?;
        Ok(result.recv().unwrap())
    }

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
        let answer = run_in_own_thread(move || word.len()).unwrap();
        assert_eq!(answer, Some(4));
        let end = super::super::symbol(c"pthread_exit").unwrap();
        assert_eq!(run_in_own_thread(move || call(end, 0)).unwrap(), None);
    }

    #[test]
    fn stacks_fit_the_limit_of_address_space() {
        const LIMIT: u64 = 4 << 30;
        assert_eq!(fitting_stack(STACK, None, 1000), STACK);
        assert_eq!(fitting_stack(STACK, Some(LIMIT), 1), STACK);
        assert_eq!(fitting_stack(STACK, Some(LIMIT), 128), STACK / 2);
        assert_eq!(
            fitting_stack(STACK, Some(LIMIT), 100_000),
            STACK_UNDER_LIMIT
        );
        let all: u64 = (1..=1000)
            .map(|programs| fitting_stack(STACK, Some(LIMIT), programs))
            .sum();
        assert!(all <= LIMIT / 2, "{all}");
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
