// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Making linked objects known to debuggers.

use super::outcome;
use crate::sys::{self, Answer};
use crate::wire::sps::{AddrRange, Decode, Malformed, Reader};

/// The object's range and, since LLVM 17, whether a debugger shall look at once.
struct Object {
    range: AddrRange,
    tell: bool,
}

impl<'a> Decode<'a> for Object {
    const LEAST: usize = AddrRange::LEAST;

    fn decode(bytes: &mut Reader<'a>) -> Result<Object, Malformed> {
        let range = Decode::decode(bytes)?;
        let tell = bytes.rest().is_empty() || bool::decode(bytes)?;
        Ok(Object { range, tell })
    }
}

/// `error (addr range)`, or `error (addr range, bool)`.
pub(crate) fn register(args: &[u8]) -> Answer {
    outcome(args, |object: Object| {
        let range = object.range;
        sys::register_debug_object(range.start.0, range.size(), object.tell);
        Ok(())
    })
}

/// After LLVM 22: `error (addr range)`.
pub(super) fn deregister(args: &[u8]) -> Answer {
    outcome(args, |range: AddrRange| {
        if sys::deregister_debug_object(range.start.0) {
            return Ok(());
        }
        Err(format!(
            "deregister the debug object at {:#x}: none is registered there",
            range.start.0
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sps::{ExecutorAddr, Outcome, from_bytes, to_bytes};

    #[test]
    fn both_lengths_of_arguments_are_taken() {
        let range = AddrRange {
            start: ExecutorAddr(0x7000),
            end: ExecutorAddr(0x7010),
        };
        assert_eq!(register(&to_bytes(&range)), Ok(vec![0]));
        assert_eq!(register(&to_bytes(&(range, true))), Ok(vec![0]));
        assert_eq!(register(&to_bytes(&(range, false))), Ok(vec![0]));
        assert!(register(&to_bytes(&(range, 2u8))).is_err());
        assert!(register(&to_bytes(&0u64)).is_err());
        for _ in 0..3 {
            assert_eq!(deregister(&to_bytes(&range)), Ok(vec![0]));
        }
        let gone = deregister(&to_bytes(&range)).unwrap();
        let error = from_bytes::<Outcome>(&gone).unwrap().0.unwrap_err();
        assert!(error.contains("none is registered there"), "{error}");
    }
}
