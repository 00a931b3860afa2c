// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Changes of what lies where in the executor's windows, and reservations of windows, strictly one
//! message after the other, so that addresses which were given back can be taken again without waiting.

use super::descriptor_passing::{DescriptorPassing, file_of};
use super::link::Link;
use crate::callback_queue::Delivery;
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::lock::Mutex;
use crate::page::AddressRange;
use crate::sys::socket::MOST_DESCRIPTORS;
use crate::sys::{MemFile, explain};
use crate::transport::pending::of_parent;
use crate::wire::service::{Change, File, Reserve, ReservedAt, Step};
use crate::wire::sps::{AddrRange, Encode};
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// The queue of changes.
#[derive(Clone)]
pub(super) struct Changes(Arc<Inner>);

struct Inner {
    link: Arc<Link>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Of which it is not known that the executor has done them; they go in front of what comes next.
    again: Vec<Again>,
    /// The reservation that is the next to go was preceded by those.
    tried_again: bool,
    under_way: bool,
}

enum Waiting {
    Change(OneChange),
    Reserve(Reserve, Completion<ReservedAt>),
}

struct OneChange {
    /// None: completes when all before it have been answered.
    step: Option<Step>,
    /// Goes along with the message; or stays open here until the executor has opened it.
    file: Option<OwnedFd>,
    done: Completion<()>,
}

/// What gives address space back, and had no answer.
struct Again {
    gives_back: GivesBack,
    /// Has been completed if nothing waits for the executor.
    done: Option<Completion<()>>,
}

#[derive(Clone, Copy)]
enum GivesBack {
    Chunk(AddrRange),
    Window(AddrRange),
}

impl GivesBack {
    fn step(self) -> Step {
        match self {
            GivesBack::Chunk(range) => Step::Unmap { range },
            GivesBack::Window(range) => Step::Release { range },
        }
    }

    fn overlaps(self, other: AddressRange) -> bool {
        let (GivesBack::Chunk(range) | GivesBack::Window(range)) = self;
        range.range().is_some_and(|range| range.overlaps(other))
    }
}

/// What goes next.
enum Next {
    Nothing,
    Changes(Vec<Again>, Vec<OneChange>),
    Reserve(Reserve, Completion<ReservedAt>),
}

impl Queue {
    fn take_next(&mut self) -> Next {
        let reserves = |waiting: &Waiting| matches!(waiting, Waiting::Reserve(..));
        self.under_way = !self.waiting.is_empty();
        let mut changes = Vec::new();
        // What is done again has no descriptors, and does not go by itself.
        while changes.len() < MOST_DESCRIPTORS && !self.waiting.front().is_none_or(reserves) {
            if let Some(Waiting::Change(change)) = self.waiting.pop_front() {
                changes.push(change);
            }
        }
        match self.waiting.front() {
            _ if !changes.is_empty() => {}
            None => return Next::Nothing,
            Some(_) if !self.again.is_empty() && !self.tried_again => self.tried_again = true,
            Some(_) => {
                self.tried_again = false;
                match self.waiting.pop_front() {
                    Some(Waiting::Reserve(request, done)) => return Next::Reserve(request, done),
                    _ => unreachable!("changes come first"),
                }
            }
        }
        Next::Changes(std::mem::take(&mut self.again), changes)
    }
}

impl Changes {
    pub(super) fn new(link: Arc<Link>) -> Changes {
        Changes(Arc::new(Inner {
            link,
            queue: Mutex::default(),
        }))
    }

    /// Changes that wait until they are [let go](Changes::let_go), so that asking for one calls nothing.
    pub(super) fn held(link: Arc<Link>) -> Changes {
        let changes = Changes::new(link);
        changes.0.queue.lock().under_way = true;
        changes
    }

    /// Sends what has waited, once.
    pub(super) fn let_go(&self) {
        self.0.send(&mut Delivery::Inline);
    }

    /// Maps a memfd of ours; if `private`, the executor copies pages when it writes them.
    pub(super) fn map(
        &self,
        range: AddrRange,
        protection: u8,
        file: &MemFile,
        private: bool,
        done: Completion<()>,
    ) {
        self.with_file(file, done, |file| match (file, private) {
            (Some(file), false) => Step::MapFile {
                range,
                protection,
                file,
            },
            (None, false) => Step::Map { range, protection },
            (Some(file), true) => Step::MapPrivateFile {
                range,
                protection,
                file,
            },
            (None, true) => Step::MapPrivate { range, protection },
        });
    }

