// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Memfds of a controller's that are opened by its process and their number.

use crate::error::{Error, Result, Status};
use crate::sys::{self, explain, explain_reach, socket};
use crate::wire::service::{File, Numbering};
use crate::wire::sps::Bytes;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Makes sure that files of the controller's can be opened, by one that begins with a token.
pub(super) fn attach(theirs: &Numbering<'_>, file: &File, token: Bytes<'_>) -> Result<()> {
    let what = what(file);
    let ours = sys::Numbering::here().map_err(|error| explain_reach(&what, error))?;
    let theirs = sys::Numbering {
        boot: theirs.boot.0.to_vec(),
        device: theirs.device,
        namespace: theirs.namespace,
        own: true,
    };
    // The number would be another process's, which must not be looked at.
    if !ours.has_numbers_of(&theirs) {
        return Err(Error::new(
            Status::Unsupported,
            format!(
                "{what}: controller and executor count processes apart (another namespace of processes, \
                 or another machine)"
            ),
        ));
    }
    let opened = std::fs::File::from(open(file, false)?);
    let mut found = vec![0; token.0.len()];
    let read = opened.read_exact_at(&mut found, 0);
    read.map_err(|error| explain(&what, error))?;
    match found == token.0 {
        true => Ok(()),
        false => Err(another(&what)),
    }
}

fn what(file: &File) -> String {
    let File {
        process,
        descriptor,
        ..
    } = file;
    format!("open /proc/{process}/fd/{descriptor}, a memfd of the controller's")
}

#[cold]
fn another(what: &str) -> Error {
    Error::new(
        Status::Unsupported,
        format!("{what}: it is another file; controller and executor count processes apart"),
    )
}

/// Opens a memfd of the controller's, and makes sure that it is the one that was meant.
pub(super) fn open(file: &File, write: bool) -> Result<OwnedFd> {
    let what = what(file);
    let File {
        process,
        descriptor,
        device,
        inode,
    } = *file;
    // What is another's must not be opened, which may block or do something.
    let found =
        socket::find_in(process, descriptor).map_err(|error| explain_reach(&what, error))?;
    match socket::identity(found.as_fd()) {
        Ok(identity) if identity == (device, inode) => {
            socket::open_again(&found, write).map_err(|error| explain_reach(&what, error))
        }
        Ok(_) => Err(another(&what)),
        Err(error) => Err(explain(what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_not_meant_is_refused() {
        let file = sys::MemFile::holding(c"jitmem", b"x").unwrap();
        let (device, inode) = socket::identity(file.as_fd()).unwrap();
        let meant = |inode| File {
            process: socket::process(),
            descriptor: socket::number(file.as_fd()),
            device,
            inode,
        };
        open(&meant(inode), false).unwrap();
        let error = open(&meant(inode + 1), false).unwrap_err();
        assert!(error.message().contains("another file"), "{error}");
    }

    #[test]
    fn a_file_that_was_not_meant_is_not_opened() {
        use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open as open_path, unlink};
        let path = std::env::temp_dir().join(format!("jitmem-test-{}", socket::process()));
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let fifo = open_path(&path, OFlags::PATH, Mode::empty()).unwrap();
        unlink(&path).unwrap();
        let file = File {
            process: socket::process(),
            descriptor: socket::number(fifo.as_fd()),
            device: 0,
            inode: 0,
        };
        // To open it would wait for a process that writes.
        let error = open(&file, false).unwrap_err();
        assert!(error.message().contains("another file"), "{error}");
    }

    #[test]
    fn a_file_is_known_by_who_counts_and_by_what_it_begins_with() {
        let token = [7; 16];
        let probe = sys::MemFile::holding(c"jitmem", &token).unwrap();
        let (device, inode) = socket::identity(probe.as_fd()).unwrap();
        let file = File {
            process: socket::process(),
            descriptor: socket::number(probe.as_fd()),
            device,
            inode,
        };
        let here = sys::Numbering::here().unwrap();
        let attach = |boot: &[u8], token: &[u8]| {
            let numbering = Numbering {
                boot: Bytes(boot),
                device: here.device,
                namespace: here.namespace,
            };
            attach(&numbering, &file, Bytes(token))
        };
        attach(&here.boot, &token).unwrap();
        let error = attach(b"another machine", &token).unwrap_err();
        assert!(error.message().contains("count processes apart"), "{error}");
        let error = attach(&here.boot, &[8; 16]).unwrap_err();
        assert!(error.message().contains("another file"), "{error}");
    }
}
