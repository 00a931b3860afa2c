// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What an image was made for.

use crate::error::{Error, Result, Status};
use crate::sys;

/// What must be the same where an image is stored and where it is opened, by name: the version of jitmem, the
/// processor's architecture and features, and what the host adds. It lies in the file as it is, and not as a
/// hash, so that an error can say what differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub(super) Vec<(String, String)>);

impl Default for Key {
    /// What holds for every image.
    fn default() -> Key {
        Key(Vec::new())
            .with("jitmem", env!("CARGO_PKG_VERSION"))
            .with("architecture", std::env::consts::ARCH)
            .with("processor features", sys::cpu_features())
    }
}

impl Key {
    /// The same with something else that code depends on: the linker and its version, options, the build-ids
    /// of libraries whose layout the code knows.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Key {
        self.0.push((name.into(), value.into()));
        self
    }

    /// Fails if an image was made for another.
    pub(super) fn check<'a>(
        &self,
        stored: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
    ) -> Result<()> {
        let (parts, stored_parts) = (self.0.len(), stored.len());
        let here = self.0.iter().map(|(name, value)| (&**name, &**value));
        let mut pairs = here.zip(stored);
        let differs = match pairs.find(|(here, there)| here != there) {
            Some((here, there)) if here.0 == there.0 => {
                format!("{} is {:?} here and {:?} in it", here.0, here.1, there.1)
            }
            Some((here, there)) => format!("{} here is {} in it", here.0, there.0),
            None if parts != stored_parts => {
                format!("its key has {stored_parts} parts, not {parts}")
            }
            None => return Ok(()),
        };
        let error = Error::new(
            Status::Unsupported,
            format!("made for something else: {differs}"),
        );
        Err(error.remedy("store it anew"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let key = || Key::default().with("linker", "22.1");
        let check = |stored: Key| {
            let parts = stored.0.iter();
            key().check(parts.map(|(name, value)| (&**name, &**value)))
        };
        assert_eq!(check(key()), Ok(()));
        let refused = |stored: Key| check(stored).unwrap_err();
        for (stored, named) in [
            (
                Key::default().with("linker", "19.1"),
                "\"22.1\" here and \"19.1\" in it",
            ),
            (
                Key::default().with("options", "22.1"),
                "linker here is options in it",
            ),
            (Key::default(), "3 parts, not 4"),
        ] {
            let error = refused(stored);
            assert_eq!(error.status(), Status::Unsupported);
            assert!(error.message().contains(named), "{error}");
        }
    }
}