    /// A change with a file: one that the executor opens, or that goes along.
    fn with_file(
        &self,
        file: &MemFile,
        done: Completion<()>,
        step: impl FnOnce(Option<File>) -> Step,
    ) {
        let clone = file.as_fd().try_clone_to_owned();
        let clone = clone.map_err(|error| explain("duplicate a memfd", error));
        let step = |clone: &OwnedFd| -> Result<Step> {
            match self.0.link.passing() {
                Some(DescriptorPassing::Files) => Ok(step(Some(file_of(clone.as_fd())?))),
                _ => Ok(step(None)),
            }
        };
        match clone.and_then(|clone| Ok((step(&clone)?, clone))) {
            Ok((step, clone)) => {
                let (step, file) = (Some(step), Some(clone));
                self.push_change(OneChange { step, file, done }, &mut Delivery::Inline);
            }
            // In its turn, as all changes: who asks may hold a lock that `done` takes.
            Err(error) => {
                let failed = done.map(move |answer: Result<()>| answer.and(Err(error)));
                self.when_done(failed, &mut Delivery::Inline);
            }
        }
    }

    /// Maps a memfd of ours in place of the one before. [`is_unknown`] tells of an error whether it may be
    /// mapped all the same.
    pub(super) fn replace(&self, range: AddrRange, file: &MemFile, done: Completion<()>) {
        self.with_file(file, done, |file| match file {
            Some(file) => Step::ReplaceFile { range, file },
            None => Step::Replace { range },
        });
    }

    /// Has the unwinder look in an index of a window.
    pub(super) fn index(&self, window: AddrRange, file: &MemFile, done: Completion<()>) {
        self.with_file(file, done, |file| match file {
            Some(file) => Step::IndexFile { window, file },
            None => Step::Index { window },
        });
    }

    /// Any change that needs no file.
    pub(super) fn make(&self, step: Step, done: Completion<()>) {
        let (step, file) = (Some(step), None);
        self.push_change(OneChange { step, file, done }, &mut Delivery::Inline);
    }

    /// Reserves a window, in its turn among the changes.
    pub(super) fn reserve(&self, request: Reserve, done: Completion<ReservedAt>) {
        self.push(Waiting::Reserve(request, done), &mut Delivery::Inline);
    }

    /// Completes once all that was asked for before has been answered.
    pub(super) fn when_done(&self, done: Completion<()>, delivery: &mut Delivery) {
        let (step, file) = (None, None);
        self.push_change(OneChange { step, file, done }, delivery);
    }

    fn push_change(&self, change: OneChange, delivery: &mut Delivery) {
        self.push(Waiting::Change(change), delivery);
    }

    fn push(&self, waiting: Waiting, delivery: &mut Delivery) {
        // A forked child has the queue as another thread had it, and none of the threads that go on with it.
        if !self.0.link.owner().is_current() {
            return match waiting {
                Waiting::Change(change) => change.done.complete_with(Err(of_parent()), delivery),
                Waiting::Reserve(_, done) => done.complete_with(Err(of_parent()), delivery),
            };
        }
        let mut queue = self.0.queue.lock();
        queue.waiting.push_back(waiting);
        if !std::mem::replace(&mut queue.under_way, true) {
            drop(queue);
            self.0.send(delivery);
        }
    }
}

/// What an answer is about.
enum Asked {
    Nothing,
    GivesBack(GivesBack),
    Replace,
    Index,
    Other,
}

impl Asked {
    fn of(step: Option<&Step>) -> Asked {
        match step {
            None => Asked::Nothing,
            Some(Step::Unmap { range }) => Asked::GivesBack(GivesBack::Chunk(*range)),
            Some(Step::Release { range }) => Asked::GivesBack(GivesBack::Window(*range)),
            Some(Step::Replace { .. } | Step::ReplaceFile { .. }) => Asked::Replace,
            Some(Step::Index { .. } | Step::IndexFile { .. }) => Asked::Index,
            Some(_) => Asked::Other,
        }
    }
}

/// Whether the executor may have done what it was asked, though there is no answer.
fn is_lost(answers: &Result<Vec<Result<()>>>) -> bool {
    match answers {
        Ok(_) => false,
        Err(error) => error.status() != Status::Disconnected,
    }
}

/// The status of an error after which it is not known what was done: one that no executor can say.
const UNKNOWN: Status = Status::Internal;

fn unknown(answer: Result<()>) -> Result<()> {
    answer.map_err(|error| Error::new(UNKNOWN, error.message()))
}

/// Whether the executor may have done what failed so.
pub(super) fn is_unknown(error: &Error) -> bool {
    error.status() == UNKNOWN
}

