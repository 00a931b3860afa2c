// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! How memfds reach the executor.

use super::link::Link;
use crate::error::{Error, Result, Status};
use crate::sys::{self, MemFile, explain, explain_mapping, explain_reach, socket};
use crate::transport::RESPONSE_TIMEOUT;
use crate::transport::channel::Channel;
use crate::wire::service::{Attach, Attached, File};
use crate::wire::sps::Bytes;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// How memfds reach the executor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DescriptorPassing {
    /// Not at all.
    None,
    /// Through a channel that the transport brought along.
    SharedSocket,
    /// Through a channel that began at an abstract Unix socket.
    AbstractSocket,
    /// Through a channel whose end was taken out of the executor.
    TakenSocket,
    /// The executor opens them by our process and their number.
    Files,
}

impl Link {
    /// Finds how memfds can be passed, the best way first.
    ///
    /// # Errors
    /// `Unsupported` with what each step said.
    pub(super) fn attach(&mut self) -> Result<()> {
        // Most transports bring none along, which is no failure.
        if let Some(socket) = self.transport.take_channel() {
            match self.attach_by_shared(socket) {
                Err(error) if error.status() != Status::Disconnected => {
                    self.failed
                        .push(format!("a socket that both share: {error}"));
                }
                done => return done,
            }
        }
        type Step = fn(&mut Link) -> Result<()>;
        let steps: [(&str, Step); 3] = [
            ("an abstract Unix socket", Link::attach_by_name),
            ("pidfd_getfd", Link::attach_by_taking),
            ("/proc/PID/fd", Link::attach_by_files),
        ];
        for (name, step) in steps {
            match step(self) {
                Ok(()) => return Ok(()),
                Err(error) if error.status() == Status::Disconnected => return Err(error),
                Err(error) => self.failed.push(format!("{name}: {error}")),
            }
        }
        Err(Error::new(
            Status::Unsupported,
            format!(
                "memfds can't be handed to the executor: {}; run it on this machine, as this user, \
                 and in the same network or process namespace",
                self.failed.join("; ")
            ),
        ))
    }

    fn step(&self, attach: Attach<'_>) -> Result<Attached> {
        self.ask(self.opened.functions.attach, &attach)
    }

    fn attach_by_shared(&mut self, socket: OwnedFd) -> Result<()> {
        let cookie =
            socket::cookie(&socket).map_err(|error| explain("ask for a socket's cookie", error))?;
        self.step(Attach::Shared { cookie })?;
        self.attached(socket, DescriptorPassing::SharedSocket)
    }

    fn attach_by_name(&mut self) -> Result<()> {
        let name = format!("jitmem-{:032x}", random()?);
        let token = random()?.to_le_bytes();
        let listener = socket::listen_at(name.as_bytes())
            .map_err(|error| explain("listen at an abstract Unix socket", error))?;
        self.step(Attach::Connect {
            name: Bytes(name.as_bytes()),
            token: Bytes(&token),
        })?;
        // The executor has connected and sent by now, and so may others have: any process may try.
        loop {
            let socket = socket::accept(&listener)
                .map_err(|error| explain("accept the executor's connection", error))?;
            if knows(&socket, &token) {
                return self.attached(socket, DescriptorPassing::AbstractSocket);
            }
        }
    }

    fn attach_by_taking(&mut self) -> Result<()> {
        let offer = self.step(Attach::Offer {})?;
        let taken = socket::take_from(self.opened.process, offer.descriptor)
            .map_err(|error| {
                let process = self.opened.process;
                explain_reach(format_args!("take a socket of process {process}"), error)
            })
            .and_then(|socket| match socket::cookie(&socket) {
                Ok(cookie) if cookie == offer.cookie && is_ours(&socket) => Ok(socket),
                _ => Err(Error::new(
                    Status::Unsupported,
                    format!(
                        "process {} is not the executor here: they count processes apart",
                        self.opened.process
                    ),
                )),
            });
        let told = self.step(Attach::Taken {
            taken: taken.is_ok(),
        });
        let socket = taken?;
        told?;
        self.attached(socket, DescriptorPassing::TakenSocket)
    }

    fn attach_by_files(&mut self) -> Result<()> {
        let probe = MemFile::new(c"jitmem-probe", sys::page_size().bytes())
            .map_err(|error| explain_mapping("memfd_create", error))?;
        self.step(Attach::Files {
            file: file_of(probe.as_fd())?,
        })?;
        self.passing = DescriptorPassing::Files;
        Ok(())
    }

    fn attached(&mut self, socket: OwnedFd, passing: DescriptorPassing) -> Result<()> {
        self.channel = Some(Arc::new(Channel::new(socket)?));
        self.passing = passing;
        Ok(())
    }
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

/// Whether a connection was made by the same user, or root.
fn is_ours(socket: &OwnedFd) -> bool {
    let trusted = |user| user == socket::user() || user == 0;
    socket::peer_user(socket).is_ok_and(trusted)
}

/// Whether whoever connected knows the token and is the same user, or root.
fn knows(socket: &OwnedFd, token: &[u8]) -> bool {
    let mut buffer = [0; 64];
    is_ours(socket)
        && socket::readable(socket.as_fd(), RESPONSE_TIMEOUT).unwrap_or(false)
        && socket::receive(socket, &mut buffer)
            .is_ok_and(|received| &buffer[..received.size] == token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_connects_must_know_the_token() {
        let knows_after = |said: &[u8]| {
            let (here, there) = socket::packet_pair().unwrap();
            socket::send(&there, &[said], &[]).unwrap();
            knows(&here, b"sesame")
        };
        assert!(knows_after(b"sesame"));
        assert!(!knows_after(b"sesam"));
        assert!(!knows_after(b"sesame!"));
        let (here, there) = socket::packet_pair().unwrap();
        drop(there);
        assert!(!knows(&here, b"sesame"));
    }
}
