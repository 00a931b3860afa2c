// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The token by which a controller shows that it may connect: its size in eight bytes, the lowest first, and its
//! bytes, before anything else that it sends.

use anyhow::{Context, Result, bail, ensure};
use jitmem::transport::TOKEN_SIZES;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::env;
use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// The token itself, where no file is named. No option takes it: the command line is there for all to see.
pub(crate) const VARIABLE: &str = "JITMEM_EXECUTOR_TOKEN";

/// How long a controller may take to send it.
const TIME: Duration = Duration::from_secs(10);

/// What controllers have to send.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(Vec<u8>);

impl Token {
    /// Reads a file of which only its owner knows the content; white space at its end is no part of the token.
    pub(crate) fn from_file(path: &Path) -> Result<Token> {
        let reading = || format!("--token-file: read {}", path.display());
        let mut file = File::open(path).with_context(reading)?;
        let metadata = file.metadata().with_context(reading)?;
        let (mode, owner) = (metadata.mode(), metadata.uid());
        let own = rustix::process::geteuid().as_raw();
        ensure!(
            owner == own || owner == 0,
            "--token-file: {} is user {owner}'s, who knows what is in it: want one of user {own}",
            path.display()
        );
        ensure!(
            mode & 0o077 == 0,
            "--token-file: {} can be used by other users (mode {:o}): chmod 600",
            path.display(),
            mode & 0o777
        );
        let mut bytes = Vec::new();
        let most = *TOKEN_SIZES.end() as u64 + 2;
        file.by_ref()
            .take(most)
            .read_to_end(&mut bytes)
            .with_context(reading)?;
        Token::new(bytes.trim_ascii_end()).context("--token-file")
    }

    /// The one of the environment, if there is one. Processes of this user can read it there.
    pub(crate) fn from_environment() -> Result<Option<Token>> {
        let bytes = env::var_os(VARIABLE).map(OsStringExt::into_vec);
        let token = bytes.map(|bytes| Token::new(&bytes).context(VARIABLE));
        token.transpose()
    }

    fn new(bytes: &[u8]) -> Result<Token> {
        ensure!(
            TOKEN_SIZES.contains(&bytes.len()),
            "a token of {} bytes: want {} to {}, from a random source",
            bytes.len(),
            TOKEN_SIZES.start(),
            TOKEN_SIZES.end()
        );
        Ok(Token(bytes.to_vec()))
    }

    /// Reads what a controller sends, no byte more than the token, and fails unless it is the token.
    pub(crate) fn check(&self, socket: &OwnedFd) -> Result<()> {
        let deadline = Instant::now() + TIME;
        let mut size = [0; 8];
        read(socket, &mut size, deadline)?;
        ensure!(
            u64::from_le_bytes(size) == self.0.len() as u64,
            "what it sent first is not the token"
        );
        let mut bytes = vec![0; self.0.len()];
        read(socket, &mut bytes, deadline)?;
        ensure!(self.equals(&bytes), "its token is another one");
        Ok(())
    }

    /// Takes as long wherever the first difference is.
    fn equals(&self, bytes: &[u8]) -> bool {
        let pairs = self.0.iter().zip(bytes);
        let different = pairs.fold(0, |different, (own, other)| {
            black_box(different | (own ^ other))
        });
        different == 0 && self.0.len() == bytes.len()
    }
}

fn read(socket: &OwnedFd, mut buffer: &mut [u8], deadline: Instant) -> Result<()> {
    while !buffer.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => bail!("it sent no token for {} s", TIME.as_secs()),
            Ok(_) | Err(Errno::INTR) => (),
            Err(error) => return Err(error).context("wait for its token"),
        }
        match rustix::net::recv(socket, &mut *buffer, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => bail!("it hung up before its token"),
            Ok((count, _)) => buffer = &mut buffer[count..],
            Err(Errno::INTR | Errno::AGAIN) => (),
            Err(error) => return Err(error).context("read its token"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    const WORDS: &[u8] = b"a token of bytes";

    fn sent(bytes: &[u8]) -> Result<()> {
        let (mut controller, own) = UnixStream::pair().unwrap();
        controller.write_all(bytes).unwrap();
        drop(controller);
        Token::new(WORDS).unwrap().check(&own.into())
    }

    #[test]
    fn only_the_token_is_let_in() {
        let good = [&16u64.to_le_bytes(), WORDS].concat();
        sent(&good).unwrap();
        sent(&[&good[..], b"more"].concat()).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            sent(&bad).unwrap_err();
            sent(&good[..place]).unwrap_err();
        }
        // A size that would be too much to read.
        sent(&u64::MAX.to_le_bytes()).unwrap_err();
    }

    #[test]
    fn tokens_that_can_be_guessed_are_refused() {
        assert!(Token::new(b"fifteen bytes..").is_err());
        assert!(Token::new(&[1; 4097]).is_err());
    }
}
