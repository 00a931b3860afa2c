// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the controller calls: handed on to the child, or done in both processes.

use super::Supervisor;
use super::child::{Child, NO_ANSWER, answers};
use crate::completion::{Completion, wait};
use crate::error::{Error, Result, Status};
use crate::executor::server::replay::{Replay, ReplayedItem};
use crate::executor::service::{self, Function, Supervise};
use crate::lock::MutexGuard;
use crate::sys::{self, explain};
use crate::wire::service::{At, Change, Item, Reply, Reserve, ReservedAt, Step};
use crate::wire::sps::{self, Decode, Encode, Reader, from_bytes, said, to_bytes};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// How often another place is looked for where a child has something at the one that was found.
const MOST_PLACES: usize = 16;

impl Supervisor {
    /// Hands a call of the controller's on to the child.
    pub(in crate::executor::server) fn call(
        &self,
        tag: u64,
        args: Vec<u8>,
        done: Completion<Vec<u8>>,
    ) {
        let lasting = match self.lasting.get() {
            None => self.lasting_of(tag, &args),
            Some(_) => None,
        };
        let done = match lasting {
            Some(what) => {
                let lasting = Arc::clone(&self.lasting);
                done.map(move |answer: Result<Vec<u8>>| {
                    // It is there, unless there is an error instead.
                    if answer
                        .as_ref()
                        .is_ok_and(|answer| answer.first() == Some(&1))
                    {
                        let _ = lasting.set(what);
                    }
                    answer
                })
            }
            None => done,
        };
        let mut state = self.state.lock();
        match state.child.clone().filter(|_| state.ready) {
            Some(child) => {
                drop(state);
                self.hand_on(&child, tag, args, done);
            }
            None => state.held.push((tag, args, done)),
        }
    }

    pub(super) fn hand_on(
        &self,
        child: &Arc<Child>,
        tag: u64,
        args: Vec<u8>,
        done: Completion<Vec<u8>>,
    ) {
        if self.choices.limits.program.is_none() || self.choices.brief.contains(&tag) {
            return child.call(tag, args, done);
        }
        let number = child.programs.started(tag);
        let runs = Arc::clone(child);
        let done = done.map(move |answer| {
            runs.programs.ended(number);
            answer
        });
        child.call(tag, args, done);
    }

    /// What a call makes in the child that no other child would have.
    fn lasting_of(&self, tag: u64, args: &[u8]) -> Option<String> {
        let symbols = &self.setup.get()?.bootstrap_symbols;
        let (name, _) = symbols.iter().find(|(_, address)| address.0 == tag)?;
        if name.ends_with("_reserve_wrapper") || name.ends_with("Service_Reserve") {
            return Some("memory of LLVM's own memory managers".to_owned());
        }
        if name.ends_with("DylibManager_open_wrapper") {
            let mut args = Reader::new(args);
            let _instance = u64::decode(&mut args).ok()?;
            let path = sps::Bytes::decode(&mut args).ok()?;
            return (!path.0.is_empty()).then(|| format!("the library {}", said(path.0)));
        }
        None
    }

    /// The child, once it takes calls.
    fn ready_child(&self) -> Arc<Child> {
        let mut state = self.state.lock();
        loop {
            match &state.child {
                Some(child) if state.ready => return Arc::clone(child),
                _ => state = self.changed.wait(state),
            }
        }
    }

