// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Sessions with a controller in this process, over pipes and sockets.

use super::*;
use crate::completion::wait;
use crate::error::{Error, Status};
use crate::lock::{Condvar, Mutex};
use crate::sys::testing::call_wrapper;
use crate::sys::{Answer, WrapperResult, page_size, wrapper_address};
use crate::transport::{Stream, Transport};
use crate::wire::frame::{HEADER_SIZE, Header, Opcode, message};
use crate::wire::sps::{Bytes, Encode, Expected, Outcome, from_bytes, to_bytes};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// A controller's end of a session.
struct Controller<R, W> {
    input: R,
    output: Option<W>,
    setup: Setup,
    executor: JoinHandle<Result<()>>,
    next: u64,
}

type OverPipes = Controller<PipeReader, PipeWriter>;

fn over_pipes() -> OverPipes {
    let (their_input, output) = std::io::pipe().unwrap();
    let (input, their_output) = std::io::pipe().unwrap();
    let executor = std::thread::spawn(move || {
        serve(their_input.into(), their_output.into(), &Options::default())
    });
    Controller::new(input, output, executor, SetupLayout::MapAndSymbols)
}

fn serve(input: OwnedFd, output: OwnedFd, options: &Options<'_>) -> Result<()> {
    // SAFETY: the tests have it do nothing bad.
    unsafe { super::serve(input, output, options) }
}

fn serve_socket(socket: UnixStream, options: &Options<'_>) -> Result<()> {
    let again = socket.try_clone().unwrap();
    serve(socket.into(), again.into(), options)
}

fn over_socket(options: Options<'static>) -> Controller<UnixStream, UnixStream> {
    let (here, there) = UnixStream::pair().unwrap();
    let layout = options.layout;
    let executor = std::thread::spawn(move || serve_socket(there, &options));
    Controller::new(here.try_clone().unwrap(), here, executor, layout)
}

impl<R: Read, W: Write> Controller<R, W> {
    fn new(
        mut input: R,
        output: W,
        executor: JoinHandle<Result<()>>,
        layout: SetupLayout,
    ) -> Controller<R, W> {
        let (header, body) = receive(&mut input).unwrap();
        assert_eq!(header, Header::new(Opcode::Setup, 0, 0, body.len()));
        Controller {
            input,
            output: Some(output),
            setup: Setup::decode(&body, layout).unwrap(),
            executor,
            next: 0,
        }
    }

    fn symbol(&self, name: &str) -> u64 {
        self.setup.bootstrap_symbols[name].0
    }

    fn send(&mut self, bytes: &[u8]) {
        self.output.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn start(&mut self, function: u64, args: &[u8]) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.send(&message(Opcode::CallWrapper, sequence, function, args));
        sequence
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        receive(&mut self.input).unwrap()
    }

    fn result(&mut self, sequence: u64) -> Vec<u8> {
        let (header, body) = self.receive();
        assert_eq!(header, Header::new(Opcode::Result, sequence, 0, body.len()));
        body
    }

    fn call(&mut self, function: u64, args: &[u8]) -> Vec<u8> {
        let sequence = self.start(function, args);
        self.result(sequence)
    }

    /// Hangs up as `llvm-jitlink` does, and waits for the executor.
    fn finish(self) -> Result<()> {
        drop((self.input, self.output));
        self.executor.join().unwrap()
    }
}

fn receive(input: &mut impl Read) -> std::io::Result<(Header, Vec<u8>)> {
    let mut header = [0; HEADER_SIZE];
    input.read_exact(&mut header)?;
    let header = Header::decode(&header).unwrap();
    let mut body = vec![0; header.body_size() as usize];
    input.read_exact(&mut body)?;
    Ok((header, body))
}

const READ: &str = "__llvm_orc_bootstrap_mem_read_uint8s_wrapper";
const RESERVE: &str = "__llvm_orc_SimpleExecutorMemoryManager_reserve_wrapper";
const INITIALIZE: &str = "__llvm_orc_SimpleExecutorMemoryManager_initialize_wrapper";
const MANAGER: &str = "__llvm_orc_SimpleExecutorMemoryManager_Instance";
const DISPATCH: &str = "__llvm_orc_SimpleRemoteEPC_dispatch_fn";
const CONTEXT: &str = "__llvm_orc_SimpleRemoteEPC_dispatch_ctx";

