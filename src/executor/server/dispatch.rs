// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calls of linked code to the controller: jit-dispatch.

use super::connection::ServerConnection;
use crate::completion::wait;
use crate::executor::llvm::InstanceRegistry;
use crate::sys::{self, Answer, OwnerCell};
use std::sync::Arc;

/// The connections that linked code can call through.
static CONNECTIONS: InstanceRegistry<ServerConnection> = InstanceRegistry::new("session");

/// The process that serves them.
static OWNER: OwnerCell = OwnerCell::new();

/// A connection that linked code can call through, while this lives.
pub(super) struct DispatchContext(u64);

impl DispatchContext {
    pub(super) fn new(connection: Arc<ServerConnection>) -> DispatchContext {
        OWNER.claim();
        DispatchContext(CONNECTIONS.add(connection))
    }

    /// The names that controllers know function and context by, and their values.
    pub(super) fn symbols(&self) -> [(&'static str, u64); 2] {
        [
            ("__llvm_orc_SimpleRemoteEPC_dispatch_ctx", self.0),
            (
                "__llvm_orc_SimpleRemoteEPC_dispatch_fn",
                sys::dispatch_address(dispatch),
            ),
        ]
    }
}

impl Drop for DispatchContext {
    fn drop(&mut self) {
        CONNECTIONS.remove(self.0);
    }
}

/// What linked code calls to call the controller; waits for the answer.
fn dispatch(context: u64, tag: u64, args: &[u8]) -> Answer {
    // Before any lock: in a child it may be held by a thread that is not there.
    if !OWNER.is_current() {
        return Err("jit_dispatch not available (forked from the executor's process)".to_owned());
    }
    let connection = CONNECTIONS
        .get(context)
        .map_err(|_| "jit_dispatch not available (EPC server shut down)".to_owned())?;
    let answer = wait(|done| connection.call(tag, args, done));
    answer.map_err(|error| error.message().to_owned())
}
