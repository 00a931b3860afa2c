// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What this process is to the system: its user, its root folder, its namespaces. The kernel keeps them for each
//! thread.

use crate::contain::Bound;
use anyhow::{Context, Result};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{
    DumpableBehavior, Gid, Uid, chdir, chroot, getegid, geteuid, set_dumpable_behavior,
};
use rustix::thread::{
    UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};
use std::fs;
use std::path::{Path, PathBuf};

/// The choices of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Isolation {
    /// User and group to become.
    pub(crate) user: Option<(u32, u32)>,
    /// The folder to have as root.
    pub(crate) root: Option<PathBuf>,
    /// Whether to have namespaces of its own.
    pub(crate) namespaces: bool,
}

/// Those of its own that a process with threads can have. A PID namespace is for children only and refuses
/// threads.
const NAMESPACES: [(&str, UnshareFlags); 4] = [
    ("network namespace", UnshareFlags::NEWNET),
    ("mount namespace", UnshareFlags::NEWNS),
    ("IPC namespace", UnshareFlags::NEWIPC),
    ("UTS namespace", UnshareFlags::NEWUTS),
];

impl Isolation {
    /// Whether there is anything to be given up after which rights would lead back to it.
    pub(crate) fn is_chosen(&self) -> bool {
        *self != Isolation::default()
    }

    /// Has this process allowed what is the system's to allow, where it is not root. Called before there are
    /// threads.
    pub(crate) fn begin(&self) -> Vec<Bound> {
        let needs_rights = self.namespaces || self.root.is_some();
        match needs_rights && !geteuid().is_root() {
            true => vec![Bound::of("user namespace", own_user_namespace())],
            false => Vec::new(),
        }
    }

    /// Isolates the calling thread and those that it starts, and says what of it the system has refused.
    pub(crate) fn enter(&self) -> Result<Vec<Bound>> {
        let mut bounds = Vec::new();
        if self.namespaces {
            let each = |(name, flag)| Bound::of(name, own_namespace(flag));
            bounds.extend(NAMESPACES.map(each));
        }
        if let Some(folder) = &self.root {
            let entered = enter_root(folder);
            entered.with_context(|| format!("--root: have {} as root folder", folder.display()))?;
            bounds.push(Bound::of("--root", Ok(())));
        }
        if let Some((user, group)) = self.user {
            let told = || format!("--user: become user {user} of group {group}, which takes root");
            become_user(user, group).with_context(told)?;
            bounds.push(Bound::of("--user", Ok(())));
        }
        Ok(bounds)
    }
}

fn own_namespace(flag: UnshareFlags) -> Result<()> {
    // SAFETY: descriptors stay shared.
    unsafe { unshare_unsafe(flag) }?;
    if flag == UnshareFlags::NEWNS {
        // What the system mounts later is not for this process.
        let alone = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", alone)?;
    }
    Ok(())
}

/// A user namespace that has this user and group alone, under their own numbers. There it has all rights, until it
/// gives them up.
fn own_user_namespace() -> Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }?;
    for (file, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{user} {user} 1")),
        ("gid_map", format!("{group} {group} 1")),
    ] {
        let path = Path::new("/proc/self").join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn enter_root(folder: &Path) -> Result<()> {
    // Threads that are there share the root folder with this one.
    own_namespace(UnshareFlags::FS)?;
    chroot(folder)?;
    Ok(chdir("/")?)
}

fn become_user(user: u32, group: u32) -> Result<()> {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    // Or else files in /proc/self would be root's.
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// Reads UID or UID:GID; the group's number is the user's where it is left out.
pub(crate) fn user(text: &str) -> Result<(u32, u32)> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    // All bits mean that it is left as it is.
    let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX);
    number(user)
        .zip(number(group))
        .with_context(|| format!("--user: \"{text}\" is not UID or UID:GID, in numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(user("7").unwrap(), (7, 7));
        assert_eq!(user("7:8").unwrap(), (7, 8));
        for text in ["", "nobody", "7:", ":8", "-1", "4294967295", "7:4294967295"] {
            let error = user(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("--user: \"{text}\" is not UID or UID:GID, in numbers")
            );
        }
    }
}