fn nothing() -> Vec<u8> {
    to_bytes(&0u64)
}

#[test]
fn a_session_over_pipes_answers_and_ends() {
    let mut controller = over_pipes();
    assert!(controller.setup.triple.ends_with("-linux-gnu"));
    let read = controller.symbol(READ);
    assert_eq!(controller.call(read, &nothing()), nothing());
    let byte = 7u8;
    let here = std::ptr::from_ref(&byte).expose_provenance() as u64;
    let answer = controller.call(read, &to_bytes(&vec![here]));
    assert_eq!(answer, to_bytes(&vec![7u8]));
    assert_eq!(controller.call(read, &[1]), []); // malformed
    assert_eq!(controller.call(0, &[]), []);
    let page = (ExecutorAddr(controller.symbol(MANAGER)), 1u64);
    let reserve = controller.symbol(RESERVE);
    let base = controller.call(reserve, &to_bytes(&page));
    assert!(
        from_bytes::<Expected<ExecutorAddr>>(&base)
            .unwrap()
            .0
            .is_ok()
    );
    controller.finish().unwrap();
}

#[test]
fn one_socket_serves_both_directions_and_hangup_ends() {
    let options = Options {
        layout: SetupLayout::Symbols,
        symbols: vec![("mine".to_owned(), 77), (READ.to_owned(), 78)],
        ..Options::default()
    };
    let mut controller = over_socket(options);
    assert_eq!(controller.symbol("mine"), 77);
    assert_eq!(controller.symbol(READ), 78);
    let lookup = "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper";
    assert_eq!(controller.call(controller.symbol(lookup), &[]), []);
    controller.send(&message(Opcode::Hangup, 0, 0, &[0]));
    assert_eq!(controller.executor.join().unwrap(), Ok(()));
    // The stream has ended for the controller as well.
    assert_eq!(controller.input.read(&mut [0]).unwrap(), 0);
}

#[test]
fn calls_that_block_hinder_nobody() {
    static OPEN: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());
    const COUNT: usize = 33;
    fn wait_for_all(args: &[u8]) -> Answer {
        let mut count = OPEN.0.lock();
        *count += 1;
        OPEN.1.notify_all();
        while *count < COUNT as u32 {
            count = OPEN.1.wait(count);
        }
        Ok(args.to_vec())
    }
    let function = wrapper_address(wait_for_all);
    for functions in [vec![], vec![function]] {
        *OPEN.0.lock() = 0;
        let mut controller = over_socket(Options {
            functions,
            ..Options::default()
        });
        let mut left: Vec<u64> = (0..COUNT - 1)
            .map(|number| controller.start(function, &[number as u8]))
            .collect();
        // Others are answered while all those wait.
        let read = controller.symbol(READ);
        assert_eq!(controller.call(read, &nothing()), nothing());
        left.push(controller.start(function, &[COUNT as u8]));
        while !left.is_empty() {
            let (header, body) = controller.receive();
            assert_eq!(body.len(), 1);
            let place = left.iter().position(|number| *number == header.sequence);
            left.remove(place.expect("each call is answered once"));
        }
        controller.finish().unwrap();
    }
}

/// A wrapper function that dispatches: arguments are function, context, tag; what the controller
/// answers comes back, an out-of-band error as text behind an exclamation mark.
fn dispatching(args: &[u8]) -> Answer {
    let (dispatch, context, tag): (u64, u64, u64) = from_bytes(args).unwrap();
    let answer = crate::sys::testing::call_dispatch(dispatch, context, tag, b"question");
    Ok(match answer {
        WrapperResult::Bytes(bytes) => bytes,
        WrapperResult::OutOfBand(message) => format!("!{message}").into_bytes(),
    })
}

