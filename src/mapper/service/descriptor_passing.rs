// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How memfds reach the executor: through a channel, for which a socket must be in both processes, or by
//! way of /proc. Which of it works depends on how the two were started.
//!
//! An executor may attack, so no number of its own (process, descriptor, cookie) is acted on here. The
//! controller makes what it hands over, and says what the executor is to open or to connect to. Whatever
//! socket comes of it, a token that went out by the transport must come back through it before anything
//! else goes there. No descriptor of the executor's is taken, whatever it is: see `socket::refuse_descriptors`.

use super::link::Link;
use crate::error::{Error, Result, Status};
use crate::sys::{MemFile, Numbering, explain, explain_mapping, socket};
use crate::transport::channel::Channel;
use crate::wire::service::{self as wire, Attach, File};
use crate::wire::sps::Bytes;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How memfds reach the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DescriptorPassing {
    /// Through a channel that went to the executor along with a call.
    SharedSocket,
    /// Through a channel that began at an abstract Unix socket.
    AbstractSocket,
    /// Through a channel that began at an abstract Unix socket of the executor's.
    ExecutorsSocket,
    /// The executor opens them by our process and their number.
    Files,
}

impl DescriptorPassing {
    /// What a mapper is called that passes them so.
    pub(super) fn mapper_name(self) -> &'static str {
        match self {
            DescriptorPassing::SharedSocket => {
                "shared memory, memfds over a socket that came with the connection"
            }
            DescriptorPassing::AbstractSocket => "shared memory, memfds over an abstract socket",
            DescriptorPassing::ExecutorsSocket => {
                "shared memory, memfds over an abstract socket of the executor's"
            }
            DescriptorPassing::Files => "shared memory, memfds by /proc/PID/fd",
        }
    }
}

/// The way that was found, and what it needs.
pub(super) struct Attachment {
    pub(super) passing: DescriptorPassing,
    /// None where the executor opens files.
    pub(super) channel: Option<Channel>,
    /// Which better ways failed, and why.
    pub(super) failed: Vec<String>,
}

type Attempt<'a> = Box<dyn FnOnce() -> Result<Found> + 'a>;
type Found = (DescriptorPassing, Option<Channel>);

