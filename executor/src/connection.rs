// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Connecting to the controller.

use crate::options::Endpoint;
use crate::token::Token;
use anyhow::{Context, Result, bail};
use jitmem::executor::program::take_descriptors;
use rustix::net::sockopt;
use rustix::process::geteuid;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is read and what is written.
pub(crate) type Connection = (OwnedFd, OwnedFd);

fn both_ways(socket: OwnedFd) -> Result<Connection> {
    let again = socket.try_clone().context("duplicate a socket")?;
    Ok((socket, again))
}

/// Waits for the controller, which sends the token first if there is one. `note` is given what the user should
/// know.
pub(crate) fn connect(
    endpoint: &Endpoint,
    token: Option<&Token>,
    note: impl Fn(&str),
) -> Result<Connection> {
    if let Endpoint::Descriptors(input, output) = endpoint {
        // SAFETY: the program was started with them, and has not used them yet.
        return Ok(unsafe { take_descriptors(*input, *output) }?);
    }
    let listener = Listener::new(endpoint, token.is_some(), &note)?;
    loop {
        let (socket, peer) = listener.accept(&note)?;
        match token.map_or(Ok(()), |token| token.check(&socket)) {
            Ok(()) => return both_ways(socket),
            Err(error) => note(&format!("refused a connection of {peer}: {error:#}")),
        }
    }
}

fn name_bytes(name: &std::ffi::OsStr) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    name.as_bytes()
}

/// Where controllers connect. When it is dropped the port or the name is free again.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, #[allow(dead_code)] Option<SocketFile>),
}

impl Listener {
    /// `has_token`: not every process that reaches it may go on.
    pub(crate) fn new(
        endpoint: &Endpoint,
        has_token: bool,
        note: impl Fn(&str),
    ) -> Result<Listener> {
        match endpoint {
            Endpoint::Descriptors(..) => bail!("descriptors are connected already"),
            Endpoint::Tcp(host, port) => tcp(host, *port, has_token, note).map(Listener::Tcp),
            Endpoint::Unix(path) => at_path(path),
            Endpoint::Abstract(name) => {
                let address = unix::SocketAddr::from_abstract_name(name_bytes(name));
                let listener = address.and_then(|address| UnixListener::bind_addr(&address));
                let listener =
                    listener.with_context(|| format!("listen at abstract socket {name:?}"))?;
                Ok(Listener::Unix(listener, None))
            }
        }
    }

    /// The next connection of a process that may connect here, and who that is.
    pub(crate) fn accept(&self, note: impl Fn(&str)) -> Result<(OwnedFd, String)> {
        match self {
            Listener::Tcp(listener) => loop {
                let (stream, peer) = match listener.accept() {
                    // It was there, and has gone.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                    accepted => accepted.context("accept a controller")?,
                };
                // Calls are small, and the other side waits for each answer.
                let set = stream.set_nodelay(true);
                match set.and_then(|()| Ok(keep_alive(&stream)?)) {
                    Ok(()) => return Ok((stream.into(), peer.to_string())),
                    Err(error) => note(&format!("lost a connection of {peer}: {error}")),
                }
            },
            Listener::Unix(listener, _) => accept_own(listener, note),
        }
    }
}

/// Has the kernel find out within two minutes that a controller's machine or its network is gone.
fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 6)
}

fn tcp(host: &str, port: u16, has_token: bool, note: impl Fn(&str)) -> Result<TcpListener> {
    let mut addresses: Vec<SocketAddr> = if host.is_empty() {
        vec![(Ipv4Addr::LOCALHOST, port).into()]
    } else {
        let found = (host, port).to_socket_addrs();
        found
            .with_context(|| format!("look up host {host:?}"))?
            .collect()
    };
    // Controllers of LLVM's connect by the older protocol.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let listener = TcpListener::bind(&addresses[..])
        .with_context(|| format!("listen at {host:?}, port {port}"))?;
    let address = listener.local_addr().context("ask for the port")?;
    if !has_token {
        let who = match address.ip().is_loopback() {
            true => "every user of this machine",
            false => "every process that reaches this address",
        };
        note(&format!(
            "listening at {address}: {who} can run code as this user; with --token-file only those who know \
             the token can"
        ));
    } else if port == 0 {
        note(&format!("listening at {address}"));
    }
    Ok(listener)
}

/// A socket in the file system.
fn at_path(path: &Path) -> Result<Listener> {
    let listening = || format!("listen at {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_over(path) => {
            fs::remove_file(path).with_context(listening)?;
            UnixListener::bind(path).with_context(listening)?
        }
        other => other.with_context(listening)?,
    };
    let file = identity(path).map(|identity| SocketFile {
        path: path.to_owned(),
        identity,
    });
    Ok(Listener::Unix(listener, file))
}

/// A file that goes when its listener does.
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // The controller may have removed it already, and something else may be there.
        if identity(&self.path) == Some(self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Which file is at a path, if there is one.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let data = fs::symlink_metadata(path).ok()?;
    Some((data.dev(), data.ino()))
}

/// Whether this is a socket at which no process listens any more. One that does must not notice: it would
/// take a stream for the controller's.
fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    let knock = || UnixDatagram::unbound()?.connect(path);
    is_socket && knock().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Takes the first connection of a process that could do as this user anyway.
fn accept_own(listener: &UnixListener, note: impl Fn(&str)) -> Result<(OwnedFd, String)> {
    let own = geteuid();
    loop {
        let (stream, _) = listener.accept().context("accept a controller")?;
        let peer = sockopt::socket_peercred(&stream).context("ask who has connected")?;
        let name = format!("process {} of user {}", peer.pid, peer.uid.as_raw());
        if peer.uid == own || peer.uid.is_root() {
            return Ok((stream.into(), name));
        }
        note(&format!(
            "refused a connection of {name}: only user {} may connect",
            own.as_raw()
        ));
    }
}