impl Inner {
    /// Has a chunk unmapped again with the next message that a message without an answer was to unmap, and
    /// a window released: else they would lie in the way of others. What is gone by then is refused, which
    /// does no harm.
    fn keep_lost(
        &self,
        done: Vec<(Asked, Option<Completion<()>>)>,
    ) -> Vec<(Asked, Option<Completion<()>>)> {
        let keep = |(asked, done): (Asked, Option<Completion<()>>)| {
            let Asked::GivesBack(gives_back) = asked else {
                return (asked, done);
            };
            // Nothing is written where a chunk may still be; who releases a window need not wait.
            let (kept, done) = match gives_back {
                GivesBack::Chunk(_) => (done, None),
                GivesBack::Window(_) => (None, done),
            };
            let again = Again {
                gives_back,
                done: kept,
            };
            self.queue.lock().again.push(again);
            (asked, done)
        };
        done.into_iter().map(keep).collect()
    }

    /// Forgets what was to be given back once more where a new window lies: it has been.
    fn forget_given_back(&self, window: AddressRange, delivery: &mut Delivery) {
        let forgotten: Vec<Again> = {
            let again = &mut self.queue.lock().again;
            let (forgotten, kept) = std::mem::take(again)
                .into_iter()
                .partition(|again| again.gives_back.overlaps(window));
            *again = kept;
            forgotten
        };
        for done in forgotten.into_iter().filter_map(|again| again.done) {
            done.complete_with(Ok(()), delivery);
        }
    }

    /// Sends what is next. What completes without being sent gets `delivery`.
    fn send(self: &Arc<Self>, delivery: &mut Delivery) {
        let next = self.queue.lock().take_next();
        match next {
            Next::Nothing => {}
            Next::Changes(again, waiting) => self.send_changes(again, waiting, delivery),
            Next::Reserve(request, done) => self.send_reserve(&request, done),
        }
    }

    fn send_reserve(self: &Arc<Self>, request: &Reserve, done: Completion<ReservedAt>) {
        let mut message = self.link.message();
        request.encode(&mut message);
        let inner = Arc::clone(self);
        let answered = Completion::with_delivery(move |answer: Result<Vec<u8>>, delivery| {
            let reserved = answer.and_then(|bytes| inner.link.reply::<ReservedAt>(&bytes));
            if let Some(window) = reserved.as_ref().ok().and_then(|at| at.range.range()) {
                inner.forget_given_back(window, delivery);
            }
            inner.send(delivery);
            done.complete_with(reserved, delivery);
        });
        let reserve = self.link.functions().reserve;
        self.link.call(reserve, message, &[], answered);
    }