fn dispatch_args(controller: &OverPipes, tag: u64) -> Vec<u8> {
    to_bytes(&(controller.symbol(DISPATCH), controller.symbol(CONTEXT), tag))
}

#[test]
fn linked_code_calls_the_controller_and_calls_nest() {
    let mut controller = over_pipes();
    let function = wrapper_address(dispatching);
    let outer = controller.start(function, &dispatch_args(&controller, 0xabc));
    let (question, body) = controller.receive();
    assert_eq!(question, Header::new(Opcode::CallWrapper, 0, 0xabc, 8));
    assert_eq!(body, b"question");
    // The controller calls back before it answers, and that dispatches as well.
    let inner = controller.start(function, &dispatch_args(&controller, 0xdef));
    let (nested, _) = controller.receive();
    assert_eq!((nested.sequence, nested.tag), (1, 0xdef));
    let large = vec![9; 100_000];
    controller.send(&message(Opcode::Result, 1, 0, &large));
    assert!(controller.result(inner) == large);
    controller.send(&message(Opcode::Result, 0, 0, b""));
    assert_eq!(controller.result(outer), b"");
    controller.finish().unwrap();
}

#[test]
fn the_end_fails_what_is_outstanding_and_waits_for_what_runs() {
    let mut controller = over_pipes();
    let function = wrapper_address(dispatching);
    let args = dispatch_args(&controller, 1);
    let call = controller.start(function, &args);
    let _question = controller.receive();
    controller.output = None;
    assert_eq!(controller.result(call), b"!disconnecting");
    assert_eq!(controller.executor.join().unwrap(), Ok(()));
    let late = call_wrapper(function, &args);
    let expected = b"!jit_dispatch not available (EPC server shut down)".to_vec();
    assert_eq!(late, WrapperResult::Bytes(expected));
}

#[test]
fn a_dispatch_that_does_not_reach_the_controller_is_told_so() {
    let mut controller = over_pipes();
    let (closed, _) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut controller.input, closed));
    // The session goes on: nothing has been read since.
    let args = dispatch_args(&controller, 1);
    let (told, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(call_wrapper(wrapper_address(dispatching), &args)));
    let answer = answer.recv_timeout(std::time::Duration::from_secs(60));
    let WrapperResult::Bytes(answer) = answer.unwrap() else {
        panic!("it answers bytes");
    };
    assert!(answer.starts_with(b"!write to the controller: "));
    drop(controller.output);
    let _ = controller.executor.join().unwrap();
}

#[test]
fn actions_that_are_left_run_at_the_end() {
    static RAN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    fn note(args: &[u8]) -> Answer {
        RAN.lock().extend(args);
        let failed = format!("no {}", args[0]);
        Ok(to_bytes(&Outcome(if args == [3] {
            Err(failed)
        } else {
            Ok(())
        })))
    }
    let mut controller = over_pipes();
    let manager = ExecutorAddr(controller.symbol(MANAGER));
    let reserve = controller.symbol(RESERVE);
    let base = controller.call(reserve, &to_bytes(&(manager, 1u64)));
    let base = from_bytes::<Expected<ExecutorAddr>>(&base)
        .unwrap()
        .0
        .unwrap();
    let mut request = Vec::new();
    (manager, 1u64).encode(&mut request);
    (1u8, base, 1u64, "x").encode(&mut request);
    3u64.encode(&mut request);
    for number in [1u8, 2, 3] {
        let note = ExecutorAddr(wrapper_address(note));
        let call = (note, vec![number]);
        (ExecutorAddr(0), 0u64, call).encode(&mut request);
    }
    let initialize = controller.symbol(INITIALIZE);
    let key = controller.call(initialize, &request);
    assert_eq!(
        from_bytes::<Expected<ExecutorAddr>>(&key).unwrap().0,
        Ok(base)
    );
    assert_eq!(*RAN.lock(), []);
    let error = controller.finish().unwrap_err();
    assert_eq!(error.status(), Status::ActionFailed);
    assert!(error.message().contains("no 3"), "{error}");
    assert_eq!(*RAN.lock(), [3, 2, 1]);
}

