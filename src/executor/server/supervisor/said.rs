// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a child says, and what is done about it.

use super::child::{Child, Phase};
use super::{MOST_BODY, MOST_CALLS, MOST_WORDS, Supervisor};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::sys;
use crate::transport::messages::{Message, MessageReader, Withheld};
use crate::wire::frame::{Header, OUT_OF_BAND, Opcode, Setup};
use crate::wire::sps::{Outcome, from_bytes, said};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// Why nothing more is read of what a child says.
pub(super) enum Silence {
    /// It says no more; what it has said of that.
    Ended(Option<String>),
    /// It has said what it may not.
    Broken(String),
}

/// What is done about a message whose body was not kept.
#[derive(Debug)]
enum Lost {
    /// The call that it answers fails.
    Fails(Error),
    /// The call of linked code that it is gets an empty answer.
    IsNotMade,
    /// Its sender has ended with no more said.
    SaysNothing,
    /// Its sender is ended.
    Ends(String),
}

impl Supervisor {
    /// What the child says first.
    pub(super) fn introduced(&self, input: &mut MessageReader) -> Result<Setup> {
        let wrong = |why: String| {
            let why = format!("start a child for linked code: {why}");
            Error::new(Status::Disconnected, why)
        };
        match input.next() {
            Ok(Some(Message { header, body, .. })) if header.opcode == Opcode::Setup => {
                Setup::decode(&body, self.choices.layout).map_err(|error| wrong(error.to_string()))
            }
            Ok(Some(Message { header, body, .. })) if header.opcode == Opcode::Hangup => {
                Err(wrong(farewell(&body).unwrap_or_default()))
            }
            Ok(_) => Err(wrong("it has ended before it served".to_owned())),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Hands on what a child says until it ends.
    pub(super) fn read_one(
        self: &Arc<Self>,
        child: &Arc<Child>,
        input: &mut MessageReader,
    ) -> Silence {
        loop {
            let message = input.next_within(|header| self.most(child, header));
            let Message {
                header,
                body,
                withheld,
            } = match message {
                Ok(Some(message)) => message,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Silence::Broken(format!("it has sent what is no message: {error}"));
                }
                _ => return Silence::Ended(None),
            };
            let Header {
                opcode,
                sequence,
                tag,
                ..
            } = header;
            let lost = withheld.map(|why| lost(&header, why));
            match (opcode, lost) {
                (_, Some(Lost::Ends(why))) => return Silence::Broken(why),
                (_, Some(Lost::SaysNothing)) => return Silence::Ended(None),
                (_, Some(Lost::IsNotMade)) => child.answer(sequence, Vec::new()),
                (Opcode::Result, lost) => {
                    let Some(done) = child.pending.take(sequence) else {
                        let why = format!("it has answered {sequence}, which is no call");
                        return Silence::Broken(why);
                    };
                    done.complete(match (lost, tag) {
                        (Some(Lost::Fails(error)), _) => Err(error),
                        (_, OUT_OF_BAND) => Err(Error::new(Status::MapperFailed, said(&body))),
                        _ => Ok(body),
                    });
                }
                (Opcode::CallWrapper, _) => {
                    if self.calls.load(Ordering::Relaxed) >= MOST_CALLS {
                        return Silence::Broken(format!(
                            "{MOST_CALLS} calls of linked code wait for the controller's answer"
                        ));
                    }
                    self.release(child);
                    self.call_controller(child, sequence, tag, body);
                }
                (Opcode::Hangup, _) => return Silence::Ended(farewell(&body)),
                (Opcode::Setup, _) => {
                    match (Setup::decode(&body, self.choices.layout), self.setup.get()) {
                        (Ok(setup), Some(first)) if setup == *first => child.enter(Phase::Serves),
                        _ => {
                            let why = "it has not what the first one has had";
                            return Silence::Broken(why.to_owned());
                        }
                    }
                }
            }
        }
    }

    /// Bytes that a message of a child's may have. What it runs may say anything.
    fn most(&self, child: &Child, header: &Header) -> u64 {
        match header.opcode {
            Opcode::Result => child.pending.most(header.sequence),
            Opcode::CallWrapper => MOST_BODY,
            Opcode::Hangup => MOST_WORDS,
            Opcode::Setup => {
                let first = self.setup.get();
                first.map_or(0, |setup| setup.encode(self.choices.layout).len() as u64)
            }
        }
    }

    /// Linked code calls the controller.
    fn call_controller(&self, child: &Arc<Child>, sequence: u64, tag: u64, args: Vec<u8>) {
        let Some(connection) = self.connection.get().and_then(Weak::upgrade) else {
            return;
        };
        let (child, calls) = (Arc::clone(child), Arc::clone(&self.calls));
        calls.fetch_add(1, Ordering::Relaxed);
        let done = Completion::new(move |answer: Result<Vec<u8>>| {
            calls.fetch_sub(1, Ordering::Relaxed);
            // There is no way to say an error, as from any controller.
            child.answer(sequence, answer.unwrap_or_default());
        });
        connection.call_without_waiting(tag, args, done);
    }
}

/// What is done where the body of a message was not kept.
fn lost(header: &Header, why: Withheld) -> Lost {
    let size = header.body_size();
    match (header.opcode, why) {
        (Opcode::Result, Withheld::TooLarge) => Lost::Fails(Error::new(
            Status::MapperFailed,
            format!("an answer of {size} bytes: the supervisor has room for {MOST_BODY} at most"),
        )),
        (Opcode::Result, Withheld::NoRoom) => Lost::Fails(sys::heap::exhausted(&format!(
            "keep an answer of {size} bytes in the process that supervises"
        ))),
        (_, Withheld::TooLarge) => Lost::Ends(format!("it has sent {size} bytes in one message")),
        (Opcode::CallWrapper, Withheld::NoRoom) => Lost::IsNotMade,
        (Opcode::Hangup, Withheld::NoRoom) => Lost::SaysNothing,
        (Opcode::Setup, Withheld::NoRoom) => Lost::Ends(
            "its introduction found no room in the heap of the process that supervises".to_owned(),
        ),
    }
}

/// What a child says of its end.
fn farewell(body: &[u8]) -> Option<String> {
    match from_bytes::<Outcome>(body) {
        Ok(Outcome(Err(why))) => Some(why),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_in_the_heap_is_not_held_against_the_child() {
        let message = |opcode| Header::new(opcode, 1, 2, 1 << 20);
        for (opcode, room) in [
            (Opcode::Result, "OutOfMemory"),
            (Opcode::CallWrapper, "no answer"),
            (Opcode::Hangup, "nothing"),
        ] {
            let what = match lost(&message(opcode), Withheld::NoRoom) {
                Lost::Fails(error) => {
                    assert!(error.message().contains("the heap is exhausted"), "{error}");
                    format!("{:?}", error.status())
                }
                Lost::IsNotMade => "no answer".to_owned(),
                Lost::SaysNothing => "nothing".to_owned(),
                Lost::Ends(why) => why,
            };
            assert_eq!(what, room);
        }
        let Lost::Fails(error) = lost(&message(Opcode::Result), Withheld::TooLarge) else {
            panic!("the call fails");
        };
        assert!(error.message().contains("268435456 at most"), "{error}");
        for opcode in [Opcode::CallWrapper, Opcode::Hangup, Opcode::Setup] {
            let lost = lost(&message(opcode), Withheld::TooLarge);
            assert!(matches!(lost, Lost::Ends(_)), "{lost:?}");
        }
    }
}
