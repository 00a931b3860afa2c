// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The executor's end of a session's channel.

use super::{call, function_at};
use crate::error::Result;
use crate::sys::{Answer, ClosedInChild, explain, socket};
use crate::transport::channel::READERS;
use crate::transport::packet::{self, Packet};
use crate::transport::reader_pool;
use crate::wire::frame::{Header, OUT_OF_BAND, Opcode};
use crate::wire::service::Functions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

struct ChannelServer {
    socket: ClosedInChild,
    functions: Functions,
}

/// Serves calls from `socket` in threads of our own until its end. The session stays then, until its
/// service ends it: linked code may still run.
pub(in crate::executor) fn serve(socket: Arc<OwnedFd>, functions: Functions) -> io::Result<()> {
    let socket = ClosedInChild::new(socket);
    let buffers = packet::buffers(READERS)?;
    reader_pool::start(Arc::new(ChannelServer { socket, functions }), buffers)
}

impl reader_pool::Connection for ChannelServer {
    type Input = Vec<u8>;
    type Packet = Packet;
    const RUNS_LINKED_CODE: bool = true;

    fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Packet>> {
        packet::receive(&self.socket, buffer)
            .map_err(|error| explain("read from a controller's channel", error))
    }

    fn hang_up(&self) {
        socket::hang_up(&self.socket);
    }

    fn handle(&self, packet: Packet) {
        let Packet {
            header,
            body,
            descriptors,
            lost,
        } = packet;
        let Header {
            opcode,
            sequence,
            tag,
            ..
        } = header;
        if opcode != Opcode::CallWrapper {
            return socket::hang_up(&self.socket);
        }
        let answer: Answer = match function_at(&self.functions, tag) {
            _ if lost.is_some() => Err(lost.unwrap_or_default()),
            Some(function) => call(function, &body, descriptors),
            None => Err(format!(
                "no function of jitmem's executor service is at {tag:#x}"
            )),
        };
        let (tag, body) = match answer {
            Ok(bytes) => (0, bytes),
            Err(message) => (OUT_OF_BAND, message.into_bytes()),
        };
        let (tag, body) = match body.len() {
            ..=packet::MOST_ANSWER => (tag, body),
            size => (
                OUT_OF_BAND,
                format!("an answer of {size} bytes").into_bytes(),
            ),
        };
        let header = Header::new(Opcode::Result, sequence, tag, body.len());
        if packet::send(&self.socket, header, &body, &[]).is_err() {
            // A call that stays unanswered must not leave the controller waiting.
            socket::hang_up(&self.socket);
        }
    }

    fn ended(&self, _why: Result<()>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::service::here::functions;

    #[test]
    fn what_is_no_call_ends_the_channel() {
        let (here, there) = socket::packet_pair().unwrap();
        serve(Arc::new(there), functions()).unwrap();
        packet::send(&here, Header::new(Opcode::Result, 0, 0, 0), &[], &[]).unwrap();
        assert!(packet::receive(&here, &mut Vec::new()).unwrap().is_none());
    }
}
