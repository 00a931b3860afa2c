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

/// Makes one call of an action.
fn run(call: &WrapperCall) -> Result<()> {
    if call.is_none() {
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
pub(crate) fn run_dealloc(calls: &[WrapperCall]) -> Result<()> {
    let mut result = Ok(());
    for call in calls.iter().rev() {
        result = join(result, run(call));
    }
    result
}

/// Runs the finalize calls first to last and gives the deallocation calls to remember. On failure
/// the deallocation twins of those that succeeded have run, last to first.
pub(crate) fn run_finalize(actions: Vec<Action>) -> Result<Vec<WrapperCall>> {
    let mut dealloc = heap::room_for(actions.len(), "finalize")?;
    for action in actions {
        if let Err(error) = run(&action.finalize) {
            return Err(match run_dealloc(&dealloc) {
                Ok(()) => error,
                Err(second) => error.join(second),
            });
        }
        if !action.dealloc.is_none() {
            dealloc.push(action.dealloc);
        }
    }
    Ok(dealloc)
}
