// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which processes the numbers of /proc are, for another process that is to look one up.

use super::gate;
use rustix::fs::{readlink, stat};
use std::io;

/// How processes are numbered where this one looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Numbering {
    /// Which start of which machine.
    pub(crate) boot: Vec<u8>,
    /// The device of /proc. Since Linux 5.8 each mount has one of its own.
    pub(crate) device: u64,
    /// This process's own namespace.
    pub(crate) namespace: u64,
    /// /proc has this process's own numbers: it was mounted in the namespace.
    pub(crate) own: bool,
}

impl Numbering {
    pub(crate) fn here() -> io::Result<Numbering> {
        gate("open(/proc)")?;
        let own = readlink("/proc/self", Vec::new())?;
        Ok(Numbering {
            boot: std::fs::read("/proc/sys/kernel/random/boot_id")?,
            device: stat("/proc")?.st_dev,
            namespace: stat("/proc/self/ns/pid")?.st_ino,
            own: own.to_bytes() == std::process::id().to_string().as_bytes(),
        })
    }

    /// Whether a number of a process that counts as `other` does is the same process's here.
    pub(crate) fn has_numbers_of(&self, other: &Numbering) -> bool {
        let same_mount = self.device == other.device;
        let same_namespace = self.own && self.namespace == other.namespace;
        self.boot == other.boot && other.own && (same_mount || same_namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_a_mount_or_a_namespace_of_one_machine() {
        let here = Numbering::here().unwrap();
        assert!(here.own && here.has_numbers_of(&here));
        let other = |change: fn(&mut Numbering)| {
            let mut other = here.clone();
            change(&mut other);
            other
        };
        let mount = other(|other| other.device += 1);
        assert!(here.has_numbers_of(&mount) && mount.has_numbers_of(&here));
        let child = other(|other| (other.namespace, other.own) = (other.namespace + 1, false));
        assert!(child.has_numbers_of(&here) && !here.has_numbers_of(&child));
        let container = other(|other| (other.namespace, other.device) = (0, 0));
        assert!(!container.has_numbers_of(&here) && !here.has_numbers_of(&container));
        let machine = other(|other| other.boot[0] ^= 1);
        assert!(!machine.has_numbers_of(&here));
    }
}
