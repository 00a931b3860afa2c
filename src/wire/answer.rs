// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What wrapper functions answer.

use super::sps::{Decode, Encode, Expected, Outcome, from_bytes, to_bytes};
use crate::sys::Answer;

/// What a controller is told when something fails.
pub(crate) type Told<T> = Result<T, String>;

/// Decodes arguments, and encodes what `body` makes of them.
pub(crate) fn answer<'a, A: Decode<'a>, R: Encode>(
    args: &'a [u8],
    body: impl FnOnce(A) -> R,
) -> Answer {
    match from_bytes(args) {
        Ok(args) => Ok(to_bytes(&body(args))),
        Err(malformed) => Err(format!(
            "Could not deserialize arguments for wrapper function call: {malformed}"
        )),
    }
}

/// [`answer`] with an `SPSExpected`.
pub(crate) fn expected<'a, A: Decode<'a>, R: Encode>(
    args: &'a [u8],
    body: impl FnOnce(A) -> Told<R>,
) -> Answer {
    answer(args, |args| Expected(body(args)))
}

/// [`answer`] with an `SPSError`.
pub(crate) fn outcome<'a, A: Decode<'a>>(
    args: &'a [u8],
    body: impl FnOnce(A) -> Told<()>,
) -> Answer {
    answer(args, |args| Outcome(body(args)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_arguments_are_an_out_of_band_error() {
        let refused = answer(&[1, 2], |_: u64| ()).unwrap_err();
        assert!(
            refused.starts_with("Could not deserialize arguments for wrapper function call"),
            "{refused}"
        );
    }
}