#[test]
fn controllers_after_llvm_22_find_their_names() {
    static RAN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    fn note(args: &[u8]) -> Answer {
        RAN.lock().extend(args);
        Ok(to_bytes(&Outcome(Ok(()))))
    }
    extern "C" fn main(count: i32, _: *const *const i8) -> i32 {
        40 + count
    }
    let ci = |name: &str| format!("orc_rt_ci_sps_{name}");
    let map = |name: &str| ci(&format!("SimpleNativeMemoryMap_{name}"));
    let mut controller = over_pipes();
    let instance = ExecutorAddr(controller.symbol("orc_rt_ci_SimpleNativeMemoryMap_Instance"));
    let reserve = controller.symbol(&map("reserve"));
    let page = page_size().bytes();
    let base = controller.call(reserve, &to_bytes(&(instance, page)));
    let base = from_bytes::<Expected<ExecutorAddr>>(&base)
        .unwrap()
        .0
        .unwrap();
    // A segment that can be read, of a page that begins with "x", and a pair of actions.
    let mut request = Vec::new();
    (instance, 1u64).encode(&mut request);
    (1u8, base, page, "x").encode(&mut request);
    1u64.encode(&mut request);
    for number in [1u8, 2] {
        (ExecutorAddr(wrapper_address(note)), vec![number]).encode(&mut request);
    }
    let initialize = controller.symbol(&map("initialize"));
    let key = controller.call(initialize, &request);
    assert_eq!(
        from_bytes::<Expected<ExecutorAddr>>(&key).unwrap().0,
        Ok(base)
    );
    assert_eq!(*RAN.lock(), [1]);
    for name in ["deinitializeMultiple", "releaseMultiple"] {
        let function = controller.symbol(&map(name));
        let answer = controller.call(function, &to_bytes(&(instance, vec![base])));
        assert_eq!(from_bytes::<Outcome>(&answer).unwrap().0, Ok(()), "{name}");
        assert_eq!(*RAN.lock(), [1, 2], "{name}");
    }
    let program = ExecutorAddr((main as *const ()).expose_provenance() as u64);
    let call_main = controller.symbol(&ci("call_main"));
    let answer = controller.call(call_main, &to_bytes(&(program, vec!["program", "word"])));
    assert_eq!(answer, to_bytes(&42i64));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_call_functions_and_find_them_in_libraries() {
    static CALLED: Mutex<u32> = Mutex::new(0);
    extern "C" fn nothing() {
        *CALLED.lock() += 1;
    }
    extern "C" fn seven() -> i32 {
        7
    }
    extern "C" fn next(number: i32) -> i32 {
        number + 1
    }
    let address = |function: *const ()| ExecutorAddr(function.expose_provenance() as u64);
    let mut controller = over_pipes();
    let call = |controller: &mut Controller<_, _>, name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_sps_{name}"));
        controller.call(function, args)
    };
    let function = address(nothing as *const ());
    let answer = call(&mut controller, "call_void_void", &to_bytes(&function));
    assert_eq!((answer, *CALLED.lock()), (vec![], 1));
    let function = address(seven as *const ());
    let answer = call(&mut controller, "call_int32_void", &to_bytes(&function));
    assert_eq!(answer, to_bytes(&7i32));
    let request = to_bytes(&(address(next as *const ()), 41i32));
    let answer = call(&mut controller, "call_int32_int32", &request);
    assert_eq!(answer, to_bytes(&42i32));

    let manager = ExecutorAddr(controller.symbol("orc_rt_ci_NativeDylibManager_Instance"));
    let request = to_bytes(&(manager, "libm.so.6", 0u64));
    let library = call(&mut controller, "NativeDylibManager_load", &request);
    let library = from_bytes::<Expected<ExecutorAddr>>(&library).unwrap().0;
    let names = vec![("cos", true), ("jitmem has no such symbol", true)];
    let request = to_bytes(&(manager, library.unwrap(), names));
    let found = call(&mut controller, "NativeDylibManager_lookup", &request);
    let found = from_bytes::<Expected<Vec<Option<ExecutorAddr>>>>(&found)
        .unwrap()
        .0
        .unwrap();
    assert!(matches!(found[..], [Some(ExecutorAddr(1..)), None]));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_read_and_write_memory() {
    let mut controller = over_pipes();
    let mut call = |name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_sps_mem_{name}"));
        controller.call(function, args)
    };
    let mut memory = Box::new([0u64; 2]);
    let start = ExecutorAddr((&raw mut *memory).expose_provenance() as u64);
    let second = ExecutorAddr(start.0 + 8);
    call("write_uint64s", &to_bytes(&vec![(start, !0u64)]));
    call("write_uint32s", &to_bytes(&vec![(start, 0x03020100u32)]));
    call("write_uint16s", &to_bytes(&vec![(start, 0x6968u16)]));
    call("write_uint8s", &to_bytes(&vec![(start, 0x67u8)]));
    let zero: &[u8] = &[0];
    let buffers = vec![(ExecutorAddr(start.0 + 2), Bytes(zero))];
    call("write_buffers", &to_bytes(&buffers));
    call("write_pointers", &to_bytes(&vec![(second, start)]));
    let at = |address| to_bytes(&vec![address]);
    let word = 0xffff_ffff_0300_6967u64;
    assert_eq!(call("read_uint64s", &at(start)), to_bytes(&vec![word]));
    let low = word as u32;
    assert_eq!(call("read_uint32s", &at(start)), to_bytes(&vec![low]));
    let low = word as u16;
    assert_eq!(call("read_uint16s", &at(start)), to_bytes(&vec![low]));
    let low = word as u8;
    assert_eq!(call("read_uint8s", &at(start)), to_bytes(&vec![low]));
    assert_eq!(call("read_pointers", &at(second)), at(start));
    assert_eq!(call("read_strings", &at(start)), to_bytes(&vec!["gi"]));
    // A range is where it starts and ends, as LLVM's controllers have it.
    let range = vec![(start, ExecutorAddr(start.0 + 4))];
    let bytes = vec![Bytes(b"gi\0\x03")];
    assert_eq!(call("read_buffers", &to_bytes(&range)), to_bytes(&bytes));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_register_frames_and_debug_objects() {
    let mut controller = over_pipes();
    let mut call = |name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_aa_sps_{name}"));
        from_bytes::<Outcome>(&controller.call(function, args))
            .unwrap()
            .0
    };
    let section = Box::new([0u8; 64]);
    let start = ExecutorAddr((&raw const *section).expose_provenance() as u64);
    let range = to_bytes(&(start, ExecutorAddr(start.0 + 4)));
    for name in ["registerSection", "deregisterSection"] {
        let name = format!("DWARFEHFrameRegistrar_{name}");
        assert_eq!(call(&name, &range), Ok(()), "{name}");
    }
    assert_eq!(call("GDBJITRegistrar_register", &range), Ok(()));
    assert_eq!(call("GDBJITRegistrar_deregister", &range), Ok(()));
    assert!(call("GDBJITRegistrar_deregister", &range).is_err());
    controller.finish().unwrap();
}

