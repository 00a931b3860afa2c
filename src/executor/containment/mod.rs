// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What keeps linked code, and this process with it, inside bounds: for a program whose whole purpose is to be
//! an executor. docs/containment.md says what each bound stops, and what it does not.
//!
//! Nothing is bounded unless it is chosen, and what is in force can't be taken off.

mod capabilities;
mod paths;
mod seccomp;

use super::program;
use crate::error::{Error, Result};
use crate::sys;
use std::path::PathBuf;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Profile {
    /// Other programs, other processes' memory, devices, and the administration of the system.
    NoExec = 1,
    /// That, new processes, sockets, and files but to read, and then those of chosen paths only.
    Confined = 2,
    /// That, and everything that is not open yet.
    Sealed = 3,
}

const PROFILES: [(&str, Profile); 3] = [
    ("no-exec", Profile::NoExec),
    ("confined", Profile::Confined),
    ("sealed", Profile::Sealed),
];

impl Profile {
    /// The profile that has this name.
    pub fn named(name: &str) -> Option<Profile> {
        let found = PROFILES.iter().find(|(known, _)| *known == name);
        found.map(|(_, profile)| *profile)
    }

    /// Its name, as `--seccomp` takes it.
    pub fn name(self) -> &'static str {
        let found = PROFILES.iter().find(|(_, known)| *known == self);
        found.map_or("?", |(name, _)| name)
    }
}

/// Choices of bounds. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containment {
    /// What is refused. With a profile the process also gives up its capabilities.
    pub profile: Option<Profile>,
    /// No memory is writable and executable, and none that is there becomes executable. [`Profile::Sealed`] has
    /// this, too.
    pub fixed_code: bool,
    /// No capabilities are left, whatever the profile.
    pub no_capabilities: bool,
    /// No sockets but Unix sockets.
    pub no_network: bool,
    /// No new memfds, System V shared memory, shared anonymous memory and mappings that grow down, which RLIMIT_DATA
    /// does not count.
    pub no_shared_memory: bool,
    /// What would be refused is logged by the kernel and allowed.
    pub audit: bool,
    /// What can be read under [`Profile::Confined`]: files, and folders with all in them.
    pub readable: Vec<PathBuf>,
}

/// The kernel's means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Rights of root's, all of which are dropped.
    Capabilities,
    /// Rules about paths.
    Landlock,
    /// Pages that never become executable.
    Mdwe,
    /// Filters of system calls.
    Seccomp,
}

impl Means {
    /// What `--diagnose` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Means::Capabilities => "capabilities",
            Means::Landlock => "Landlock",
            Means::Mdwe => "PR_SET_MDWE",
            Means::Seccomp => "seccomp",
        }
    }
}

/// One of the kernel's means, and why it is not in force where it is not.
#[derive(Debug)]
pub struct Layer {
    /// Which it is.
    pub means: Means,
    /// Why the system has refused it.
    pub refused: Option<Error>,
}

impl Containment {
    /// Whether pages of code stay as they are.
    pub fn fixes_code(&self) -> bool {
        !self.audit && (self.fixed_code || self.profile == Some(Profile::Sealed))
    }

    fn drops_capabilities(&self) -> bool {
        self.no_capabilities || (self.profile.is_some() && !self.audit)
    }

    /// Whether linked code can make no sockets that are connected elsewhere.
    pub fn refuses_sockets(&self) -> bool {
        !self.audit && matches!(self.profile, Some(Profile::Confined | Profile::Sealed))
    }

    /// What concerns services of this process. Called before there is a session.
    pub fn prepare(&self) {
        if self.fixes_code() {
            program::keep_code_fixed();
        }
        if self.refuses_sockets() {
            // Where there is none, a controller that asks for it is told why.
            let _ = program::listen_for_controllers();
        }
    }

    /// Takes from the calling thread what the kernel gives each thread for itself, capabilities and paths. For
    /// threads that linked code could use and that are there before [`Self::enter`] is called by another; they can't
    /// open files afterwards.
    ///
    /// # Errors
    /// What the system says.
    pub fn restrict_helper(&self) -> Result<()> {
        if self.drops_capabilities() {
            capabilities::drop_all()?;
        }
        if self.audit || self.profile.is_none() {
            return Ok(());
        }
        // Where the kernel lacks it, `enter` says so.
        let _ = paths::allow_nothing();
        Ok(())
    }

    /// Puts the bounds in force: for this thread and those that it starts; filters of system calls for
    /// all threads. Gives what the kernel was asked for.
    ///
    /// # Errors
    /// What the system says where it refuses capabilities or filters, or Landlock under
    /// [`Profile::Confined`], which is nothing without it.
    #[cold]
    pub fn enter(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        let mut layer = |means, refused| layers.push(Layer { means, refused });
        if self.drops_capabilities() {
            capabilities::drop_all()?;
            layer(Means::Capabilities, None);
        }
        if let (Some(profile), false) = (self.profile, self.audit) {
            match profile {
                Profile::NoExec => layer(Means::Landlock, paths::spare_the_system().err()),
                Profile::Confined => {
                    paths::allow_reading(&self.readable)?;
                    layer(Means::Landlock, None);
                }
                Profile::Sealed => (),
            }
        }
        if self.fixes_code() {
            let fixed = sys::deny_new_code();
            let failed = |error| crate::sys::explain("prctl(PR_SET_MDWE)", error);
            layer(Means::Mdwe, fixed.map_err(failed).err());
        }
        if seccomp::enter(self)? {
            layer(Means::Seccomp, None);
        }
        Ok(layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_have_names() {
        for (name, profile) in PROFILES {
            assert_eq!(Profile::named(name), Some(profile));
            assert_eq!(profile.name(), name);
        }
        assert_eq!(Profile::named("none"), None);
    }
}
