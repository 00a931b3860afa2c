// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What keeps linked code, and this process with it, inside bounds: for a program whose whole purpose is to be
//! an executor. docs/containment.md says what each bound stops, and what it does not.
//!
//! Nothing is bounded unless it is chosen, and what is in force can't be taken off.

mod seccomp;

use crate::error::Result;

/// What is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Other programs, other processes' memory, and the administration of the system.
    NoExec,
    /// That, other processes, and everything that is not open yet.
    Sealed,
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

    /// Puts the profile in force, for good, for all threads and for those that they start.
    ///
    /// # Errors
    /// What the system says where it refuses filters.
    pub fn enter(self) -> Result<()> {
        seccomp::enter(self)
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