#[test]
fn thread_locals_of_a_program_end_before_its_answer() {
    static ENDED: Mutex<u32> = Mutex::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            *ENDED.lock() += 1;
        }
    }
    thread_local!(static LOCAL: Counted = const { Counted });
    fn program(_: &[u8]) -> Answer {
        LOCAL.with(|_| ());
        Ok(Vec::new())
    }
    let mut controller = over_pipes();
    for number in 1..=3 {
        controller.call(wrapper_address(program), &[]);
        assert_eq!(*ENDED.lock(), number);
    }
    controller.finish().unwrap();
}

#[test]
fn a_controller_that_reads_late_gets_all_answers() {
    let mut controller = over_pipes();
    let read = controller.symbol(READ);
    // More than fits into the pipes, both ways.
    let count = 20_000;
    let mut output = controller.output.take().unwrap();
    let (written, told) = std::sync::mpsc::channel();
    let sender = std::thread::spawn(move || {
        for number in 0..count {
            let call = message(Opcode::CallWrapper, number, read, &nothing());
            output.write_all(&call).unwrap();
        }
        written.send(()).unwrap();
        output
    });
    // All is written although nothing is read: the executor never stops reading.
    told.recv_timeout(std::time::Duration::from_secs(60))
        .unwrap();
    controller.output = Some(sender.join().unwrap());
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let (header, body) = controller.receive();
        assert_eq!(body, nothing());
        assert!(!std::mem::replace(
            &mut seen[header.sequence as usize],
            true
        ));
    }
    controller.finish().unwrap();
}

