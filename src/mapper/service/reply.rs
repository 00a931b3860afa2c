// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the executor's service answers.

use crate::error::{Error, Result, Status};
use crate::wire::service::{Failure, Reply};
use crate::wire::sps::{Decode, Malformed, Reader, from_bytes};

/// The value in the bytes of a reply.
pub(super) fn decoded<T: for<'a> Decode<'a>>(bytes: &[u8]) -> Result<T> {
    parsed(bytes).and_then(|reply| reply)
}

/// What a reply says, apart from whether the bytes are one.
pub(super) fn parsed<T: for<'a> Decode<'a>>(bytes: &[u8]) -> Result<Result<T>> {
    match from_bytes::<Reply<T>>(bytes) {
        Ok(Reply(reply)) => Ok(reply.map_err(Error::from)),
        Err(malformed) => Err(Error::new(
            Status::MapperFailed,
            format!(
                "the executor answered {} bytes that are no reply: {malformed}",
                bytes.len()
            ),
        )),
    }
}

/// The values in the bytes of a reply that must have `count` of them.
pub(super) fn decoded_list<T: for<'a> Decode<'a>>(
    bytes: &[u8],
    count: usize,
) -> Result<Vec<Result<T>>> {
    let mut reader = Reader::new(bytes);
    let mut list = || {
        if !bool::decode(&mut reader)? {
            return Ok(Err(Failure::decode(&mut reader)?));
        }
        // Before anything is made of them: each takes more room here than there.
        if u64::decode(&mut reader)? != count as u64 {
            return Err(Malformed::Length(count as u64));
        }
        let replies = (0..count).map(|_| {
            let Reply(reply) = Reply::decode(&mut reader)?;
            Ok(reply.map_err(Error::from))
        });
        replies.collect::<Result<_, Malformed>>().map(Ok)
    };
    match list() {
        Ok(list) => list.map_err(Error::from),
        Err(malformed) => Err(Error::new(
            Status::MapperFailed,
            format!(
                "the executor answered {} bytes that are no {count} replies: {malformed}",
                bytes.len()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sps::to_bytes;

    #[test]
    fn as_many_replies_as_were_asked_for_are_an_answer() {
        let two = || Ok(vec![Reply(Ok(7u64)), Reply(Ok(8))]);
        let bytes = to_bytes(&Reply::from(two()));
        let found = decoded_list::<u64>(&bytes, 2).unwrap();
        assert_eq!(found, [Ok(7), Ok(8)]);
        for count in [0, 1, 3] {
            let error = decoded_list::<u64>(&bytes, count).unwrap_err();
            assert_eq!(error.status(), Status::MapperFailed);
        }
    }
}
