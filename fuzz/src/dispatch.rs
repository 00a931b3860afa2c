// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A controller whose linked code calls it, and which answers as it likes.

use crate::executor::Executor;
use crate::input::Input;
use crate::linked::{self, Question, TAG, Task, answer_to, question_in};
use jitmem::wire::frame::{Header, Opcode, SetupLayout, message};
use std::collections::{BTreeMap, BTreeSet};

/// Each may hold a thread until the end.
const MOST_TASKS: u64 = 24;

pub struct Controller {
    executor: Executor,
    tasks: Vec<Task>,
    /// Tasks by the numbers of their calls.
    called: BTreeMap<u64, Task>,
    /// What those have answered so far.
    results: BTreeMap<u64, Vec<u8>>,
    /// Messages that are certain to come.
    due: usize,
    /// Questions by their numbers, and those that have an answer.
    open: BTreeMap<u64, Question>,
    answered: BTreeMap<u64, Question>,
    end: Option<End>,
}

/// How the controller has ended the session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Broken,
}

impl Controller {
    pub fn new(input: &mut Input<'_>) -> Controller {
        // What it knows shares threads; what it does not know gets a thread each time.
        let services = match input.below(2) {
            0 => Vec::new(),
            _ => vec![linked::address()],
        };
        Controller {
            executor: Executor::with(SetupLayout::MapAndSymbols, services),
            tasks: Vec::new(),
            called: BTreeMap::new(),
            results: BTreeMap::new(),
            due: 0,
            open: BTreeMap::new(),
            answered: BTreeMap::new(),
            end: None,
        }
    }

    /// Does something; `false` when the session has been ended.
    pub fn step(&mut self, input: &mut Input<'_>) -> bool {
        match input.below(16) {
            0..=4 => self.start(input),
            5..=10 => self.answer(input),
            11 => self.receive(),
            // An answer too many, to a question or to none.
            12 => match input.one_of(&self.answered.keys().copied().collect::<Vec<_>>()) {
                Some(number) => self.break_with(result(number, 0, input.bytes())),
                None => self.receive(),
            },
            13 => {
                let asked_at_most: u64 = self.tasks.iter().map(|task| task.questions).sum();
                let number = asked_at_most.saturating_add(input.number());
                self.break_with(result(number, 0, input.bytes()));
            }
            // One that is none, or not whole.
            14 => match self.open.first_key_value() {
                Some((number, question)) => {
                    let answer = answer_to(*question, input.byte().into());
                    let frame = match input.below(2) {
                        0 => result(*number, input.number().max(1), &answer),
                        _ => {
                            let mut frame = result(*number, 0, &answer);
                            frame.truncate(input.below(frame.len()).max(1));
                            frame
                        }
                    };
                    self.break_with(frame);
                }
                None => self.receive(),
            },
            _ => {
                let hangup = message(Opcode::Hangup, 0, input.number(), input.bytes());
                self.executor.send(&hangup);
                self.end = Some(End::InOrder);
            }
        }
        self.end.is_none()
    }

    fn break_with(&mut self, frame: Vec<u8>) {
        self.executor.send(&frame);
        self.end = Some(End::Broken);
    }

    /// Calls linked code, which asks.
    fn start(&mut self, input: &mut Input<'_>) {
        let number = self.tasks.len() as u64;
        if number == MOST_TASKS {
            return self.answer(input);
        }
        let symbol = |name| self.executor.symbol(name);
        let task = Task {
            dispatch: (
                symbol("__llvm_orc_SimpleRemoteEPC_dispatch_fn"),
                symbol("__llvm_orc_SimpleRemoteEPC_dispatch_ctx"),
            ),
            number,
            questions: [1, 2, 3, 0][input.below(4)],
            padding: [0, 64, 5000, 40_000][input.below(4)],
            apart: input.below(4) == 1,
        };
        let sequence = self.executor.next();
        let args = task.encode();
        let call = message(Opcode::CallWrapper, sequence, linked::address(), &args);
        self.executor.send(&call);
        self.due += 1 + usize::from(task.apart && task.questions > 0);
        self.called.insert(sequence, task);
        self.tasks.push(task);
    }