    fn apply(&self, args: &[u8]) -> Result<Vec<Reply<u64>>> {
        let mut reader = Reader::new(args);
        let malformed = |error: sps::Malformed| {
            let message = format!("jitmem's executor service: malformed arguments: {error}");
            Error::new(Status::InvalidArgument, message)
        };
        let session = u64::decode(&mut reader).map_err(malformed)?;
        let mut items = <Vec<Item<'_>>>::decode(&mut reader).map_err(malformed)?;
        let (child, plan) = loop {
            let child = self.ready_child();
            if let Some(plan) = self.replay.plan(child.number, &mut items) {
                break (child, plan);
            }
        };
        let sent: Vec<&Item<'_>> = plan.iter().filter_map(ReplayedItem::sent).collect();
        let answer = match sent.len() {
            0 => Ok(Some(Ok(Vec::new()))),
            count => {
                let mut message = to_bytes(&session);
                (count as u64).encode(&mut message);
                sent.iter().for_each(|item| item.encode(&mut message));
                let answer = child.ask(self.functions.apply.0, &message, &[]);
                answer.map(|bytes| answers(&bytes, count))
            }
        };
        let answered = match answer {
            // A session that it does not have: nothing was done.
            Ok(Some(Err(refused))) => return Err(refused),
            Ok(Some(Ok(answers))) => self.replay.answered(child.number, session, &plan, answers),
            // What it has done is not known.
            Ok(None) => {
                child.kill_for(NO_ANSWER.to_owned());
                None
            }
            Err(error) if child.ended_by(&error) => {
                self.replace(&child);
                None
            }
            // It was not asked, for the message found no room. What is to go must go: its memory is used again.
            Err(error)
                if error.status() == Status::OutOfMemory
                    && !plan.iter().any(ReplayedItem::deinitializes) =>
            {
                return Ok(service::fitting(Replay::lost(&plan, &error)));
            }
            Err(error) => {
                child.kill_for(format!("it can't be called: {}", error.message()));
                None
            }
        };
        Ok(answered.unwrap_or_else(|| lost(&plan, &child.why())))
    }

    fn reserve(&self, args: &[u8]) -> Vec<u8> {
        let _mapping = self.mapping.lock();
        let here = |function, args: &[u8]| service::call_here(function, args, Vec::new());
        let mut reader = Reader::new(args);
        let (Ok(session), Ok(_)) = (u64::decode(&mut reader), Reserve::decode(&mut reader)) else {
            return here(Function::Reserve, args).unwrap_or_default();
        };
        // Places that the child does not have, which are kept until another one is found: else it would be one of them.
        let mut refused = Vec::new();
        let answer = self.reserve_in_both(session, args, &here, &mut refused);
        if !refused.is_empty() {
            let mut message = to_bytes(&session);
            Change { changes: refused }.encode(&mut message);
            let _ = here(Function::Change, &message);
        }
        answer
    }

    fn reserve_in_both(
        &self,
        session: u64,
        args: &[u8],
        here: &dyn Fn(Function, &[u8]) -> sys::Answer,
        refused: &mut Vec<Step>,
    ) -> Vec<u8> {
        let mut why = String::new();
        for _ in 0..MOST_PLACES {
            let answer = here(Function::Reserve, args).unwrap_or_default();
            let Ok(Reply(Ok(reserved))) = from_bytes::<Reply<ReservedAt>>(&answer) else {
                return answer;
            };
            let Some(child) = self.state.lock().child.clone() else {
                return answer;
            };
            let range = reserved.range;
            let (address, size) = (range.start.0, range.end.0 - range.start.0);
            let mut message = to_bytes(&session);
            let at = At::Fixed { address };
            Reserve {
                size,
                least: size,
                at,
            }
            .encode(&mut message);
            let there = child.ask_briefly(self.functions.reserve.0, &message, &[]);
            match there.map(|there| from_bytes::<Reply<ReservedAt>>(&there)) {
                Ok(Ok(Reply(Ok(there)))) if there.range == range => return answer,
                Err(_) => {
                    // The next child has it.
                    self.replace(&child);
                    return answer;
                }
                Ok(there) => {
                    why = match there {
                        Ok(Reply(Err(failure))) => Error::from(failure).message().to_owned(),
                        Ok(Reply(Ok(_))) | Err(_) => NO_ANSWER.to_owned(),
                    };
                    refused.push(Step::Release { range });
                }
            }
        }
        let why = Error::new(
            Status::OutOfMemory,
            format!(
                "reserve a window: the child could reserve none of {MOST_PLACES} places that are free here, the last \
                 one for this reason: {why}"
            ),
        );
        to_bytes(&Reply::<ReservedAt>::from(Err(why)))
    }

