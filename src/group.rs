// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Alloc groups: the protection and lifetime that the bytes of a segment share; and what code is for.

use crate::error::{Error, Result, invalid_argument};
use std::fmt;

/// Protection of executor memory, as the executor sees it.
///
/// No value is both writable and executable: the invariant "no W+X" holds by construction.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protection(u8);

impl Protection {
    const READ_BIT: u8 = 1;
    const WRITE_BIT: u8 = 2;
    const EXEC_BIT: u8 = 4;

    /// No access.
    pub(crate) const NONE: Protection = Protection(0);
    /// Constants.
    pub const READ: Protection = Protection(Self::READ_BIT);
    /// Data.
    pub const READ_WRITE: Protection = Protection(Self::READ_BIT | Self::WRITE_BIT);
    /// Code.
    pub const READ_EXEC: Protection = Protection(Self::READ_BIT | Self::EXEC_BIT);

    /// From bits 0 (read), 1 (write) and 2 (execute), as LLVM's `MemProt` and the wire have them.
    ///
    /// # Errors
    /// `InvalidArgument` for other bits and for writable and executable together.
    #[inline]
    pub fn from_bits(bits: u32) -> Result<Protection> {
        match Self::checked(bits) {
            Some(protection) => Ok(protection),
            None => Err(Self::refused(bits)),
        }
    }

    /// [`Protection::from_bits`] without words.
    #[inline]
    pub(crate) fn checked(bits: u32) -> Option<Protection> {
        const CHANGING: u32 = (Protection::WRITE_BIT | Protection::EXEC_BIT) as u32;
        let possible = bits & !7 == 0 && bits & CHANGING != CHANGING;
        possible.then_some(Protection(bits as u8))
    }

    #[cold]
    fn refused(bits: u32) -> Error {
        invalid_argument(match bits & !7 {
            0 => format!(
                "protection {bits:#x} is writable and executable at once, which jitmem never maps; \
                 put code and data into two segments"
            ),
            _ => {
                format!("protection {bits:#x} has bits other than read 1, write 2 and execute 4")
            }
        })
    }

    /// The bits again.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// May the executor read it?
    pub fn readable(self) -> bool {
        self.0 & Self::READ_BIT != 0
    }

    /// May the executor write it?
    pub fn writable(self) -> bool {
        self.0 & Self::WRITE_BIT != 0
    }

    /// May the executor run it?
    pub fn executable(self) -> bool {
        self.0 & Self::EXEC_BIT != 0
    }
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set, letter| if set { letter } else { '-' };
        write!(
            f,
            "{}{}{}",
            flag(self.readable(), 'r'),
            flag(self.writable(), 'w'),
            flag(self.executable(), 'x')
        )
    }
}

/// How long a segment lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Lifetime {
    /// Until it is deallocated.
    Standard = 0,
    /// Until the finalize actions have run.
    Finalize = 1,
    /// Never in executor memory.
    NoAlloc = 2,
}

impl Lifetime {
    /// From the number that C passes.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that names no lifetime.
    #[inline]
    pub fn from_code(code: u32) -> Result<Lifetime> {
        match code {
            0 => Ok(Lifetime::Standard),
            1 => Ok(Lifetime::Finalize),
            2 => Ok(Lifetime::NoAlloc),
            _ => Err(Self::refused(code)),
        }
    }

    #[cold]
    fn refused(code: u32) -> Error {
        invalid_argument(format!(
            "lifetime {code} is none of standard 0, finalize 1 and no-alloc 2"
        ))
    }
}

/// Protection and lifetime together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AllocGroup {
    /// What the executor may do with it.
    pub protection: Protection,
    /// How long it lives.
    pub lifetime: Lifetime,
}

impl AllocGroup {
    /// Bytes of this protection that live so long.
    pub const fn new(protection: Protection, lifetime: Lifetime) -> AllocGroup {
        AllocGroup {
            protection,
            lifetime,
        }
    }
}

/// Of standard lifetime.
impl From<Protection> for AllocGroup {
    fn from(protection: Protection) -> AllocGroup {
        AllocGroup::new(protection, Lifetime::Standard)
    }
}

/// What the code of a segment is for. Code of one hint lies together, so that what runs often is dense:
/// it takes fewer pages of memory, and fewer entries of the processor's caches for addresses.
///
/// It has an effect on segments of standard lifetime that may be read and run, and not written; and in windows
/// of 32 MiB and more. Where no further chunk is to be had, and where half of a window's chunks are in use, code
/// lies among that of other hints. Of segments of one graph with different hints, parts may lie on both sides of
/// other graphs' code, where libgcc's search of sections of frames that were registered does not find
/// the later ones; an index of frames does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CodeHint {
    /// Nothing is known.
    #[default]
    Normal = 0,
    /// It runs often.
    Hot = 1,
    /// It runs rarely: paths of errors, initializers.
    Cold = 2,
    /// Jumps to code that lies elsewhere.
    Stub = 3,
}

impl CodeHint {
    /// How early code lies where code of several hints is stored together: what runs often first.
    pub(crate) fn rank(self) -> u8 {
        match self {
            CodeHint::Hot => 0,
            CodeHint::Normal => 1,
            CodeHint::Stub => 2,
            CodeHint::Cold => 3,
        }
    }

    pub(crate) const ALL: [CodeHint; 4] = [
        CodeHint::Normal,
        CodeHint::Hot,
        CodeHint::Cold,
        CodeHint::Stub,
    ];

    /// From the number that C passes.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that names no hint.
    #[inline]
    pub fn from_code(code: u32) -> Result<CodeHint> {
        match code {
            0 => Ok(CodeHint::Normal),
            1 => Ok(CodeHint::Hot),
            2 => Ok(CodeHint::Cold),
            3 => Ok(CodeHint::Stub),
            _ => Err(Self::refused(code)),
        }
    }

    #[cold]
    fn refused(code: u32) -> Error {
        invalid_argument(format!(
            "code hint {code} is none of normal 0, hot 1, cold 2 and stub 3"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_and_executable_is_no_protection() {
        for bits in 0..8 {
            assert_eq!(
                Protection::from_bits(bits).is_err(),
                bits & 6 == 6,
                "{bits}"
            );
        }
        assert!(Protection::from_bits(8).is_err());
        assert!(Protection::from_bits(0x101).is_err());
        assert_eq!(format!("{:?}", Protection::READ_EXEC), "r-x");
        assert!(Lifetime::from_code(3).is_err());
        for hint in CodeHint::ALL {
            assert_eq!(CodeHint::from_code(hint as u32).ok(), Some(hint));
        }
        assert!(CodeHint::from_code(4).is_err());
    }
}
