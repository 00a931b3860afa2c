// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Connecting to the controller.

use crate::options::Endpoint;
use anyhow::{Context, Result};
use jitmem::executor::program::take_descriptors;
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener};
use std::path::Path;

/// What is read and what is written.
pub(crate) type Connection = (OwnedFd, OwnedFd);

fn both_ways(socket: impl Into<OwnedFd>) -> Result<Connection> {
    let socket = socket.into();
    let again = socket.try_clone().context("duplicate a socket")?;
    Ok((socket, again))
}

/// Waits for the controller. `note` is given what the user should know.
pub(crate) fn connect(endpoint: &Endpoint, note: impl Fn(&str)) -> Result<Connection> {
    match endpoint {
        // SAFETY: the program was started with them, and has not used them yet.
        Endpoint::Descriptors(input, output) => Ok(unsafe { take_descriptors(*input, *output) }?),
        Endpoint::Tcp(host, port) => tcp(host, *port, note),
        Endpoint::Unix(path) => at_path(path, note),
        Endpoint::Abstract(name) => {
            let listen = || {
                UnixListener::bind_addr(&unix::SocketAddr::from_abstract_name(name_bytes(name))?)
            };
            let listener =
                listen().with_context(|| format!("listen at abstract socket {name:?}"))?;
            accept_own(&listener, note)
        }
    }
}

fn name_bytes(name: &std::ffi::OsStr) -> &[u8] {
    use std::os::unix::ffi::OsStrExt;
    name.as_bytes()
}

/// One TCP connection; the port is free again before the session begins.
fn tcp(host: &str, port: u16, note: impl Fn(&str)) -> Result<Connection> {
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
    if !address.ip().is_loopback() {
        note(&format!(
            "listening at {address}: every process that reaches this address can run code as this user; \
             without a host, listen=:{port}, only this machine does"
        ));
    } else if port == 0 {
        note(&format!("listening at {address}"));
    }
    let (stream, _) = listener.accept().context("accept a controller")?;
    // Calls are small, and the other side waits for each answer.
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    both_ways(stream)
}

/// A socket in the file system, which is gone again before the session begins.
fn at_path(path: &Path, note: impl Fn(&str)) -> Result<Connection> {
    let listening = || format!("listen at {}", path.display());
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_over(path) => {
            fs::remove_file(path).with_context(listening)?;
            UnixListener::bind(path).with_context(listening)?
        }
        other => other.with_context(listening)?,
    };
    let made = identity(path);
    let connection = accept_own(&listener, note);
    // The controller may have removed it already, and something else may be there.
    if made.is_some() && identity(path) == made {
        let _ = fs::remove_file(path);
    }
    connection
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
fn accept_own(listener: &UnixListener, note: impl Fn(&str)) -> Result<Connection> {
    let own = geteuid();
    loop {
        let (stream, _) = listener.accept().context("accept a controller")?;
        let peer = socket_peercred(&stream).context("ask who has connected")?;
        if peer.uid == own || peer.uid.is_root() {
            return both_ways(stream);
        }
        note(&format!(
            "refused a connection of process {} of user {}: only user {} may connect",
            peer.pid,
            peer.uid.as_raw(),
            own.as_raw()
        ));
    }
}