    fn send_changes(
        self: &Arc<Self>,
        again: Vec<Again>,
        waiting: Vec<OneChange>,
        delivery: &mut Delivery,
    ) {
        let (mut changes, mut files, mut done) = (Vec::new(), Vec::new(), Vec::new());
        for Again {
            gives_back,
            done: one,
        } in again
        {
            done.push((Asked::GivesBack(gives_back), one));
            changes.push(gives_back.step());
        }
        for OneChange {
            step,
            file,
            done: one,
        } in waiting
        {
            done.push((Asked::of(step.as_ref()), Some(one)));
            changes.extend(step);
            files.extend(file);
        }
        if changes.is_empty() {
            self.send(delivery);
            for done in done.into_iter().filter_map(|(_, done)| done) {
                done.complete_with(Ok(()), delivery);
            }
            return;
        }
        let (count, mut message) = (changes.len(), self.link.message());
        Change { changes }.encode(&mut message);
        let files = Arc::new(files);
        let (inner, open) = (Arc::clone(self), Arc::clone(&files));
        let answered = Completion::with_delivery(move |answer: Result<Vec<u8>>, delivery| {
            drop(open);
            let answers = answer.and_then(|bytes| inner.link.replies(&bytes, count));
            let lost = is_lost(&answers);
            let done = match lost {
                true => inner.keep_lost(done),
                false => done,
            };
            let mut answers = answers
                .unwrap_or_else(|error| vec![Err(error); count])
                .into_iter();
            let mut later = Vec::with_capacity(done.len());
            for (asked, done) in done {
                let answer = match asked {
                    Asked::Nothing => None,
                    Asked::Replace if lost => answers.next().map(unknown),
                    Asked::GivesBack(_) | Asked::Replace | Asked::Index | Asked::Other => {
                        answers.next()
                    }
                };
                let answer = answer.unwrap_or(Ok(()));
                match (asked, done) {
                    // What is in a chunk looks at it, which another thread may be told of once the next ones go.
                    (Asked::Index, Some(done)) => done.complete_with(answer, delivery),
                    (_, Some(done)) => later.push((done, answer)),
                    (_, None) => {}
                }
            }
            inner.send(delivery);
            for (done, answer) in later {
                done.complete_with(answer, delivery);
            }
        });
        let descriptors = match self.link.passing() {
            Some(DescriptorPassing::Files) => &[],
            _ => files.as_slice(),
        };
        let change = self.link.functions().change;
        self.link.call(change, message, descriptors, answered);
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;
    use crate::completion::wait;
    use crate::executor::service::here::Here;
    use crate::transport::Transport;

    /// What becomes of a call whose answer does not arrive.
    pub(in crate::mapper::service) enum Lost {
        NotDone,
        Done,
        /// What arrives is no answer.
        Nonsense,
    }

    /// An executor in this process of which some answers are lost.
    #[derive(Default)]
    pub(in crate::mapper::service) struct Losing(
        pub(in crate::mapper::service) Mutex<VecDeque<Option<Lost>>>,
    );

    /// Maps a chunk and takes it back: the window is there.
    pub(in crate::mapper::service) fn use_window(changes: &Changes, range: AddrRange) {
        let (protection, commit) = (1, false);
        let map = Step::MapOwn {
            range,
            protection,
            commit,
        };
        for step in [map, Step::Unmap { range }] {
            wait(|done| changes.make(step, done)).unwrap();
        }
    }

    impl Transport for Losing {
        fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
            let lost = self.0.lock().pop_front().flatten();
            let error = || Err(Error::new(Status::OutOfMemory, "no answer"));
            match lost {
                None => Here.call(function, args, done),
                Some(Lost::NotDone) => done.complete(error()),
                Some(Lost::Nonsense) => done.complete(Ok(vec![7])),
                Some(Lost::Done) => Here.call(function, args, done.map(move |_| error())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Losing, Lost, use_window};
    use super::*;
    use crate::executor::service::Service;
    use crate::executor::service::here::{Here, OPEN};
    use crate::page::AddressRange;
    use crate::sys;
    use crate::transport::Transport;
    use crate::wire::service::{At, Reserve, ReservedAt};
    use crate::wire::sps::ExecutorAddr;
    use std::sync::mpsc::channel;

    type Call = Box<dyn FnOnce() + Send>;

    /// An executor in this process whose answers come when the test wants them.
    #[derive(Default)]
    struct Late(Mutex<Option<Vec<Call>>>);

    impl Late {
        /// Keeps calls from now on, and does those that were kept.
        fn keep(&self) -> usize {
            let kept = self.0.lock().replace(Vec::new()).unwrap_or_default();
            let count = kept.len();
            kept.into_iter().for_each(|call| call());
            count
        }
    }

    impl Transport for Late {
        fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
            match &mut *self.0.lock() {
                Some(kept) => kept.push(Box::new(move || Here.call(function, args, done))),
                None => Here.call(function, args, done),
            }
        }
    }

    #[test]
    fn a_child_that_is_forked_while_changes_are_under_way_is_refused() {
        let (service, transport) = (Service::new(), Arc::new(Late::default()));
        let link = Link::open(transport.clone(), OPEN, service.instance(), false).unwrap();
        let changes = Changes::new(Arc::new(link));
        transport.keep();
        let range = AddrRange {
            start: ExecutorAddr(0),
            end: ExecutorAddr(0),
        };
        changes.make(Step::Release { range }, Completion::new(|_| ()));
        let locked = changes.0.queue.lock();
        assert!(sys::in_a_child(|| {
            let (sender, answers) = channel();
            let other = sender.clone();
            let done = Completion::new(move |answer: Result<()>| sender.send(answer).unwrap());
            changes.make(Step::Release { range }, done);
            let request = Reserve {
                size: 1 << 20,
                least: 1 << 20,
                at: At::Default {},
            };
            let done = Completion::new(move |answer: Result<ReservedAt>| {
                other.send(answer.map(drop)).unwrap();
            });
            changes.reserve(request, done);
            let refused = |answer: Result<()>| {
                answer.is_err_and(|error| error.status() == Status::InvalidHandle)
            };
            answers
                .try_iter()
                .filter_map(|answer| refused(answer).then_some(()))
                .count()
                == 2
        }));
        drop(locked);
        transport.keep();
    }

    #[test]
    fn answers_find_what_was_asked_for() {
        let (service, transport) = (Service::new(), Arc::new(Late::default()));
        let link = Link::open(transport.clone(), OPEN, service.instance(), false).unwrap();
        let page = sys::page_size().bytes();
        let (size, least, at) = (16 * page, 16 * page, At::Default {});
        let request = Reserve { size, least, at };
        let window: ReservedAt = link.ask(link.functions().reserve, &request).unwrap();
        let window = AddressRange::new(window.range.start.0, size).unwrap();
        let changes = Changes::new(Arc::new(link));
        let (sender, answers) = channel();
        let map = |number: u64, first: u64| {
            let sender = sender.clone();
            let done = Completion::new(move |answer: Result<()>| {
                sender.send((number, answer.is_ok())).unwrap();
            });
            let start = window.start() + first * page;
            let range = AddrRange {
                start: ExecutorAddr(start),
                end: ExecutorAddr(start + page),
            };
            let (protection, commit) = (1, false);
            changes.make(
                Step::MapOwn {
                    range,
                    protection,
                    commit,
                },
                done,
            );
        };
        transport.keep();
        map(0, 0);
        // These wait for that, and go together; two of them want what is taken.
        for (number, place) in [(1, 0), (2, 1), (3, 2), (4, 1)] {
            map(number, place);
        }
        assert_eq!(transport.keep(), 1);
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), [(0, true)]);
        assert_eq!(transport.keep(), 1);
        let expected = [(1, false), (2, true), (3, true), (4, false)];
        assert_eq!(answers.try_iter().collect::<Vec<_>>(), expected);
        // No more of them than descriptors that one message takes.
        let many = MOST_DESCRIPTORS as u64 + 10;
        (0..=many).for_each(|number| map(number, 0));
        for most in [1, MOST_DESCRIPTORS, 10] {
            assert_eq!(transport.keep(), 1);
            assert_eq!(answers.try_iter().count(), most);
        }
        *transport.0.lock() = None;
    }

