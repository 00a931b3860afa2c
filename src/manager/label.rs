// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a host calls an allocation: a tag for itself, names for people and their tools.

use super::Dylib;
use crate::error::{Result, invalid_argument};
use std::collections::TryReserveError;
use std::fmt;

/// Most bytes of a name.
pub(crate) const LONGEST_NAME: usize = 4096;
/// An error shows so many characters of a name.
const SHOWN: usize = 100;

/// A name, followed by a NUL, so that C can have it as it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    fn new(mut text: String) -> Name {
        text.push('\0');
        Name(text)
    }

    /// A copy. Fails if the heap has no room for it.
    pub(crate) fn copied(text: &str) -> Result<Name, TryReserveError> {
        let mut name = String::new();
        name.try_reserve_exact(text.len() + 1)?;
        name.push_str(text);
        Ok(Name::new(name))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0[..self.0.len() - 1]
    }

    /// Where C finds it.
    pub(crate) fn as_ptr(&self) -> *const std::ffi::c_char {
        self.0.as_ptr().cast()
    }

    fn check(&self, what: &str) -> Result<()> {
        let size = self.as_str().len();
        if size <= LONGEST_NAME {
            return Ok(());
        }
        Err(invalid_argument(format!(
            "{what} of {size} bytes: the most is {LONGEST_NAME}"
        )))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_str().char_indices().nth(SHOWN) {
            Some((end, _)) => write!(f, "{:?}…", &self.as_str()[..end]),
            None => write!(f, "{:?}", self.as_str()),
        }
    }
}

/// What a host says of an allocation when it asks for it. The manager keeps it for as long as the
/// allocation is there, shows it in errors and events, and counts by it. A [`Dylib`] alone will do.
///
/// ```
/// use jitmem::{Dylib, Label};
/// let label = Label::new(Dylib(1)).tag(7).name("query 7").dylib_name("main");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    dylib: Dylib,
    tag: u64,
    name: Option<Name>,
    dylib_name: Option<Name>,
}

impl Label {
    /// Of a JITDylib, and nothing else.
    pub fn new(dylib: Dylib) -> Label {
        Label {
            dylib,
            ..Label::default()
        }
    }

    /// The same with a number that means something to the host; 0 is none.
    #[must_use]
    pub fn tag(self, tag: u64) -> Label {
        Label { tag, ..self }
    }

    /// The same with a name, for instance that of the graph or function; at most 4,096 bytes.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Label {
        let name = Some(Name::new(name.into()));
        Label { name, ..self }
    }

    /// The same with the name of the JITDylib; at most 4,096 bytes.
    #[must_use]
    pub fn dylib_name(self, name: impl Into<String>) -> Label {
        let dylib_name = Some(Name::new(name.into()));
        Label { dylib_name, ..self }
    }

    pub(crate) fn names(self, name: Option<Name>, dylib_name: Option<Name>) -> Label {
        Label {
            name,
            dylib_name,
            ..self
        }
    }

    pub(super) fn dylib(&self) -> Dylib {
        self.dylib
    }

    pub(super) fn tag_number(&self) -> u64 {
        self.tag
    }

    pub(crate) fn own_name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    pub(crate) fn name_of_dylib(&self) -> Option<&Name> {
        self.dylib_name.as_ref()
    }

    /// Whether it says no more than the JITDylib's number.
    pub(super) fn is_plain(&self) -> bool {
        self.tag == 0 && self.name.is_none() && self.dylib_name.is_none()
    }

    pub(super) fn check(&self) -> Result<()> {
        let names = [(&self.name, "name"), (&self.dylib_name, "dylib_name")];
        names
            .into_iter()
            .filter_map(|(name, what)| Some((name.as_ref()?, what)))
            .try_for_each(|(name, what)| name.check(what))
    }
}

impl From<Dylib> for Label {
    fn from(dylib: Dylib) -> Label {
        Label::new(dylib)
    }
}

/// As errors show it.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name}")?,
            None => f.write_str("no name")?,
        }
        if self.tag != 0 {
            write!(f, ", tag {:#x}", self.tag)?;
        }
        if let Some(name) = &self.dylib_name {
            write!(f, ", JITDylib {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Status;

    #[test]
    fn an_error_shows_what_was_said_and_no_more() {
        let label = Label::new(Dylib(1));
        assert!(label.is_plain());
        let named = label.clone().name("f\n\"g\"").tag(255).dylib_name("main");
        assert_eq!(
            named.to_string(),
            r#""f\n\"g\"", tag 0xff, JITDylib "main""#
        );
        assert_eq!(label.tag(1).to_string(), "no name, tag 0x1");
        let long = Label::default().name("é".repeat(2000)).to_string();
        assert_eq!(long, format!("\"{}\"…", "é".repeat(SHOWN)));
    }

    #[test]
    fn a_name_has_at_most_its_bytes() {
        let of = |size| Label::default().name("x".repeat(size));
        assert_eq!(of(LONGEST_NAME).check(), Ok(()));
        let error = of(LONGEST_NAME + 1).check().unwrap_err();
        assert_eq!(error.status(), Status::InvalidArgument);
        assert_eq!(error.message(), "name of 4097 bytes: the most is 4096");
        let error = Label::default().dylib_name("x".repeat(5000)).check();
        assert!(error.unwrap_err().message().starts_with("dylib_name of"));
    }
}
