// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The token by which a controller shows an executor that it may connect.

use crate::error::{Result, Status, invalid_argument};
use crate::sys::{StreamWriter, explain, socket};
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;

/// Bytes that a token has: 128 bits at least.
pub const TOKEN_SIZES: RangeInclusive<usize> = 16..=4096;

/// Sends the token that `jitmem-executor --token-file` wants over a connected stream socket, before anything
/// else is sent there and before [`Stream::connect`](super::Stream::connect): its size in eight bytes, the lowest
/// first, and its bytes. Nothing is encrypted. An executor closes the connection on which another token comes.
///
/// # Errors
/// `InvalidArgument` if it is no connected stream socket, or for a token of another size; `Disconnected`.
pub fn send_token(descriptor: BorrowedFd<'_>, token: &[u8]) -> Result<()> {
    if !TOKEN_SIZES.contains(&token.len()) {
        return Err(invalid_argument(format!(
            "a token of {} bytes: want {} to {}",
            token.len(),
            TOKEN_SIZES.start(),
            TOKEN_SIZES.end()
        )));
    }
    let own = descriptor.try_clone_to_owned();
    let own = own.map_err(|error| explain("duplicate a socket", error))?;
    socket::check_stream(&own)
        .map_err(|error| invalid_argument(format!("no connected stream socket: {error}")))?;
    let writer = StreamWriter::new(own);
    let size = (token.len() as u64).to_le_bytes();
    let sent = writer.and_then(|writer| writer.write(&size, token));
    sent.map_err(|error| {
        crate::error::Error::system(Status::Disconnected, "send a token to the executor", error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_size_goes_ahead() {
        let (here, mut there) = UnixStream::pair().unwrap();
        send_token(here.as_fd(), b"0123456789abcdef").unwrap();
        drop(here);
        let mut sent = Vec::new();
        there.read_to_end(&mut sent).unwrap();
        assert_eq!(sent[..8], 16u64.to_le_bytes());
        assert_eq!(&sent[8..], b"0123456789abcdef");
    }

    #[test]
    fn what_can_not_be_sent_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        let status = |token: &[u8]| send_token(here.as_fd(), token).unwrap_err().status();
        assert_eq!(status(b"short"), Status::InvalidArgument);
        assert_eq!(status(&[1; 4097]), Status::InvalidArgument);
        drop(there);
        assert_eq!(status(&[1; 16]), Status::Disconnected);
        let (pipe, _writer) = std::io::pipe().unwrap();
        let refused = send_token(pipe.as_fd(), &[1; 16]).unwrap_err();
        assert_eq!(refused.status(), Status::InvalidArgument);
    }
}
