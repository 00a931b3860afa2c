// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocation actions out of a controller's message, whichever service it is for.

use crate::mapper::WrapperCall;
use crate::mapper::actions::ActionCall;
use crate::sys::{WrapperResult, call_wrapper};
use crate::wire::sps::{ActionPair, Call};

/// A call that a message names.
#[derive(Clone, Copy)]
pub(super) struct NamedCall<'a>(pub(super) Call<'a>);

impl ActionCall for NamedCall<'_> {
    fn function(&self) -> u64 {
        self.0.function.0
    }

    fn call(&self) -> WrapperResult {
        let Call { function, args } = self.0;
        // SAFETY: the controller says that it has linked wrapper functions there.
        unsafe { call_wrapper(function.0, args.0) }
    }
}

impl NamedCall<'_> {
    /// With a copy of its arguments.
    pub(super) fn kept(self) -> WrapperCall {
        let Call { function, args } = self.0;
        // SAFETY: as above.
        unsafe { WrapperCall::new(function.0, args.0.to_vec()) }
    }
}

/// The calls on finalize and deallocate that the pairs of a message stand for.
pub(super) fn from_wire<'a>(
    pairs: &'a [ActionPair<'a>],
) -> impl ExactSizeIterator<Item = (NamedCall<'a>, NamedCall<'a>)> {
    pairs
        .iter()
        .map(|pair| (NamedCall(pair.finalize), NamedCall(pair.dealloc)))
}

/// Those calls, for when the message is gone.
pub(super) fn kept(calls: Vec<NamedCall<'_>>) -> Vec<WrapperCall> {
    calls.into_iter().map(NamedCall::kept).collect()
}
