// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Simple Packed Serialization: what wrapper functions answer.

/// Why bytes are no value of the type that was expected.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Takes `count` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], count: u64) -> Result<&'a [u8], Malformed> {
    let count = usize::try_from(count).map_err(|_| Malformed)?;
    let (head, tail) = bytes.split_at_checked(count).ok_or(Malformed)?;
    *bytes = tail;
    Ok(head)
}

fn decode_bool(bytes: &mut &[u8]) -> Result<bool, Malformed> {
    match take(bytes, 1)? {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Malformed),
    }
}

fn decode_u64(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let word = take(bytes, 8)?;
    Ok(u64::from_le_bytes(word.try_into().map_err(|_| Malformed)?))
}

fn decode_string(bytes: &mut &[u8]) -> Result<String, Malformed> {
    let length = decode_u64(bytes)?;
    Ok(String::from_utf8_lossy(take(bytes, length)?).into_owned())
}

/// SPSError: a bool "has error", and the message if it has. Bytes that follow are ignored, as
/// LLVM does.
pub(crate) fn decode_error(mut bytes: &[u8]) -> Result<Result<(), String>, Malformed> {
    if decode_bool(&mut bytes)? {
        Ok(Err(decode_string(&mut bytes)?))
    } else {
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_errors() {
        assert_eq!(decode_error(&[0]), Ok(Ok(())));
        assert_eq!(decode_error(&[0, 9]), Ok(Ok(())));
        assert_eq!(
            decode_error(b"\x01\x03\0\0\0\0\0\0\0bad"),
            Ok(Err("bad".to_owned()))
        );
        assert_eq!(decode_error(&[]), Err(Malformed));
        assert_eq!(decode_error(&[2]), Err(Malformed));
        assert_eq!(decode_error(b"\x01\x04\0\0\0\0\0\0\0bad"), Err(Malformed));
        assert_eq!(
            decode_error(b"\x01\xff\xff\xff\xff\xff\xff\xff\xffbad"),
            Err(Malformed)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode_error(&bytes);
        }

        #[test]
        fn any_message_comes_back(message in ".{0,80}") {
            let mut bytes = vec![1];
            bytes.extend((message.len() as u64).to_le_bytes());
            bytes.extend(message.as_bytes());
            prop_assert_eq!(decode_error(&bytes), Ok(Err(message)));
        }
    }
}
