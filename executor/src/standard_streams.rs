// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Descriptors 0 to 2, which linked code reads and writes.

use anyhow::{Context, Result, bail};
use rustix::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use rustix::fs::{FileType, Mode, OFlags, fcntl_getfl, fcntl_setfl, fstat, makedev, open};
use rustix::io::{Errno, fcntl_getfd};
use rustix::stdio;

const NULL: &str = "/dev/null";
/// Its numbers: Linux' Documentation/admin-guide/devices.txt.
const NULL_NUMBERS: (u32, u32) = (1, 3);

fn stream(number: RawFd) -> BorrowedFd<'static> {
    match number {
        0 => stdio::stdin(),
        1 => stdio::stdout(),
        _ => stdio::stderr(),
    }
}

/// Which descriptors were closed.
#[derive(Debug, Default)]
pub(crate) struct Missing([bool; 3]);

impl Missing {
    /// Fails for a descriptor that the command line names and that was closed.
    pub(crate) fn refuse(&self, number: RawFd) -> Result<()> {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        if self.0.get(index) == Some(&true) {
            bail!(
                "take descriptor {number}: {}",
                std::io::Error::from(Errno::BADF)
            );
        }
        Ok(())
    }
}

/// Opens /dev/null for each that is closed. Called before anything else is opened: that would get the
/// number, and what linked code prints would go there.
pub(crate) fn open_missing() -> Result<Missing> {
    let mut missing = Missing::default();
    for number in 0..=2 {
        if fcntl_getfd(stream(number)) != Err(Errno::BADF) {
            continue;
        }
        let opened = null().with_context(|| format!("open {NULL} as descriptor {number}"))?;
        // The lowest number that is free, which is this one.
        let _ = opened.into_raw_fd();
        missing.0[number as usize] = true;
    }
    Ok(missing)
}

fn null() -> Result<OwnedFd> {
    // Inherited by programs that linked code starts, as any standard stream.
    Ok(open(NULL, OFlags::RDWR, Mode::empty())?)
}

/// Gives this process file descriptions of its own: flags such as O_NONBLOCK belong to the description,
/// which the process that started this one may use as well. `taken` are the controller's descriptors; where
/// they are among these, /dev/null takes their place, so that no output of linked code gets into the protocol.
pub(crate) fn separate(taken: &[RawFd]) -> Result<()> {
    for number in 0..=2 {
        let own = match taken.contains(&number) {
            true => Some(null().with_context(|| format!("open {NULL}"))?),
            false => reopened(number, stream(number)),
        };
        let Some(own) = own else { continue };
        let replaced = match number {
            0 => stdio::dup2_stdin(own),
            1 => stdio::dup2_stdout(own),
            _ => stdio::dup2_stderr(own),
        };
        replaced.with_context(|| format!("replace descriptor {number}"))?;
    }
    Ok(())
}

/// Opens a pipe, a terminal or /dev/null again. `None` where that is not possible or would change what is written where:
/// a socket can't be opened, a file that is opened again has a position of its own, and the system may refuse
/// what belongs to another user.
fn reopened(number: RawFd, stream: BorrowedFd<'_>) -> Option<OwnedFd> {
    let state = fstat(stream).ok()?;
    let reopens = match FileType::from_raw_mode(state.st_mode) {
        FileType::Fifo => true,
        FileType::CharacterDevice => {
            state.st_rdev == makedev(NULL_NUMBERS.0, NULL_NUMBERS.1)
                || rustix::termios::isatty(stream)
        }
        _ => false,
    };
    if !reopens {
        return None;
    }
    let flags = fcntl_getfl(stream).ok()?;
    let access = flags & OFlags::RWMODE;
    // A FIFO without another end would make this process wait.
    let how = access | OFlags::NOCTTY | OFlags::NONBLOCK;
    let own = open(format!("/proc/self/fd/{number}"), how, Mode::empty()).ok()?;
    fcntl_setfl(own.as_fd(), flags).ok()?;
    Some(own)
}
