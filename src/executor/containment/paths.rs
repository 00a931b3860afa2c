// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which files can be opened, by Landlock (Linux 5.13). It is of the calling thread and those that it starts.
//!
//! Under any of these rules a process sees no other's memory, environment and descriptors in /proc, but
//! for processes that are bound alike.

use crate::error::{Error, Result, Status};
use crate::sys::explain;
use crate::sys::landlock::PathRules;
use crate::sys::landlock::access::{ALL, FIRST, READ_DIR, READ_FILE, REFER};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folders whose files are the system's, and not written to.
const OF_THE_SYSTEM: [&str; 2] = ["/proc", "/sys"];

/// Devices that do no harm. The other files of /dev can't be opened at all.
const DEVICES: [&str; 10] = [
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

fn failed(error: io::Error) -> Error {
    explain("Landlock", error)
}

/// Puts rules in force that allow what is named.
#[cold]
fn restrict(needed: u64, allowed: &[(&Path, u64)]) -> Result<()> {
    let rules = PathRules::new(needed).map_err(failed)?;
    for (path, access) in allowed {
        rules.allow(path, *access).map_err(failed)?;
    }
    rules.restrict_thread().map_err(failed)
}

/// No file can be opened.
pub(super) fn allow_nothing() -> Result<()> {
    restrict(FIRST, &[])
}

/// Files can be opened to be read, if they are these or lie in these.
#[cold]
pub(super) fn allow_reading(paths: &[PathBuf]) -> Result<()> {
    let missing = paths.iter().find(|path| fs::metadata(path).is_err());
    if let Some(path) = missing {
        let message = format!("a path to read, {}, can't be found", path.display());
        return Err(Error::new(Status::InvalidArgument, message));
    }
    let read = paths.iter().map(|path| (&**path, READ_FILE | READ_DIR));
    restrict(FIRST, &read.collect::<Vec<_>>())
}

/// Files can be opened as before, but for devices, and for those of the system, which can be read. Before
/// Linux 5.19 no file could be moved from one folder to another, so the rules begin with that.
#[cold]
pub(super) fn spare_the_system() -> Result<()> {
    let top = fs::read_dir("/").map_err(failed)?;
    let top: Vec<PathBuf> = top.flatten().map(|entry| entry.path()).collect();
    let mut allowed = vec![(Path::new("/"), READ_DIR), (Path::new("/dev"), READ_DIR)];
    for path in &top {
        if path != Path::new("/dev") && !is_of_the_system(path) {
            allowed.push((path, ALL));
        }
    }
    allowed.extend(DEVICES.map(|path| (Path::new(path), ALL)));
    allowed.extend(OF_THE_SYSTEM.map(|path| (Path::new(path), READ_FILE | READ_DIR)));
    restrict(FIRST | REFER, &allowed)
}

fn is_of_the_system(path: &Path) -> bool {
    OF_THE_SYSTEM.iter().any(|folder| path == Path::new(folder))
}
