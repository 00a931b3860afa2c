// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A socket at which controllers connect to this process, for an executor whose bounds will refuse to make
//! sockets or put it into another network namespace. It is made before the bounds are in force.
//!
//! Any process of the machine may connect. A connection is a session's once the token has come through it that
//! the session's controller has also sent by the transport.

use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::sys::{ClosedInChild, explain, socket};
use crate::wire::service::{ListenerName, Token};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// Connections that are kept until their sessions ask for them; then the oldest goes.
const MOST_WAITING: usize = 64;

struct Listener {
    name: ListenerName,
    socket: ClosedInChild,
    waiting: Mutex<VecDeque<Waiting>>,
}

/// A connection that no session has asked for, and the token that came through it.
struct Waiting {
    socket: OwnedFd,
    token: Option<Token>,
}

static LISTENER: OnceLock<Result<Listener>> = OnceLock::new();

/// Makes the listener, once in a process. Called before there is a session.
pub(in crate::executor) fn listen() -> Result<()> {
    let made = LISTENER.get_or_init(Listener::new);
    made.as_ref().map(drop).map_err(Error::clone)
}

fn listener() -> Result<&'static Listener> {
    match LISTENER.get() {
        Some(made) => made.as_ref().map_err(Error::clone),
        None => Err(Error::new(
            Status::Unsupported,
            "the executor has no listener: it may make sockets of its own",
        )),
    }
}

/// The listener's name, for a controller.
pub(super) fn name() -> Result<ListenerName> {
    listener().map(|listener| listener.name)
}

/// The connection through which a controller has sent a token.
pub(super) fn accept(token: Token) -> Result<OwnedFd> {
    listener()?.accept(token)
}

/// The number of the listener's descriptor.
pub(in crate::executor) fn descriptor() -> Option<u32> {
    let made = LISTENER.get()?.as_ref().ok()?;
    Some(socket::number(made.socket.as_fd()))
}

impl Listener {
    fn new() -> Result<Listener> {
        let name = ListenerName::from(
            socket::random().map_err(|error| explain("getrandom for a listener's name", error))?,
        );
        let socket = socket::listen_at(name.text().as_bytes())
            .map_err(|error| explain("listen at an abstract Unix socket", error))?;
        Ok(Listener {
            name,
            socket: ClosedInChild::new(socket),
            waiting: Mutex::default(),
        })
    }

    /// The controller has connected and sent by now, and so may others have. None is waited for.
    fn accept(&self, token: Token) -> Result<OwnedFd> {
        let mut waiting = self.waiting.lock();
        let end = loop {
            match socket::accept(&self.socket) {
                Ok(socket) => waiting.push_back(Waiting {
                    socket,
                    token: None,
                }),
                Err(error) => break error,
            }
            if waiting.len() > MOST_WAITING {
                waiting.pop_front();
            }
        };
        waiting.retain_mut(Waiting::may_be_meant);
        let found = waiting
            .iter()
            .position(|connection| connection.token == Some(token));
        match found.and_then(|index| waiting.remove(index)) {
            Some(connection) => Ok(connection.socket),
            None => Err(explain("accept the controller's connection", end)),
        }
    }
}

impl Waiting {
    /// Whether a token has come, or may still come.
    fn may_be_meant(&mut self) -> bool {
        if self.token.is_some() {
            return true;
        }
        let mut buffer = [0; 64];
        match socket::receive_now(&self.socket, &mut buffer) {
            Ok(received) => {
                self.token = Token::try_from(&buffer[..received.size]).ok();
                self.token.is_some()
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(listener: &Listener, said: &[&[u8]]) -> OwnedFd {
        let socket = socket::connect_to(listener.name.text().as_bytes()).unwrap();
        for said in said {
            socket::send(&socket, &[said], &[]).unwrap();
        }
        socket
    }

    fn leads_to(ours: &OwnedFd, theirs: &OwnedFd) -> bool {
        socket::send(ours, &[b"x"], &[]).unwrap();
        socket::receive_now(theirs, &mut [0; 4]).is_ok_and(|received| received.size == 1)
    }

    #[test]
    fn a_session_has_the_connection_that_its_token_came_through() {
        let listener = Listener::new().unwrap();
        // Others were first: silent ones, gone ones, and such as say something else.
        let silent = connected(&listener, &[]);
        drop(connected(&listener, &[]));
        let _wrong = connected(&listener, &[&[9; 16]]);
        let _long = connected(&listener, &[&[1; 17], &[1; 16]]);
        assert!(listener.accept([1; 16]).is_err());
        let second = connected(&listener, &[&[2; 16]]);
        let first = connected(&listener, &[&[1; 16]]);
        assert!(leads_to(&listener.accept([1; 16]).unwrap(), &first));
        assert!(leads_to(&listener.accept([2; 16]).unwrap(), &second));
        // A token is good for one session.
        assert!(listener.accept([1; 16]).is_err());
        // Its controller was slow.
        socket::send(&silent, &[&[3; 16]], &[]).unwrap();
        assert!(leads_to(&listener.accept([3; 16]).unwrap(), &silent));
    }

    #[test]
    fn connections_that_say_nothing_are_kept_up_to_a_number() {
        let listener = Listener::new().unwrap();
        let mut silent = Vec::new();
        for _ in 0..MOST_WAITING + 20 {
            silent.push(connected(&listener, &[]));
            assert!(listener.accept([1; 16]).is_err());
        }
        assert_eq!(listener.waiting.lock().len(), MOST_WAITING);
        let meant = connected(&listener, &[&[1; 16]]);
        assert!(leads_to(&listener.accept([1; 16]).unwrap(), &meant));
    }
}
