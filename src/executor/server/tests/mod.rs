// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Sessions with a controller in this process, over pipes and sockets.

use super::*;
use crate::error::Status;
use crate::lock::Mutex;
use crate::sys::{Answer, wrapper_address};
use crate::wire::frame::{HEADER_SIZE, Header, Opcode, message};
use crate::wire::sps::{Encode, Expected, Outcome, from_bytes, to_bytes};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

mod after_llvm_22;
mod broken;
mod dispatch;
mod own_controllers;
mod session;

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
