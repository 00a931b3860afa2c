// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Filters of system calls, assembled from lists: classic BPF over the kernel's `struct seccomp_data`, which has the
//! call's number, the architecture of that number, and six arguments of 64 bits.
//!
//! Each list becomes blocks that are passed in order: "if it is this call and its tests hold, answer that".

use super::{Conditional, Test};
use crate::executor::service::listeners_descriptor;
use crate::sys::seccomp::ARCHITECTURE;
use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long, sock_filter,
};
use rustix::process::getpid;

/// Where `struct seccomp_data` has the number, the architecture, and the lower half of the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS: u32 = 16;

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
const IF_EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const ANSWER: u32 = BPF_RET | BPF_K;

/// A jump past the block, until the block's length is known.
const PAST: u8 = u8::MAX;

/// What a call that is refused answers.
pub(super) fn answer(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | (errno.unsigned_abs() & libc::SECCOMP_RET_DATA)
}

pub(super) struct Filter {
    code: Vec<sock_filter>,
}

fn step(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    // Codes have 16 bits.
    let code = code as u16;
    sock_filter { code, jt, jf, k }
}

fn number(call: c_long) -> u32 {
    u32::try_from(call).expect("numbers of calls are small")
}

/// Where an argument is, or its upper half.
fn argument(index: u8, upper: bool) -> u32 {
    ARGUMENTS + 8 * u32::from(index) + 4 * u32::from(upper)
}

impl Filter {
    /// A call by another architecture's numbers (`int 0x80`) ends the process.
    #[cold]
    pub(super) fn begin() -> Filter {
        let code = vec![
            step(LOAD, ARCHITECTURE_AT, 0, 0),
            step(IF_EQUAL, ARCHITECTURE, 1, 0),
            step(ANSWER, libc::SECCOMP_RET_KILL_PROCESS, 0, 0),
            step(LOAD, NUMBER, 0, 0),
        ];
        Filter { code }
    }

    /// Answers these calls. They are many comparisons, but the kernel remembers which numbers are allowed always
    /// (Linux 5.11).
    #[cold]
    pub(super) fn calls(&mut self, calls: &[c_long], answer: u32) {
        for call in calls {
            self.code.push(step(IF_EQUAL, number(*call), 0, 1));
            self.code.push(step(ANSWER, answer, 0, 0));
        }
    }

    /// Answers calls all of whose tests hold.
    #[cold]
    pub(super) fn calls_if(&mut self, calls: &[Conditional], answer: u32) {
        for (call, tests) in calls {
            if tests.is_empty() {
                self.calls(&[*call], answer);
                continue;
            }
            let mut block = vec![step(IF_EQUAL, number(*call), 0, PAST)];
            for test in *tests {
                test.assemble(&mut block);
            }
            block.push(step(ANSWER, answer, 0, 0));
            let length = block.len();
            for (index, step) in block.iter_mut().enumerate() {
                for jump in [&mut step.jt, &mut step.jf] {
                    if *jump == PAST {
                        let distance = u8::try_from(length - index - 1);
                        *jump = distance
                            .ok()
                            .filter(|distance| *distance != PAST)
                            .expect("short lists");
                    }
                }
            }
            self.code.append(&mut block);
            // The tests have loaded other things.
            self.code.push(step(LOAD, NUMBER, 0, 0));
        }
    }

    /// The filter, with the answer to all else.
    #[cold]
    pub(super) fn end(mut self, otherwise: u32) -> Vec<sock_filter> {
        self.code.push(step(ANSWER, otherwise, 0, 0));
        self.code
    }
}