/// Tries one way after the other, the best first.
///
/// # Errors
/// `Unsupported` with what each of them said.
pub(super) fn attach(link: &Link) -> Result<Attachment> {
    // Most transports pass no descriptors, which is no failure.
    let shared = link.passes_descriptors().then(|| -> (&str, Attempt<'_>) {
        let attempt = || by_shared_socket(link);
        ("a socket that both share", Box::new(attempt))
    });
    let others: [(&str, Attempt<'_>); 3] = [
        (
            "an abstract Unix socket",
            Box::new(|| by_abstract_socket(link)),
        ),
        (
            "an abstract Unix socket of the executor's",
            Box::new(|| by_executors_socket(link)),
        ),
        ("/proc/PID/fd", Box::new(|| by_files(link))),
    ];
    let mut failed = Vec::new();
    for (name, attempt) in shared.into_iter().chain(others) {
        match attempt() {
            Ok((passing, channel)) => {
                return Ok(Attachment {
                    passing,
                    channel,
                    failed,
                });
            }
            Err(error) if matches!(error.status(), Status::Disconnected | Status::TimedOut) => {
                return Err(error);
            }
            // What is short now may be there later: that decides nothing, and has a remedy of its own.
            Err(error) if error.is_passing() => return Err(error),
            Err(error) => failed.push(format!("{name}: {error}")),
        }
    }
    Err(Error::new(
        Status::Unsupported,
        format!(
            "memfds can't be handed to the executor: {}; run it on this machine, as this user, \
             and in the same network or process namespace",
            failed.join("; ")
        ),
    ))
}

fn by_shared_socket(link: &Link) -> Result<Found> {
    let (ours, theirs) =
        socket::packet_pair().map_err(|error| explain("make a pair of sockets", error))?;
    socket::refuse_descriptors(&ours);
    let cookie =
        socket::cookie(&theirs).map_err(|error| explain("ask for a socket's cookie", error))?;
    let token = random()?.to_le_bytes();
    let attach = Attach::Shared {
        cookie,
        token: Bytes(&token),
    };
    link.attach_with(attach, theirs)?;
    if !knows(&ours, &token) {
        return Err(Error::new(
            Status::Unsupported,
            "the executor has not answered through the socket that was sent along",
        ));
    }
    Ok((
        DescriptorPassing::SharedSocket,
        Some(link.channel_over(ours)?),
    ))
}

fn by_abstract_socket(link: &Link) -> Result<Found> {
    let name = format!("jitmem-{:032x}", random()?);
    let token = random()?.to_le_bytes();
    let listener = socket::listen_refusing(name.as_bytes())
        .map_err(|error| explain("listen at an abstract Unix socket", error))?;
    link.attach(Attach::Connect {
        name: Bytes(name.as_bytes()),
        token: Bytes(&token),
    })?;
    // The executor has connected and sent by now, and so may others have: any process may try.
    let mut stranger = None;
    let socket = loop {
        let socket = socket::accept(&listener).map_err(|error| match stranger {
            Some(user) => not_ours(user),
            None => explain("accept the executor's connection", error),
        })?;
        if !knows(&socket, &token) {
            continue;
        }
        match socket::peer_user(&socket) {
            Ok(user) if is_ours(user) => break socket,
            user => stranger = user.ok(),
        }
    };
    let channel = link.channel_over(socket)?;
    Ok((DescriptorPassing::AbstractSocket, Some(channel)))
}

/// An executor that attacks can name the listener of another executor. That one takes what we send for a
/// stranger's, and does not know the token that must come back.
fn by_executors_socket(link: &Link) -> Result<Found> {
    let name = link.listeners_name()?.text();
    let (expected, token) = (random()?.to_le_bytes(), random()?.to_le_bytes());
    let socket = socket::connect_refusing(name.as_bytes())
        .map_err(|error| explain("connect to the executor's socket", error))?;
    match socket::peer_user(&socket) {
        Ok(user) if is_ours(user) => (),
        Ok(user) => return Err(not_ours(user)),
        Err(error) => return Err(explain("ask who made a socket", error)),
    }
    // A new connection has room for it.
    socket::send_now(&socket, &[&expected], &[])
        .map_err(|error| explain("send a token through the executor's socket", error))?;
    link.attach(Attach::Accept {
        expected: Bytes(&expected),
        token: Bytes(&token),
    })?;
    if !knows(&socket, &token) {
        return Err(Error::new(
            Status::Unsupported,
            "the executor does not listen at the socket that it named",
        ));
    }
    let channel = link.channel_over(socket)?;
    Ok((DescriptorPassing::ExecutorsSocket, Some(channel)))
}

fn by_files(link: &Link) -> Result<Found> {
    let here = Numbering::here().map_err(|error| explain("look at /proc", error))?;
    if !here.own {
        return Err(Error::new(
            Status::Unsupported,
            "/proc has no numbers of this process's namespace; mount one that has",
        ));
    }
    let token = random()?.to_le_bytes();
    let probe = MemFile::holding(c"jitmem-probe", &token)
        .map_err(|error| explain_mapping("memfd_create", error))?;
    let file = file_of(probe.as_fd())?;
    link.attach(Attach::Files {
        numbering: wire::Numbering {
            boot: Bytes(&here.boot),
            device: here.device,
            namespace: here.namespace,
        },
        file,
        token: Bytes(&token),
    })?;
    Ok((DescriptorPassing::Files, None))
}

/// How an executor finds a file of ours.
pub(super) fn file_of(file: BorrowedFd<'_>) -> Result<File> {
    let (device, inode) =
        socket::identity(file).map_err(|error| explain("fstat of a memfd", error))?;
    Ok(File {
        process: socket::process(),
        descriptor: socket::number(file),
        device,
        inode,
    })
}

fn random() -> Result<u128> {
    socket::random().map_err(|error| explain("getrandom", error))
}

/// Whether a user is the one that this process acts as, or root.
fn is_ours(user: u32) -> bool {
    user == socket::user() || user == 0
}

#[cold]
fn not_ours(user: u32) -> Error {
    Error::new(
        Status::Unsupported,
        format!(
            "the executor is a process of user {user}, and this one is of user {}",
            socket::user()
        ),
    )
}

/// Whether the process that connected has sent the token, and nothing else. The executor has before it answers, so
/// nothing is waited for that another process may never send.
fn knows(socket: &OwnedFd, token: &[u8]) -> bool {
    let mut buffer = [0; 64];
    socket::receive_now(socket, &mut buffer)
        .is_ok_and(|received| !received.brought_descriptors && &buffer[..received.size] == token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_connects_must_know_the_token() {
        let knows_after = |said: &[u8]| {
            let (here, there) = socket::packet_pair().unwrap();
            socket::send(&there, &[said], &[]).unwrap();
            knows(&here, b"sesame")
        };
        assert!(knows_after(b"sesame"));
        assert!(!knows_after(b"sesam"));
        assert!(!knows_after(b"sesame!"));
        let (here, _silent) = socket::packet_pair().unwrap();
        assert!(!knows(&here, b"sesame"));
        let (here, there) = socket::packet_pair().unwrap();
        drop(there);
        assert!(!knows(&here, b"sesame"));
    }
}
