// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reserving a window at one address in all executors of a group.
//!
//! One executor chooses the place and the others are asked for exactly that. Where one of them has something there,
//! that one chooses another place, since it may have the least room, while the first choice is kept so that it is not
//! chosen again.

use super::member::{Answers, Member, gather};
use super::{GroupChange, GroupWindow, Inner};
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::mapper::Reserved;
use crate::mapper::custom::check_window;
use crate::mapper::service::unwind::WindowIndex;
use crate::memory::placement::Placement;
use crate::page::AddressRange;
use crate::sys::MemFile;
use crate::transport::limits::Asked;
use crate::wire::service::{At, Reserve, ReservedAt, Step};
use std::sync::Arc;

/// How many places are tried.
const MOST_PLACES: usize = 8;

/// What the steps hand on.
pub(super) struct Reserving {
    group: Arc<Inner>,
    size: u64,
    least: u64,
    at: At,
    /// Places that not all could have, each with the executor that keeps it meanwhile.
    kept: Vec<(Arc<Member>, AddressRange)>,
    /// The one that could not have the last place.
    refused_by: Option<u64>,
    done: Completion<Reserved>,
}

/// A place that one executor has chosen.
struct Chosen {
    by: Arc<Member>,
    range: AddressRange,
    in_reach: bool,
    /// The numbers of those that have it.
    had_by: Vec<u64>,
    index: Option<(Arc<WindowIndex>, MemFile)>,
}

impl Reserving {
    pub(super) fn start(
        group: Arc<Inner>,
        size: u64,
        least: u64,
        placement: Placement,
        done: Completion<Reserved>,
    ) {
        let at = match placement {
            Placement::Default => At::Default {},
            Placement::Near(address) => At::Near {
                lowest: address,
                highest: address,
            },
            Placement::NearAll { lowest, highest } => At::Near { lowest, highest },
            Placement::Fixed(address) => At::Fixed { address },
        };
        let reserving = Reserving {
            group,
            size,
            least,
            at,
            kept: Vec::new(),
            refused_by: None,
            done,
        };
        reserving.choose(&mut Delivery::Inline);
    }

    /// Has one executor choose a place.
    fn choose(self, delivery: &mut Delivery) {
        let members = self.group.members();
        let refused = |one: &&Arc<Member>| Some(one.number) == self.refused_by;
        let member = members.iter().find(refused).or(members.first());
        let Some(member) = member.cloned() else {
            let error = self.group.why_empty();
            return self.finish(Err(error), delivery);
        };
        let request = Reserve {
            size: self.size,
            least: self.least,
            at: self.at.clone(),
        };
        let (group, by) = (Arc::clone(&self.group), Arc::clone(&member));
        let done = Completion::with_delivery(move |answer, delivery| {
            self.chosen(by, answer, delivery);
        });
        let done = member.in_time(Asked::Memory, done, group.putting_out(&member));
        member.reserve(&request, done);
    }

