// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocation actions out of a controller's message, whichever service it is for.

use crate::mapper::{Action, WrapperCall};
use crate::wire::sps::{ActionPair, Call};

/// The actions that the pairs of a message stand for.
pub(super) fn from_wire(pairs: &[ActionPair<'_>]) -> Vec<Action> {
    let action = |pair: &ActionPair<'_>| Action {
        finalize: call_from_wire(pair.finalize),
        dealloc: call_from_wire(pair.dealloc),
    };
    pairs.iter().map(action).collect()
}

/// The call that a message names.
pub(super) fn call_from_wire(call: Call<'_>) -> WrapperCall {
    // SAFETY: the controller says that it has linked wrapper functions there.
    unsafe { WrapperCall::new(call.function.0, call.args.0.to_vec()) }
}
