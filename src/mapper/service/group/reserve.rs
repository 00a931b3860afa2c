// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reserving a window at one address in all executors of a group.
//!
//! One executor chooses the place and the others are asked for exactly that. Where one of them has something there,
//! that one chooses another place, since it may have the least room. The executor that has chosen a place keeps it
//! meanwhile, so that it does not choose it again, unless another one chooses a place that overlaps it.

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
use std::mem;
use std::sync::Arc;

/// How many places are tried.
const MOST_PLACES: usize = 16;

/// A place, and the executor that has it.
type Kept = (Arc<Member>, AddressRange);

/// What the steps hand on.
pub(super) struct Reserving {
    group: Arc<Inner>,
    size: u64,
    least: u64,
    at: At,
    /// How many places not all could have, and those that the executors that chose them keep meanwhile.
    refusals: usize,
    kept: Vec<Kept>,
    /// The one that could not have the last place.
    refused_by: Option<u64>,
    done: Completion<Reserved>,
}

/// A place that one executor has chosen.
struct Chosen {
    by: Arc<Member>,
    range: AddressRange,
    in_reach: bool,
    /// Those that have it.
    had_by: Vec<Arc<Member>>,
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
            refusals: 0,
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
        member.reserve(request, done);
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
                    had_by: vec![Arc::clone(&by)],
                    by,
                    index: self.group.unwinding.make_for_several(range),
                };
                self.make_room(chosen, delivery);
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

    /// Has the others give back what they keep where the place is.
    fn make_room(mut self, chosen: Chosen, delivery: &mut Delivery) {
        let kept = mem::take(&mut self.kept).into_iter();
        let (overlapping, kept) = kept.partition(|(_, range)| range.overlaps(chosen.range));
        self.kept = kept;
        let group = Arc::clone(&self.group);
        give_back_each(group, overlapping, delivery, move |delivery| {
            self.spread(chosen, delivery);
        });
    }

    /// Asks those for the place that do not have it.
    fn spread(mut self, mut chosen: Chosen, delivery: &mut Delivery) {
        let members = {
            let mut state = self.group.state.lock();
            // Another request may have got it since: then all that have given it have given it twice.
            let mut windows = state.windows.iter();
            if windows.any(|window| window.range.overlaps(chosen.range)) {
                drop(state);
                return self.given_twice(chosen, delivery);
            }
            let mut missing = state.mapping();
            let has = |one: &Arc<Member>| chosen.had_by.iter().any(|had| had.number == one.number);
            missing.retain(|one| !has(one));
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
            let had_by = chosen.had_by.into_iter();
            self.kept.extend(had_by.map(|one| (one, chosen.range)));
            return self.finish(Err(error), delivery);
        }
        let (group, range) = (Arc::clone(&self.group), chosen.range);
        let ask = move |member: &Arc<Member>, done| {
            let done = member.in_time(Asked::Memory, done, group.putting_out(member));
            member.reserve(exactly(range), done);
        };
        gather(members, delivery, ask, |answers, delivery| {
            self.spread_to(chosen, answers, delivery);
        });
    }

    fn given_twice(self, chosen: Chosen, delivery: &mut Delivery) {
        for member in chosen.had_by {
            let error = Error::new(
                Status::MapperFailed,
                format!("it reserved {:?} twice", chosen.range),
            );
            self.group.put_out(&member, GroupChange::PutOut, error);
        }
        self.choose(delivery);
    }

    fn spread_to(
        mut self,
        mut chosen: Chosen,
        answers: Answers<ReservedAt>,
        delivery: &mut Delivery,
    ) {
        let mut refused = None;
        for (member, answer) in answers {
            match answer {
                Ok(answer) if answer.range == chosen.range.into() => {
                    chosen.had_by.push(member);
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
        let (group, range) = (Arc::clone(&self.group), chosen.range);
        let ask = move |member: &Arc<Member>, done| group.give_back(member, range, done);
        self.refusals += 1;
        let mut others = chosen.had_by;
        others.retain(|one| one.number != chosen.by.number);
        self.kept.push((chosen.by, range));
        gather(others, delivery, ask, move |_, delivery| {
            self.refused(range, error, delivery);
        });
    }

    /// A place that all have given back again but the one that keeps it.
    fn refused(self, range: AddressRange, error: Error, delivery: &mut Delivery) {
        let (start, places) = (range.start(), self.refusals);
        if matches!(self.at, At::Fixed { .. }) || places == MOST_PLACES {
            let error = error.context(format_args!(
                "reserve a window at {start:#x} in all executors of the group, {places} places tried"
            ));
            return self.finish(Err(error), delivery);
        }
        self.choose(delivery);
    }

    /// Answers once all that was kept is free again, so that what is asked for next may lie there.
    fn finish(self, answer: Result<Reserved>, delivery: &mut Delivery) {
        let done = self.done;
        give_back_each(self.group, self.kept, delivery, |delivery| {
            done.complete_with(answer, delivery);
        });
    }
}

/// Has each place given back, one after another, and goes on after the last.
fn give_back_each(
    group: Arc<Inner>,
    mut places: Vec<Kept>,
    delivery: &mut Delivery,
    then: impl FnOnce(&mut Delivery) + Send + 'static,
) {
    let Some((member, range)) = places.pop() else {
        return then(delivery);
    };
    let inner = Arc::clone(&group);
    let free = Completion::with_delivery(move |_, delivery| {
        give_back_each(group, places, delivery, then);
    });
    inner.give_back(&member, range, free);
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

impl Inner {
    /// Has an executor release a window.
    pub(super) fn give_back(
        self: &Arc<Self>,
        member: &Arc<Member>,
        window: AddressRange,
        done: Completion<()>,
    ) {
        let range = window.into();
        let done = member.in_time(Asked::Memory, done, self.putting_out(member));
        member.changes.make(Step::Release { range }, done);
    }

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
