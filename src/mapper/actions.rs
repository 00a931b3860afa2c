// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Allocation actions, run in the calling thread and outside every lock.

use crate::error::{Error, Result, Status};
use crate::sys::{self, WrapperCall, WrapperResult, heap};
use crate::wire::sps::{self, ActionPair, Bytes, Call, ExecutorAddr, Outcome};

/// A call on finalize and its twin on deallocate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Action {
    /// Run on finalize.
    pub finalize: WrapperCall,
    /// Run on deallocate, if the finalize call succeeded.
    pub dealloc: WrapperCall,
}

impl<'a> From<&'a WrapperCall> for Call<'a> {
    fn from(call: &'a WrapperCall) -> Call<'a> {
        Call {
            function: ExecutorAddr(call.function()),
            args: Bytes(call.args()),
        }
    }
}

impl<'a> From<&'a Action> for ActionPair<'a> {
    fn from(action: &'a Action) -> ActionPair<'a> {
        ActionPair {
            finalize: Call::from(&action.finalize),
            dealloc: Call::from(&action.dealloc),
        }
    }
}

/// A call that an action makes; a message's needs no copy of its arguments.
pub(crate) trait ActionCall {
    fn function(&self) -> u64;

    /// Makes it in this process, which is the executor. No lock of ours may be held here.
    fn call(&self) -> WrapperResult;
}

impl ActionCall for WrapperCall {
    fn function(&self) -> u64 {
        WrapperCall::function(self)
    }

    fn call(&self) -> WrapperResult {
        WrapperCall::call(self)
    }
}

/// Makes one call of an action.
fn run(call: &impl ActionCall) -> Result<()> {
    if call.function() == 0 {
        return Ok(());
    }
    let failed = |message: String| {
        Error::new(
            Status::ActionFailed,
            format!("allocation action at {:#x}: {message}", call.function()),
        )
    };
    let unanswered = sys::unanswered();
    match call.call() {
        WrapperResult::OutOfBand(message) => Err(failed(message)),
        WrapperResult::Bytes(bytes) if bytes.is_empty() && sys::unanswered() != unanswered => {
            let what = format!("allocation action at {:#x}: its result", call.function());
            Err(heap::exhausted(&what))
        }
        WrapperResult::Bytes(bytes) => match sps::from_bytes::<Outcome>(&bytes) {
            Ok(Outcome(answer)) => answer.map_err(failed),
            Err(malformed) => Err(failed(format!(
                "its result of {} bytes is no serialized error ({malformed}); is it a wrapper \
                 function?",
                bytes.len()
            ))),
        },
    }
}

/// Appends `more` to what has failed so far.
pub(crate) fn join(so_far: Result<()>, more: Result<()>) -> Result<()> {
    match (so_far, more) {
        (Err(first), Err(second)) => Err(first.join(second)),
        (Ok(()), answer) | (answer, Ok(())) => answer,
    }
}

/// Runs the calls last to first, all of them whatever they answer.
pub(crate) fn run_dealloc(calls: &[impl ActionCall]) -> Result<()> {
    let mut result = Ok(());
    for call in calls.iter().rev() {
        result = join(result, run(call));
    }
    result
}

/// Runs the finalize calls first to last and gives the deallocation calls to remember, which come with them. On
/// failure the deallocation twins of those that succeeded have run, last to first.
pub(crate) fn run_finalize<Call: ActionCall>(
    actions: impl ExactSizeIterator<Item = (Call, Call)>,
) -> Result<Vec<Call>> {
    let mut twins = heap::room_for(actions.len(), "finalize")?;
    for (finalize, dealloc) in actions {
        if let Err(error) = run(&finalize) {
            return Err(match run_dealloc(&twins) {
                Ok(()) => error,
                Err(second) => error.join(second),
            });
        }
        if dealloc.function() != 0 {
            twins.push(dealloc);
        }
    }
    Ok(twins)
}