    /// Waits for a message, if one is certain to come.
    fn receive(&mut self) {
        if self.due == 0 {
            return;
        }
        self.due -= 1;
        let (header, body) = self.executor.receive();
        match header.opcode {
            Opcode::Result => {
                let before = self.results.insert(header.sequence, body);
                assert!(before.is_none(), "{header:?} is the second");
            }
            _ => {
                assert_eq!((header.opcode, header.tag), (Opcode::CallWrapper, TAG));
                let question = question_in(&body);
                let task = &self.tasks[question.0 as usize];
                assert_eq!(body, answer_to(question, task.padding as usize));
                let twice = self.answered.contains_key(&header.sequence);
                let before = self.open.insert(header.sequence, question);
                assert!(before.is_none() && !twice, "{header:?} is the second");
            }
        }
    }

    /// Answers any question that is open.
    fn answer(&mut self, input: &mut Input<'_>) {
        while self.open.is_empty() && self.due > 0 {
            self.receive();
        }
        let numbers: Vec<u64> = self.open.keys().copied().collect();
        let Some(number) = input.one_of(&numbers) else {
            return;
        };
        let question = self.open[&number];
        let padding = [0, 1, 300, 70_000][input.below(4)];
        let answer = answer_to(question, padding);
        self.executor.send(&result(number, 0, &answer));
        self.open.remove(&number);
        self.answered.insert(number, question);
        // It asks on, or returns, unless it has returned before.
        let task = &self.tasks[question.0 as usize];
        let last = question.1 + 1 == task.questions;
        self.due += usize::from(!(last && task.apart));
    }

    /// Answers what is open, or ends the session without, and answers then.
    pub fn end(mut self, all: bool, late: bool) {
        while all && self.end.is_none() && (self.due > 0 || !self.open.is_empty()) {
            self.answer(&mut Input::new(&[]));
        }
        if late && self.end != Some(End::Broken) {
            if self.end.is_none() {
                self.executor.send(&message(Opcode::Hangup, 0, 0, &[]));
            }
            for (number, question) in &self.open {
                self.executor
                    .send(&result(*number, 0, &answer_to(*question, 0)));
            }
        }
        let called = |header: Header| assert_eq!(header.tag, TAG);
        let (rest, served) = self.executor.end_with(called);
        let broken = self.end == Some(End::Broken);
        assert_eq!(served.is_err(), broken, "{served:?}");
        // Each question has ended, once, and was answered if an answer came before the end.
        let outcomes = linked::outcomes();
        let answered: BTreeSet<Question> = self.answered.into_values().collect();
        let asked: BTreeSet<Question> = outcomes.iter().map(|(question, _)| *question).collect();
        let planned: u64 = self.tasks.iter().map(|task| task.questions).sum();
        assert_eq!(
            (outcomes.len() as u64, asked.len() as u64),
            (planned, planned)
        );
        for (question, was_answered) in outcomes {
            assert_eq!(was_answered, answered.contains(&question), "{question:?}");
        }
        for (sequence, body) in rest {
            let before = self.results.insert(sequence, body);
            assert!(before.is_none(), "{sequence} is answered twice");
        }
        assert!(broken || self.results.keys().eq(self.called.keys()));
        for (sequence, body) in self.results {
            let task = self.called[&sequence];
            let count = answered.iter().filter(|question| question.0 == task.number);
            let count = if task.apart { 0 } else { count.count() };
            assert_eq!(body, [count as u8]);
        }
    }
}

fn result(sequence: u64, tag: u64, body: &[u8]) -> Vec<u8> {
    message(Opcode::Result, sequence, tag, body)
}
