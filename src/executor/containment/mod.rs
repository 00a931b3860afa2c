// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What keeps linked code, and this process with it, inside bounds: for a program whose whole purpose is to be
//! an executor. docs/containment.md says what each bound stops, and what it does not.
//!
//! Nothing is bounded unless it is chosen, and what is in force can't be taken off.

mod seccomp;

use super::program;
use crate::error::{Error, Result};
use crate::sys;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Profile {
    /// Other programs, other processes' memory, and the administration of the system.
    NoExec = 1,
    /// That, new processes, and everything that is not open yet.
    Sealed = 3,
}

const PROFILES: [(&str, Profile); 2] = [("no-exec", Profile::NoExec), ("sealed", Profile::Sealed)];

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
    /// What is refused.
    pub profile: Option<Profile>,
    /// No memory is writable and executable, and none that is there becomes executable. [`Profile::Sealed`] has
    /// this, too.
    pub fixed_code: bool,
    /// No new memfds, System V shared memory and shared anonymous memory, which RLIMIT_DATA does not count.
    pub no_shared_memory: bool,
}

/// One of the kernel's means, and why it is not in force where it is not.
#[derive(Debug)]
pub struct Layer {
    /// The kernel's name for it.
    pub name: &'static str,
    /// Why the system has refused it.
    pub refused: Option<Error>,
}

impl Containment {
    /// Whether pages of code stay as they are.
    pub fn fixes_code(&self) -> bool {
        self.fixed_code || self.profile == Some(Profile::Sealed)
    }

    /// What concerns services of this process. Called before there is a session.
    pub fn prepare(&self) {
        if self.fixes_code() {
            program::keep_code_fixed();
        }
    }

    /// Puts the bounds in force, for all threads. Gives what the kernel was asked for.
    ///
    /// # Errors
    /// What the system says where it refuses filters.
    pub fn enter(&self) -> Result<Vec<Layer>> {
        let mut layers = Vec::new();
        let mut layer = |name, refused| layers.push(Layer { name, refused });
        if self.fixes_code() {
            let fixed = sys::deny_new_code();
            let failed = |error| crate::sys::explain("prctl(PR_SET_MDWE)", error);
            layer("PR_SET_MDWE", fixed.map_err(failed).err());
        }
        if seccomp::enter(self)? {
            layer("seccomp", None);
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