    /// Done in both processes. A child in which it has another outcome is replaced by one that has it from here.
    fn change(&self, args: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8> {
        let _mapping = self.mapping.lock();
        let copies: io::Result<Vec<OwnedFd>> = descriptors
            .iter()
            .map(|one| one.as_fd().try_clone_to_owned())
            .collect();
        let copies = match copies {
            Ok(copies) => copies,
            Err(error) => {
                let error = explain("duplicate a memfd for the child", error);
                return to_bytes(&Reply::<Vec<Reply<()>>>::from(Err(error)));
            }
        };
        let answer = service::call_here(Function::Change, args, descriptors).unwrap_or_default();
        // The lock is not held while the child is asked.
        let child = self.state.lock().child.clone();
        if let Some(child) = child {
            match child.ask_briefly(self.functions.change.0, args, &copies) {
                Ok(there) if there == answer => {}
                _ => self.replace(&child),
            }
        }
        answer
    }

    fn close(&self, args: &[u8]) -> Vec<u8> {
        let session = u64::decode(&mut Reader::new(args)).unwrap_or_default();
        let child = self.ready_child();
        self.replay.forget(session);
        let there = child.ask(self.functions.close.0, args, &[]);
        let _mapping = self.mapping.lock();
        let here = service::call_here(Function::Close, args, Vec::new()).unwrap_or_default();
        // One that was forked meanwhile has it too, with nothing that would run.
        let now = self.state.lock().child.clone();
        if let Some(now) = now.filter(|now| !Arc::ptr_eq(now, &child)) {
            let _ = now.ask(self.functions.close.0, args, &[]);
        }
        there.unwrap_or(here)
    }

    /// The child, once it takes calls, and the lock that keeps another one from being forked.
    fn only_child(&self) -> (Arc<Child>, MutexGuard<'_, ()>) {
        loop {
            let child = self.ready_child();
            let mapping = self.mapping.lock();
            let now = self.state.lock().child.clone();
            if now.is_some_and(|now| Arc::ptr_eq(&now, &child)) {
                return (child, mapping);
            }
        }
    }
}

impl Supervise for Supervisor {
    fn open(&self, args: &[u8], here: &dyn Fn() -> Vec<u8>) -> Vec<u8> {
        let (child, _mapping) = self.only_child();
        let answer = here();
        if !matches!(answer.first(), Some(1)) {
            return answer;
        }
        let function = service::entry_points()[0].address;
        let there = wait(|done| self.hand_on(&child, function, args.to_vec(), done));
        if there.as_ref() != Ok(&answer) {
            // The next child has it.
            self.replace(&child);
        }
        answer
    }

    fn call(&self, function: Function, args: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8> {
        match function {
            Function::Attach => service::call_here(function, args, descriptors).unwrap_or_default(),
            Function::Reserve => self.reserve(args),
            Function::Change => self.change(args, descriptors),
            Function::Apply => to_bytes(&Reply::<Vec<Reply<u64>>>::from(self.apply(args))),
            Function::Close => self.close(args),
        }
    }
}

/// What is answered where a child has ended before it did.
fn lost(plan: &[ReplayedItem<'_>], why: &str) -> Vec<Reply<u64>> {
    let why = format!("{why}; another one takes its place");
    service::fitting(Replay::lost(plan, &Error::new(Status::ActionFailed, why)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::packet::MOST_ANSWER;

    #[test]
    fn what_is_lost_together_fits_into_one_answer() {
        let item = || Item::InitializeData {
            data: Vec::new(),
            code: Vec::new(),
            actions: Vec::new(),
        };
        let sent = |_| ReplayedItem::Sent(item(), None);
        let plan: Vec<ReplayedItem<'_>> = (0..2048).map(sent).collect();
        let answer = Reply::<Vec<Reply<u64>>>::from(Ok(lost(&plan, &"why ".repeat(30))));
        assert!(to_bytes(&answer).len() <= MOST_ANSWER);
    }
}
