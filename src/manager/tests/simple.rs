// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's memory manager service in this process, behind a transport that can be told to misbehave.

use super::*;
use crate::executor::llvm::{PublishedSymbol, Services};
use crate::sys::WrapperResult;
use crate::sys::testing::call_wrapper;
use crate::transport::Transport;
use crate::wire::frame::SetupLayout;
use crate::wire::sps::{Bytes, ExecutorAddr, Expected, Outcome, from_bytes};
use std::collections::BTreeSet;

/// Which functions an executor publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Generation {
    /// LLVM 14 to 19.
    Finalize,
    /// LLVM 22.
    Initialize,
}

pub(super) const GENERATIONS: [Generation; 2] = [Generation::Finalize, Generation::Initialize];

/// What becomes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It does not reach the executor, which is a failure of the transport.
    NotSent,
    /// The executor refuses its arguments: nothing comes back.
    Refused,
    /// It is done, but no answer comes.
    Unanswered,
}

/// Function, arguments, and who waits.
type Held = (u64, Vec<u8>, Completion<Vec<u8>>);

#[derive(Default)]
struct State {
    /// Messages that go well before the next trouble.
    trouble: Option<(usize, Trouble)>,
    /// Which message met with it.
    troubled: Option<&'static str>,
    /// Reservations that the executor has.
    reserved: BTreeSet<u64>,
    /// Messages that wait to be let go.
    held: Option<Vec<Held>>,
}

pub(super) struct SimpleExecutor {
    services: Services,
    generation: Generation,
    state: Mutex<State>,
}

pub(super) const PREFIX: &str = "__llvm_orc_SimpleExecutorMemoryManager_";

impl SimpleExecutor {
    pub(super) fn new(generation: Generation) -> SimpleExecutor {
        SimpleExecutor {
            services: Services::new(false),
            generation,
            state: Mutex::default(),
        }
    }

    /// The message after `skip` others meets with trouble.
    pub(super) fn trouble(&self, skip: usize, trouble: Trouble) {
        self.state.lock().trouble = Some((skip, trouble));
    }

    /// Which message met with trouble since it was asked last. There will be none until it is told.
    pub(super) fn troubled(&self) -> Option<&'static str> {
        let mut state = self.state.lock();
        state.trouble = None;
        state.troubled.take()
    }

    /// Reservations that were not given back.
    pub(super) fn reserved(&self) -> usize {
        self.state.lock().reserved.len()
    }

    /// Messages wait from now on.
    pub(super) fn hold(&self) {
        self.state.lock().held = Some(Vec::new());
    }

    /// Lets the messages go that wait.
    pub(super) fn let_go(&self) {
        let held = self.state.lock().held.take();
        for (function, args, done) in held.into_iter().flatten() {
            self.call(function, args, done);
        }
    }

    /// What is published, without the prefix of all names.
    fn published(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let old = self.generation == Generation::Finalize;
        let symbols = self.services.symbols(SetupLayout::MapAndSymbols);
        let ours = symbols.into_iter().filter_map(move |(name, symbol)| {
            let name = name.strip_prefix(PREFIX)?;
            let other_generation = match name {
                "finalize_wrapper" | "deallocate_wrapper" => !old,
                "initialize_wrapper" | "deinitialize_wrapper" | "release_wrapper" => old,
                _ => false,
            };
            let value = match symbol {
                PublishedSymbol::Function(function) => function.address,
                PublishedSymbol::Instance(number) => number,
            };
            (!other_generation).then_some((name, value))
        });
        ours.collect::<Vec<_>>().into_iter()
    }

    /// Keeps account of what is about to be given back: its address may be reserved again before the
    /// answer is here.
    fn account_for(&self, name: &str, args: &[u8]) {
        if let "deallocate_wrapper" | "release_wrapper" = name {
            let (_, bases) = from_bytes::<(ExecutorAddr, Vec<ExecutorAddr>)>(args).unwrap();
            let mut state = self.state.lock();
            for base in bases {
                assert!(state.reserved.remove(&base.0), "{base:?} was reserved");
            }
        }
    }

    /// Keeps account of what was reserved, and of what went because its actions failed.
    fn account_after(&self, name: &str, args: &[u8], answer: &[u8]) {
        let mut state = self.state.lock();
        match name {
            "reserve_wrapper" => {
                let Expected(base) = from_bytes::<Expected<ExecutorAddr>>(answer).unwrap();
                assert!(state.reserved.insert(base.unwrap().0));
            }
            "finalize_wrapper" => {
                type Request<'a> = (ExecutorAddr, Vec<(u8, ExecutorAddr, u64, Bytes<'a>)>);
                let (_, segments) = from_bytes::<Request<'_>>(args).unwrap();
                let base = segments.iter().map(|segment| segment.1.0).min().unwrap();
                if from_bytes::<Outcome>(answer).unwrap().0.is_err() {
                    state.reserved.remove(&base);
                }
            }
            _ => {}
        }
    }
}

impl Transport for SimpleExecutor {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let known = self.published().find(|(_, value)| *value == function);
        let (name, _) = known.expect("only what is published is called");
        let trouble = {
            let mut state = self.state.lock();
            if let Some(held) = &mut state.held {
                return held.push((function, args, done));
            }
            match &mut state.trouble {
                Some((0, trouble)) => {
                    let trouble = *trouble;
                    (state.trouble, state.troubled) = (None, Some(name));
                    Some(trouble)
                }
                Some((skip, _)) => {
                    *skip -= 1;
                    None
                }
                None => None,
            }
        };
        match trouble {
            Some(Trouble::NotSent) => {
                let error = Error::new(Status::System, "the message was not sent");
                return done.complete(Err(error));
            }
            Some(Trouble::Refused) => return done.complete(Ok(Vec::new())),
            Some(Trouble::Unanswered) | None => {}
        }
        self.account_for(name, &args);
        let WrapperResult::Bytes(answer) = call_wrapper(function, &args) else {
            panic!("malformed arguments");
        };
        self.account_after(name, &args, &answer);
        if trouble.is_none() {
            done.complete(Ok(answer));
        }
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let name = name.strip_prefix(PREFIX)?;
        let mut published = self.published();
        let found = published.find(|(known, _)| *known == name);
        found.map(|(_, value)| value)
    }
}