#[test]
fn answers_of_several_threads_are_whole() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    fn filled(args: &[u8]) -> Answer {
        STARTED.fetch_add(1, Ordering::Relaxed);
        Ok(args.repeat(300_000))
    }
    let mut controller = over_pipes();
    let count = 8;
    for number in 0..count {
        controller.start(wrapper_address(filled), &[number]);
    }
    // None is read before all are about to be written, and no pipe holds one.
    while STARTED.load(Ordering::Relaxed) < count.into() {
        std::thread::yield_now();
    }
    for _ in 0..count {
        let (header, body) = controller.receive();
        assert!(body == vec![header.sequence as u8; 300_000]);
    }
    controller.finish().unwrap();
}

fn ended_with(bytes: &[u8]) -> Error {
    let mut controller = over_pipes();
    controller.send(bytes);
    controller.finish().unwrap_err()
}

#[test]
fn a_broken_protocol_ends_the_session_in_the_words_of_stock_executors() {
    let mut small = message(Opcode::Hangup, 0, 0, &[]);
    small[0] = 31;
    let mut unknown = message(Opcode::Hangup, 0, 0, &[]);
    unknown[8] = 4;
    let whole = message(Opcode::CallWrapper, 0, 0, &[1, 2, 3]);
    let cases: [(&[u8], &str); 8] = [
        (&small, "Message size too small"),
        (&unknown, "Unexpected opcode"),
        (
            &message(Opcode::Setup, 0, 0, &[]),
            "Unexpected Setup opcode",
        ),
        (&whole[..7], "Unexpected end-of-file"),
        (&whole[..HEADER_SIZE], "Unexpected end-of-file"),
        (&whole[..HEADER_SIZE + 2], "Unexpected end-of-file"),
        (
            &message(Opcode::Result, 17, 0, &[]),
            "No call for sequence number 17",
        ),
        (
            &message(Opcode::Result, 0, 1, &[]),
            "Unexpected tag in a Result message",
        ),
    ];
    for (bytes, words) in cases {
        let error = ended_with(bytes);
        assert_eq!(error.message(), words);
        assert_eq!(error.status(), Status::Disconnected);
    }
}

#[test]
fn a_controller_that_can_not_hear_is_left() {
    let mut controller = over_pipes();
    let read = controller.symbol(READ);
    let (closed, _) = std::io::pipe().unwrap();
    drop(std::mem::replace(&mut controller.input, closed));
    controller.start(read, &nothing());
    // Calls that were read before the loss was noticed are done, but no session goes on for ever.
    let error = loop {
        let call = message(Opcode::CallWrapper, 1, read, &nothing());
        let gone = controller
            .output
            .as_mut()
            .unwrap()
            .write_all(&call)
            .is_err();
        if gone || controller.executor.is_finished() {
            break controller.finish().unwrap_err();
        }
        std::thread::yield_now();
    };
    assert!(
        error.message().starts_with("write to the controller: "),
        "{error}"
    );
    assert_eq!(error.os_code(), Some(libc::EPIPE));
}

/// A server, and a controller of ours that is connected to it.
fn connected() -> (Stream, JoinHandle<Result<()>>) {
    let (here, there) = UnixStream::pair().unwrap();
    let options = Options::default();
    let executor = std::thread::spawn(move || serve_socket(there, &options));
    (Stream::connect(Arc::new(here.into())).unwrap(), executor)
}

