// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The controller's end of a session's channel.

use crate::input::Input;
use crate::packets::{Fate, Packet, receive, send};
use jitmem::wire::frame::{Header, Opcode};
use jitmem::wire::service::{Attach, ListenerName, Token};
use jitmem::wire::sps::{Bytes, ExecutorAddr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// The tag of an answer that is an error of the channel itself.
const OUT_OF_BAND: u64 = 1;

pub(crate) struct Channel(OwnedFd);

/// A connection to the executor's listener.
pub(crate) struct Introduced {
    socket: Option<OwnedFd>,
    /// What the controller has sent first; a token or none.
    pub(crate) said: Vec<u8>,
}

impl Introduced {
    pub(crate) fn connect(name: ListenerName, input: &mut Input<'_>) -> Introduced {
        let address = SocketAddrUnix::new_abstract_name(name.text().as_bytes());
        let address = address.expect("a short name");
        let socket = packet_socket();
        rustix::net::connect(&socket, &address).expect("an executor listens");
        // Tokens differ, as random numbers do.
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let token: Token = u128::from(number).to_le_bytes();
        let said = match input.below(8) {
            6 => input.bytes().to_vec(),
            7 => Vec::new(),
            _ => token.to_vec(),
        };
        if !said.is_empty() {
            let sent = rustix::net::send(&socket, &said, SendFlags::NOSIGNAL);
            assert_eq!(sent, Ok(said.len()));
        }
        let socket = Some(socket);
        Introduced { socket, said }
    }

    /// Whether the executor keeps it until a session asks for it.
    pub(crate) fn is_introduced(&self) -> bool {
        self.said.len() == size_of::<Token>()
    }

    /// The channel that it has become.
    pub(crate) fn take(&mut self) -> Option<Channel> {
        let socket = self.socket.take()?;
        expect_token(&socket);
        Some(Channel(socket))
    }
}

fn packet_socket() -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).expect("socket")
}

/// Takes what an executor sends to show that it is the one.
fn expect_token(socket: &OwnedFd) {
    let mut token = [0; 8];
    let size = rustix::net::recv(socket, &mut token, RecvFlags::empty());
    assert_eq!(size.map(|(size, _)| &token[..size]), Ok(&b"token"[..]));
}

impl Channel {
    /// Has the executor `connect`; `None` if it won't.
    pub(crate) fn listen(connect: impl FnOnce(Attach<'_>) -> bool) -> Option<Channel> {
        let listener = packet_socket();
        let name = format!("jitmem-fuzz-{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("a short name");
        rustix::net::bind(&listener, &address).expect("bind");
        rustix::net::listen(&listener, 1).expect("listen");
        let connected = connect(Attach::Connect {
            name: Bytes(name.as_bytes()),
            token: Bytes(b"token"),
        });
        if !connected {
            return None;
        }
        let socket = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC).expect("accept");
        expect_token(&socket);
        Some(Channel(socket))
    }

    /// Calls, and calls what is not there at the same time. Gives the answer, and itself unless that
    /// has ended it.
    pub(crate) fn call(
        self,
        input: &mut Input<'_>,
        function: ExecutorAddr,
        args: &[u8],
        along: Vec<OwnedFd>,
    ) -> (Option<Channel>, Vec<u8>) {
        // A controller's numbers are its own affair: they may be the same.
        let sequence = input.number();
        let mut others = input.some(3, |input| sequence.wrapping_add(input.below(2) as u64));
        let header = |sequence, tag, size| Header::new(Opcode::CallWrapper, sequence, tag, size);
        for number in &others {
            send(
                &self.0,
                &Packet::plain(header(*number, 0, 0), &[], Vec::new()),
            );
        }
        // There is always something in it.
        let args = if args.is_empty() { &[0] } else { args };
        let call = header(sequence, function.0, args.len());
        let packet = Packet::any(input, call, args, along);
        send(&self.0, &packet);
        let mut answer = None;
        while !others.is_empty() || answer.is_none() {
            let Some((header, body, along)) = receive(&self.0) else {
                // A peer that breaks the protocol gets no answer to that, and perhaps none to the others.
                assert!(packet.fate == Fate::Broken, "no answer");
                return (None, Vec::new());
            };
            assert!(header.opcode == Opcode::Result && along.is_empty());
            let known = others.iter().position(|number| *number == header.sequence);
            match (header.tag, known) {
                (0, _) => {
                    assert_eq!((packet.fate, header.sequence), (Fate::Taken, sequence));
                    assert!(answer.replace(body).is_none(), "the second answer");
                }
                (OUT_OF_BAND, Some(known)) => drop(others.swap_remove(known)),
                (OUT_OF_BAND, None) => {
                    assert_eq!((packet.fate, header.sequence), (Fate::Lost, sequence));
                    assert!(answer.replace(Vec::new()).is_none(), "the second answer");
                }
                _ => panic!("{header:?}"),
            }
        }
        (Some(self), answer.unwrap_or_default())
    }
}
