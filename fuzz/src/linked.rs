// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that asks the controller, as ORC's runtime does.

use crate::actions::WrapperResult;
use jitmem::wire::sps::{Decode, Reader, from_bytes, to_bytes};
use std::sync::{Mutex, PoisonError};

/// What a question is known by: the task, and which of its questions.
pub(crate) type Question = (u64, u64);

/// What linked code is told to do: ask as often, one question after the other's answer.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    /// Function and context.
    pub(crate) dispatch: (u64, u64),
    pub(crate) number: u64,
    pub(crate) questions: u64,
    /// Bytes behind each question.
    pub(crate) padding: u64,
    /// Whether it asks in a thread of its own, and the call returns at once.
    pub(crate) apart: bool,
}

/// The tag of all questions.
pub(crate) const TAG: u64 = 0x1234;

/// How each question has ended: whether it was answered.
static OUTCOMES: Mutex<Vec<(Question, bool)>> = Mutex::new(Vec::new());

/// Takes the outcomes.
pub(crate) fn outcomes() -> Vec<(Question, bool)> {
    std::mem::take(&mut OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The right answer to a question, with as many bytes behind it.
pub(crate) fn answer_to((task, index): Question, padding: usize) -> Vec<u8> {
    let mut answer = to_bytes(&(task, index));
    answer.resize(answer.len() + padding, task as u8);
    answer
}

/// The question in the arguments of a call.
pub(crate) fn question_in(args: &[u8]) -> Question {
    Decode::decode(&mut Reader::new(args)).expect("linked code asks as it was told to")
}

/// Where a wrapper function is that does what the [`Task`] in its arguments says.
pub(crate) fn address() -> u64 {
    let function: unsafe extern "C" fn(*const u8, usize) -> WrapperResult = work;
    (function as *const ()).expose_provenance() as u64
}

unsafe extern "C" fn work(args: *const u8, size: usize) -> WrapperResult {
    // SAFETY: callers keep to the ABI of wrapper functions, and a task has bytes always.
    let task = Task::decode(unsafe { std::slice::from_raw_parts(args, size) });
    let answered = if task.apart {
        std::thread::spawn(move || task.ask_all());
        0
    } else {
        task.ask_all()
    };
    WrapperResult {
        bytes: answered,
        size: 1,
    }
}

impl Task {
    pub(crate) fn encode(self) -> Vec<u8> {
        let (number, questions) = (self.number, self.questions);
        to_bytes(&(self.dispatch, number, questions, self.padding, self.apart))
    }

    fn decode(bytes: &[u8]) -> Task {
        let (dispatch, number, questions, padding, apart) =
            from_bytes(bytes).expect("the controller's own bytes");
        Task {
            dispatch,
            number,
            questions,
            padding,
            apart,
        }
    }

    /// How many questions were answered.
    fn ask_all(self) -> u64 {
        let answered = (0..self.questions).filter(|index| {
            let question = (self.number, *index);
            let answered = self.ask(question);
            let mut outcomes = OUTCOMES.lock().unwrap_or_else(PoisonError::into_inner);
            outcomes.push((question, answered));
            answered
        });
        answered.count() as u64
    }

    fn ask(self, question: Question) -> bool {
        let args = answer_to(question, self.padding as usize);
        let Some(answer) = call(self.dispatch, &args) else {
            return false;
        };
        let padding = answer.len().checked_sub(answer_to(question, 0).len());
        let padding = padding.unwrap_or_else(|| panic!("{question:?} is answered {answer:?}"));
        assert!(
            answer == answer_to(question, padding),
            "{question:?} has another's answer"
        );
        true
    }
}

/// Calls a `__orc_rt_jit_dispatch` function; `None` is an out-of-band error.
fn call((function, context): (u64, u64), args: &[u8]) -> Option<Vec<u8>> {
    type Dispatch = unsafe extern "C" fn(u64, u64, *const u8, usize) -> WrapperResult;
    let function: *const () = std::ptr::with_exposed_provenance(function as usize);
    // SAFETY: the executor has published such a function there, and `args` lives through the call.
    let WrapperResult { bytes, size } = unsafe {
        let dispatch = std::mem::transmute::<*const (), Dispatch>(function);
        dispatch(context, TAG, args.as_ptr(), args.len())
    };
    if bytes == 0 || (1..=8).contains(&size) {
        return Some(bytes.to_le_bytes()[..size].to_vec());
    }
    let block: *mut u8 = std::ptr::with_exposed_provenance_mut(bytes as usize);
    // SAFETY: that is a block of so many bytes from malloc, ours to free. (That of an error is a string,
    // of which nothing is read.)
    unsafe {
        let answer = std::slice::from_raw_parts(block, size).to_vec();
        libc::free(block.cast());
        (size > 0).then_some(answer)
    }
}