    #[test]
    fn an_index_is_known_to_be_shown_before_what_comes_next_is_done() {
        let service = Service::new();
        let link = Link::open(Arc::new(Here), OPEN, service.instance(), false).unwrap();
        let changes = Changes::held(Arc::new(link));
        let (sender, completed) = channel();
        let note = |name: &'static str| {
            let sender = sender.clone();
            move || sender.send(name).unwrap()
        };
        let window = AddrRange {
            start: ExecutorAddr(0),
            end: ExecutorAddr(0),
        };
        let file = sys::MemFile::holding(c"jitmem", &[0; 8]).unwrap();
        let (index, reserve, last) = (note("index"), note("reserve"), note("last"));
        changes.index(window, &file, Completion::new(move |_| index()));
        // What waits behind a reservation goes with another message.
        let (size, least, at) = (0, 0, At::Default {});
        let request = Reserve { size, least, at };
        changes.reserve(request, Completion::new(move |_| reserve()));
        let release = Step::Release { range: window };
        changes.make(release, Completion::new(move |_| last()));
        changes.let_go();
        // Each answer has come within the sending of its message.
        assert_eq!(completed.try_iter().next(), Some("index"));
        assert_eq!(completed.try_iter().count(), 2);
    }

    #[test]
    fn a_window_whose_release_was_lost_is_released_before_another_is_reserved() {
        let (service, transport) = (Service::new(), Arc::new(Losing::default()));
        let link = Link::open(transport.clone(), OPEN, service.instance(), false).unwrap();
        let page = sys::page_size().bytes();
        let (size, least) = (16 * page, 16 * page);
        let changes = Changes::new(Arc::new(link));
        let reserve = |at| {
            let request = Reserve { size, least, at };
            crate::completion::wait(|done| changes.reserve(request, done)).map(|at| at.range)
        };
        let make = |step| crate::completion::wait(|done| changes.make(step, done));
        let range = reserve(At::Default {}).unwrap();
        let address = range.start.0;
        // By turns: not done, done, and lost when it goes again, too.
        let mut fates = vec![
            vec![Some(Lost::NotDone)],
            vec![Some(Lost::Done)],
            vec![Some(Lost::NotDone), Some(Lost::Done)],
            vec![Some(Lost::Done), Some(Lost::NotDone)],
        ];
        while let Some(fate) = fates.pop() {
            transport.0.lock().extend(fate);
            make(Step::Release { range }).unwrap_err();
            assert_eq!(reserve(At::Fixed { address }).unwrap(), range);
            // What was lost is not done to the new window.
            use_window(&changes, range);
        }
    }
}
