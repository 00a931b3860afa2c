// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the tests of the memory services share: actions that say that they ran, and a look at the
//! process's mappings.

use crate::lock::Mutex;
use crate::sys::{Answer, wrapper_address};
use crate::wire::sps::{
    ActionPair, Bytes, Call, Encode, ExecutorAddr, Outcome, from_bytes, to_bytes,
};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};

static LOG: Mutex<Vec<(u8, u8)>> = Mutex::new(Vec::new());

/// What the actions of one test did.
pub(super) struct Log(u8);

impl Log {
    pub(super) fn new() -> Log {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Log(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Which numbers have run since this was asked last.
    pub(super) fn ran(&self) -> Vec<u8> {
        let mut log = LOG.lock();
        let mine = log.iter().filter(|(test, _)| *test == self.0);
        let mine = mine.map(|(_, number)| *number).collect();
        log.retain(|(test, _)| *test != self.0);
        mine
    }

    /// Argument bytes of an action that notes `number`.
    pub(super) fn note(&self, number: u8) -> [u8; 2] {
        [self.0, number]
    }
}

fn note(args: &[u8]) -> Answer {
    LOG.lock().push((args[0], args[1]));
    Ok(to_bytes(&Outcome(Ok(()))))
}

fn note_and_fail(args: &[u8]) -> Answer {
    LOG.lock().push((args[0], args[1]));
    Ok(to_bytes(&Outcome(Err(format!("bad {}", args[1])))))
}

/// A call that notes its number.
pub(super) fn noting(args: &[u8]) -> Call<'_> {
    Call {
        function: ExecutorAddr(wrapper_address(note)),
        args: Bytes(args),
    }
}

/// A call that notes its number and fails.
pub(super) fn failing(args: &[u8]) -> Call<'_> {
    Call {
        function: ExecutorAddr(wrapper_address(note_and_fail)),
        args: Bytes(args),
    }
}

/// No call.
pub(super) const NOTHING: Call<'static> = Call {
    function: ExecutorAddr(0),
    args: Bytes(&[]),
};

/// A pair of calls.
pub(super) fn pair<'a>(finalize: Call<'a>, dealloc: Call<'a>) -> ActionPair<'a> {
    ActionPair { finalize, dealloc }
}

/// Calls a function and decodes its answer.
pub(super) fn ask<T>(function: fn(&[u8]) -> Answer, args: &impl Encode) -> T
where
    T: for<'a> crate::wire::sps::Decode<'a>,
{
    from_bytes(&function(&to_bytes(args)).expect("the arguments are well formed")).unwrap()
}

/// The protection of the page at an address that is mapped, as /proc/self/maps has it.
pub(super) fn protection_at(address: u64) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let found = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let here = (number(start)..number(end)).contains(&address);
        here.then(|| rest.chars().take(4).collect())
    });
    found.expect("something is mapped there")
}

/// Machine code of a function that returns a number.
#[cfg(target_arch = "x86_64")]
pub(super) fn returning(number: u8) -> Vec<u8> {
    vec![0xb8, number, 0, 0, 0, 0xc3] // mov eax, number; ret
}

/// Machine code of a function that returns a number.
#[cfg(target_arch = "aarch64")]
pub(super) fn returning(number: u8) -> Vec<u8> {
    let code = [0x5280_0000 | u32::from(number) << 5, 0xd65f_03c0]; // mov w0, number; ret
    code.map(u32::to_le_bytes).concat()
}

/// Code that returns 42, and bytes that are nowhere else.
pub(super) fn unique_code() -> Vec<u8> {
    let unique = crate::sys::random().unwrap().to_le_bytes();
    [returning(42), unique.to_vec()].concat()
}

/// Whether an address still holds these bytes, which are nowhere else. Other tests may have mapped
/// something of their own where memory was given back, and may unmap it at any time.
pub(super) fn holds(address: u64, bytes: &[u8]) -> bool {
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut there = vec![0; bytes.len()];
    memory.read_exact_at(&mut there, address).is_ok() && there == bytes
}
