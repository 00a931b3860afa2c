// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Mappers for an executor that knows nothing of us: they speak LLVM's own protocols, which set
//! protections for each allocation, so pages are not shared and every allocation takes a message.

mod shared;
mod simple;

pub(crate) use shared::LlvmSharedMapper;
pub(crate) use simple::LlvmSimpleMapper;

use crate::error::{Error, Result, Status};
use crate::transport::Transport;
use crate::wire::sps::{Decode, ExecutorAddr, Expected, Outcome, from_bytes};

fn said(message: String) -> Error {
    Error::new(Status::MapperFailed, format!("LLVM's executor: {message}"))
}

fn malformed(what: &str, bytes: &[u8]) -> Error {
    // An out-of-band error of the executor's arrives as no bytes at all.
    let hint = if bytes.is_empty() {
        "; it may have refused the arguments"
    } else {
        ""
    };
    said(format!(
        "{what} answered {} bytes that are no result of its kind{hint}",
        bytes.len()
    ))
}

fn value<T: for<'a> Decode<'a>>(what: &str, bytes: &[u8]) -> Result<T> {
    match from_bytes::<Expected<T>>(bytes) {
        Ok(Expected(result)) => result.map_err(said),
        Err(_) => Err(malformed(what, bytes)),
    }
}

fn outcome(what: &str, bytes: &[u8]) -> Result<()> {
    match from_bytes::<Outcome>(bytes) {
        Ok(Outcome(result)) => result.map_err(said),
        Err(_) => Err(malformed(what, bytes)),
    }
}

/// What the executor published under `name`.
fn symbol(transport: &dyn Transport, name: &str) -> Result<ExecutorAddr> {
    let found = transport.symbol(name).map(ExecutorAddr);
    found.ok_or_else(|| {
        Error::new(
            Status::Unsupported,
            format!("the executor publishes no {name}"),
        )
    })
}