#[test]
fn what_is_no_answer_but_an_error_is_told_to_controllers_of_ours() {
    fn fails(_: &[u8]) -> Answer {
        Err("out of luck".to_owned())
    }
    let (stream, executor) = connected();
    let ask = |function| crate::transport::call(&stream, function, vec![1]);
    for (function, text) in [
        (0, "no function is at address 0"),
        (wrapper_address(fails), "out of luck"),
        (stream.symbol(READ).unwrap(), "deserialize"),
    ] {
        let error = ask(function).unwrap_err();
        assert_eq!(error.status(), Status::MapperFailed);
        assert!(error.message().contains(text), "{error}");
    }
    drop(stream);
    executor.join().unwrap().unwrap();
}

/// A socket that was sent along with a call, and what the executor knows it by.
fn send_along(stream: &Stream) -> (OwnedFd, u64) {
    let (here, there) = sys::socket::packet_pair().unwrap();
    let cookie = sys::socket::cookie(&there).unwrap();
    assert!(stream.passes_descriptors());
    // Any call will do.
    let answer = wait(|done| {
        stream.start_with(0, vec![], there, 100, done);
    });
    assert_eq!(answer.unwrap_err().status(), Status::MapperFailed);
    (here, cookie)
}

#[test]
fn a_socket_that_was_sent_along_serves_once_and_ends_with_the_session() {
    use crate::executor::service::{Function as ServiceFunction, Service, call as call_service};
    use crate::wire::service::{Attach, Reply};
    use crate::wire::sps::Bytes;

    let (stream, executor) = connected();
    let (socket, cookie) = send_along(&stream);

    let service = Service::new();
    let session = crate::executor::service::opened(&service);
    let attach = |cookie: u64| {
        let mut message = to_bytes(&session);
        let token = Bytes(b"token");
        Attach::Shared { cookie, token }.encode(&mut message);
        let answer = call_service(ServiceFunction::Attach, &message, Vec::new()).unwrap();
        let Reply::<()>(reply) = from_bytes(&answer).unwrap();
        reply.map_err(Error::from)
    };
    // No neighbour's number: other tests have sockets too.
    let refused = attach(u64::MAX).unwrap_err();
    assert_eq!(refused.status(), Status::InvalidArgument);
    assert!(refused.message().contains("not sent along"), "{refused}");
    attach(cookie).unwrap();
    let mut token = [0; 8];
    assert_eq!(sys::socket::receive(&socket, &mut token).unwrap().size, 5);
    assert_eq!(&token[..5], b"token");
    assert!(attach(cookie).is_err());
    drop(service);
    // The session has gone, and its end of the socket with it.
    assert_eq!(sys::socket::receive(&socket, &mut [0]).unwrap().size, 0);

    drop(stream);
    executor.join().unwrap().unwrap();
}

#[test]
fn what_no_session_took_goes_with_the_connection_or_when_it_is_too_much() {
    let (stream, executor) = connected();
    let (first, _) = send_along(&stream);
    let others: Vec<OwnedFd> = (0..64).map(|_| send_along(&stream).0).collect();
    assert_eq!(sys::socket::receive(&first, &mut [0]).unwrap().size, 0);
    let waiting = sys::socket::receive_now(&others[0], &mut [0]).map(drop);
    assert_eq!(waiting.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    drop(stream);
    executor.join().unwrap().unwrap();
    for socket in others {
        assert_eq!(sys::socket::receive(&socket, &mut [0]).unwrap().size, 0);
    }
}

#[test]
fn calls_come_whole_whatever_is_sent_along() {
    let (stream, executor) = connected();
    fn size(args: &[u8]) -> Answer {
        Ok(args.len().to_le_bytes().to_vec())
    }
    for length in [0, 1, 4000, 4096, 5000, 100_000, 1 << 20] {
        let (here, there) = sys::socket::packet_pair().unwrap();
        let answer = wait(|done| {
            stream.start_with(wrapper_address(size), vec![7; length], there, 100, done);
        });
        assert_eq!(answer.unwrap(), length.to_le_bytes());
        drop(here);
    }
    drop(stream);
    executor.join().unwrap().unwrap();
}
