// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which files can be opened, by Landlock (Linux 5.13). It is of the calling thread and those that it starts.
//!
//! Under any of these rules a process sees no other's memory, environment and descriptors in /proc, but
//! for processes that are bound alike.

use crate::error::{Error, Result, Status};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, path_beneath_rules,
};
use std::fs;
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

fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(Status::Unsupported, format!("Landlock: {error}"))
}

/// Rules about all that kernels of this version and newer ones can refuse.
fn rules(least: ABI) -> Result<RulesetCreated> {
    let newest = AccessFs::from_all(ABI::V5);
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(least))
        .map_err(failed)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(newest)
        .map_err(failed)?;
    rules.create().map_err(failed)
}

fn allow(
    rules: RulesetCreated,
    paths: impl IntoIterator<Item = impl AsRef<Path>>,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated> {
    rules
        .add_rules(path_beneath_rules(paths, access))
        .map_err(failed)
}

fn restrict(rules: RulesetCreated) -> Result<()> {
    rules.restrict_self().map_err(failed).map(drop)
}

/// No file can be opened.
pub(super) fn allow_nothing() -> Result<()> {
    restrict(rules(ABI::V1)?)
}

/// Files can be opened to be read, if they are these or lie in these.
pub(super) fn allow_reading(paths: &[PathBuf]) -> Result<()> {
    let missing = paths.iter().find(|path| fs::metadata(path).is_err());
    if let Some(path) = missing {
        let message = format!("a path to read, {}, can't be found", path.display());
        return Err(Error::new(Status::InvalidArgument, message));
    }
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    restrict(allow(rules(ABI::V1)?, paths, reading)?)
}

/// Files can be opened as before, but for devices, and for those of the system, which can be read. Before
/// Linux 5.19 no file could be moved from one folder to another, so the rules begin with that.
pub(super) fn spare_the_system() -> Result<()> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let top = fs::read_dir("/").map_err(|error| failed(format_args!("list /: {error}")))?;
    let top = top.flatten().map(|entry| entry.path());
    let others = top.filter(|path| path != Path::new("/dev") && !is_of_the_system(path));
    let rules = allow(rules(ABI::V2)?, others, AccessFs::from_all(ABI::V5))?;
    let rules = allow(rules, ["/", "/dev"], AccessFs::ReadDir.into())?;
    let rules = allow(rules, DEVICES, AccessFs::from_all(ABI::V5))?;
    restrict(allow(rules, OF_THE_SYSTEM, reading)?)
}

fn is_of_the_system(path: &Path) -> bool {
    OF_THE_SYSTEM.iter().any(|folder| path == Path::new(folder))
}