    fn chosen(self, by: Arc<Member>, answer: Result<ReservedAt>, delivery: &mut Delivery) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                return match self.group.counts(&by, &error) {
                    true => self.finish(Err(by.named(error)), delivery),
                    false => self.choose(delivery),
                };
            }
        };
        match self.checked(&answer) {
            Ok(range) => {
                let chosen = Chosen {
                    range,
                    in_reach: answer.in_reach,
                    had_by: vec![by.number],
                    by,
                    index: self.group.unwinding.make_for_several(range),
                };
                self.spread(chosen, delivery);
            }
            Err(error) => {
                self.group.put_out(&by, GroupChange::PutOut, error);
                self.choose(delivery);
            }
        }
    }

    /// A place that a window may have.
    fn checked(&self, answer: &ReservedAt) -> Result<AddressRange> {
        let range = answer.range.range().ok_or_else(|| {
            Error::new(
                Status::MapperFailed,
                format!("it reserved {:x?}", answer.range),
            )
        })?;
        let reserved = Reserved {
            range,
            in_reach: answer.in_reach,
        };
        let taken: Vec<AddressRange> = {
            let state = self.group.state.lock();
            let windows = state.windows.iter().map(|window| window.range);
            windows.collect()
        };
        check_window(reserved, self.size, &taken, self.group.layout.page_size)?;
        Ok(range)
    }

    /// Asks those for the place that do not have it.
    fn spread(self, mut chosen: Chosen, delivery: &mut Delivery) {
        let members = {
            let mut state = self.group.state.lock();
            let mut missing = state.mapping();
            missing.retain(|one| !chosen.had_by.contains(&one.number));
            if missing.is_empty() && !state.members.is_empty() {
                // From here on an executor that joins finds it.
                let (index, file) = chosen.index.take().unzip();
                let file = file.map(Arc::new);
                state.windows.push(GroupWindow {
                    range: chosen.range,
                    index: file.clone(),
                });
                let everyone = state.mapping();
                drop(state);
                if let (Some(index), Some(file)) = (index, file) {
                    let shown = self.group.unwinding.add(index);
                    self.group.show_index(everyone, chosen.range, &file, shown);
                }
                let reserved = Reserved {
                    range: chosen.range,
                    in_reach: chosen.in_reach,
                };
                return self.finish(Ok(reserved), delivery);
            }
            missing
        };
        if members.is_empty() {
            let error = self.group.why_empty();
            return self.finish(Err(error), delivery);
        }
        let request = exactly(chosen.range);
        let group = Arc::clone(&self.group);
        let ask = move |member: &Arc<Member>, done| {
            let done = member.in_time(Asked::Memory, done, group.putting_out(member));
            member.reserve(&request, done);
        };
        gather(members, delivery, ask, |answers, delivery| {
            self.spread_to(chosen, answers, delivery);
        });
    }

    fn spread_to(
        mut self,
        mut chosen: Chosen,
        answers: Answers<ReservedAt>,
        delivery: &mut Delivery,
    ) {
        let mut refused = None;
        let mut have = Vec::new();
        for (member, answer) in answers {
            match answer {
                Ok(answer) if answer.range == chosen.range.into() => {
                    chosen.had_by.push(member.number);
                    have.push(member);
                }
                Ok(answer) => {
                    let error = wrong_place(chosen.range, &answer);
                    self.group.put_out(&member, GroupChange::PutOut, error);
                }
                Err(error) if self.group.counts(&member, &error) => {
                    // One that joins does not keep the others from working.
                    match self.group.is_joining(&member) {
                        true => self.group.put_out(&member, GroupChange::PutOut, error),
                        false => {
                            self.refused_by = Some(member.number);
                            refused = Some(member.named(error));
                        }
                    }
                }
                Err(_) => {}
            }
        }
        let Some(error) = refused else {
            return self.spread(chosen, delivery);
        };
        have.iter().for_each(|member| release(member, chosen.range));
        self.kept.push((chosen.by, chosen.range));
        if matches!(self.at, At::Fixed { .. }) || self.kept.len() == MOST_PLACES {
            let places = self.kept.len();
            let start = chosen.range.start();
            let error = error.context(format_args!(
                "reserve a window at {start:#x} in all executors of the group, {places} places tried"
            ));
            return self.finish(Err(error), delivery);
        }
        self.choose(delivery);
    }

    fn finish(self, answer: Result<Reserved>, delivery: &mut Delivery) {
        for (member, range) in &self.kept {
            release(member, *range);
        }
        self.done.complete_with(answer, delivery);
    }
}

/// A request for exactly a window that others have.
pub(super) fn exactly(window: AddressRange) -> Reserve {
    Reserve {
        size: window.size(),
        least: window.size(),
        at: At::Fixed {
            address: window.start(),
        },
    }
}

/// What an executor says that has a window elsewhere.
pub(super) fn wrong_place(window: AddressRange, answer: &ReservedAt) -> Error {
    Error::new(
        Status::MapperFailed,
        format!(
            "it reserved {:x?} where exactly {window:?} was asked for",
            answer.range
        ),
    )
}

fn release(member: &Member, range: AddressRange) {
    let range = range.into();
    member
        .changes
        .make(Step::Release { range }, Completion::new(|_| ()));
}

impl Inner {
    /// Has executors look in the index of a window.
    fn show_index(
        self: &Arc<Self>,
        members: Vec<Arc<Member>>,
        window: AddressRange,
        index: &MemFile,
        shown: Completion<()>,
    ) {
        let group = Arc::clone(self);
        let ask = |member: &Arc<Member>, done| member.changes.index(window.into(), index, done);
        gather(
            members,
            &mut Delivery::Inline,
            ask,
            move |answers, delivery| {
                let mut all = answers.into_iter();
                let failed = all.find_map(|(member, answer)| {
                    answer.err().filter(|error| group.counts(&member, error))
                });
                shown.complete_with(failed.map_or(Ok(()), Err), delivery);
            },
        );
    }

    fn is_joining(&self, member: &Member) -> bool {
        let state = self.state.lock();
        state.joining.iter().any(|one| one.number == member.number)
    }
}