impl Test {
    /// Goes on behind what it appends if it holds, and past the block if not.
    #[cold]
    fn assemble(&self, block: &mut Vec<sock_filter>) {
        let mut equal = |index, upper, value| {
            block.push(step(LOAD, argument(index, upper), 0, 0));
            block.push(step(IF_EQUAL, value, 0, PAST));
        };
        match *self {
            Test::Is(index, mask, values) => {
                block.push(step(LOAD, argument(index, false), 0, 0));
                if mask != u32::MAX {
                    block.push(step(AND, mask, 0, 0));
                }
                for (left, value) in (0..values.len()).rev().zip(values) {
                    let behind = u8::try_from(left).expect("short lists");
                    let otherwise = if left == 0 { PAST } else { 0 };
                    block.push(step(IF_EQUAL, *value, behind, otherwise));
                }
            }
            Test::IsNot(index, values) => {
                block.push(step(LOAD, argument(index, false), 0, 0));
                block.extend(values.iter().map(|value| step(IF_EQUAL, *value, PAST, 0)));
            }
            Test::IsOwn(index) => {
                equal(index, false, getpid().as_raw_nonzero().get().unsigned_abs());
            }
            // Without a listener no descriptor has this number.
            Test::IsListener(index) => {
                equal(index, false, listeners_descriptor().unwrap_or(u32::MAX));
            }
            Test::IsNull(index) => {
                equal(index, false, 0);
                equal(index, true, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libc::{SECCOMP_RET_ALLOW as ALLOW, SECCOMP_RET_KILL_PROCESS as KILL};
    use proptest::prelude::*;

    struct Call {
        architecture: u32,
        number: u32,
        arguments: [u64; 6],
    }

    /// What the kernel would answer.
    fn run(filter: &[sock_filter], call: &Call) -> u32 {
        let load = |at: u32| match at {
            NUMBER => call.number,
            ARCHITECTURE_AT => call.architecture,
            _ => {
                let half = at - ARGUMENTS;
                let argument = call.arguments[half as usize / 8];
                (argument >> (8 * (half % 8))) as u32
            }
        };
        let (mut place, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[place];
            place += 1;
            let mut jump = |holds| place += usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                LOAD => value = load(k),
                AND => value &= k,
                IF_EQUAL => jump(value == k),
                ANSWER => return k,
                other => panic!("code {other}"),
            }
        }
    }

    fn holds(test: &Test, arguments: &[u64; 6]) -> bool {
        let lower = |index: u8| arguments[usize::from(index)] as u32;
        match *test {
            Test::Is(index, mask, values) => values.contains(&(lower(index) & mask)),
            Test::IsNot(index, values) => !values.contains(&lower(index)),
            Test::IsOwn(index) => lower(index) == std::process::id(),
            Test::IsListener(index) => lower(index) == listeners_descriptor().unwrap_or(u32::MAX),
            Test::IsNull(index) => arguments[usize::from(index)] == 0,
        }
    }

    const ALWAYS: &[c_long] = &[9, 3, 4, 5, 1];
    const CONDITIONAL: &[Conditional] = &[
        (20, &[Test::Is(0, 0xf, &[1, 2, 3]), Test::IsNot(1, &[4, 5])]),
        (20, &[Test::Is(0, u32::MAX, &[7])]),
        (21, &[Test::IsNull(5), Test::IsOwn(2)]),
        (22, &[]),
        (23, &[Test::IsListener(0)]),
    ];

    fn small() -> impl Strategy<Value = u64> {
        let own = u64::from(std::process::id());
        prop_oneof![
            0..20u64,
            Just(1 << 32),
            Just(own),
            Just(own | 1 << 32),
            any::<u64>()
        ]
    }

    proptest! {
        #[test]
        fn filters_answer_as_their_lists_say(
            number in 0..24u32,
            arguments in proptest::array::uniform6(small()),
        ) {
            let mut filter = Filter::begin();
            filter.calls(ALWAYS, ALLOW);
            filter.calls_if(CONDITIONAL, ALLOW);
            let denied = answer(libc::EPERM);
            let filter = filter.end(denied);
            let call = c_long::from(number as i32);
            let listed = CONDITIONAL.iter().any(|(listed, tests)| {
                *listed == call && tests.iter().all(|test| holds(test, &arguments))
            });
            let expected = if listed || ALWAYS.contains(&call) { ALLOW } else { denied };
            let call = Call { architecture: ARCHITECTURE, number, arguments };
            prop_assert_eq!(run(&filter, &call), expected);
            let foreign = Call { architecture: 0x4000_0003, ..call };
            prop_assert_eq!(run(&filter, &foreign), KILL);
        }
    }
}
