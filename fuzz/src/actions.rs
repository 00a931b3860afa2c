// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Functions that an executor may be told to call, and a check that those come in pairs that must.

use crate::input::Input;
use jitmem::wire::sps::{Bytes, Encode, ExecutorAddr};
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicIsize, Ordering};

/// `CWrapperFunctionResult`, of up to 8 bytes.
#[repr(C)]
pub struct WrapperResult {
    pub(crate) bytes: u64,
    pub(crate) size: usize,
}

/// One byte: no error, or the beginning of one that ends there.
fn outcome(failed: bool) -> WrapperResult {
    WrapperResult {
        bytes: failed.into(),
        size: 1,
    }
}

static OPEN: AtomicIsize = AtomicIsize::new(0);

extern "C" fn enter(_: *const u8, _: usize) -> WrapperResult {
    OPEN.fetch_add(1, Ordering::Relaxed);
    outcome(false)
}

extern "C" fn leave(_: *const u8, _: usize) -> WrapperResult {
    let open = OPEN.fetch_sub(1, Ordering::Relaxed);
    assert!(open > 0, "a deallocation action runs without its twin");
    outcome(false)
}

extern "C" fn fail(_: *const u8, _: usize) -> WrapperResult {
    outcome(true)
}

/// An answer without bytes.
extern "C" fn nothing(_: *const u8, _: usize) -> WrapperResult {
    WrapperResult { bytes: 0, size: 0 }
}

type Wrapper = extern "C" fn(*const u8, usize) -> WrapperResult;

fn address(function: Wrapper) -> u64 {
    (function as *const ()).expose_provenance() as u64
}

extern "C" fn count_arguments(count: c_int, _: *mut *mut c_char) -> c_int {
    count
}

/// A main function that returns its argc.
pub fn main_function() -> u64 {
    let function: extern "C" fn(c_int, *mut *mut c_char) -> c_int = count_arguments;
    (function as *const ()).expose_provenance() as u64
}

extern "C" fn negate(number: i32) -> i32 {
    number.wrapping_neg()
}

/// A function of an integer; what one without arguments does with it is the same.
pub fn int_function() -> u64 {
    let function: extern "C" fn(i32) -> i32 = negate;
    (function as *const ()).expose_provenance() as u64
}

/// Panics if a deallocation action has not run whose twin has.
pub fn all_are_closed() {
    assert_eq!(OPEN.load(Ordering::Relaxed), 0, "actions are left");
}

fn encode_call(function: u64, args: &[u8], out: &mut Vec<u8>) {
    (ExecutorAddr(function), Bytes(args)).encode(out);
}

/// A sequence of action pairs. `other` gives a function and arguments for it that do no harm.
pub fn encode_pairs(
    input: &mut Input<'_>,
    out: &mut Vec<u8>,
    mut other: impl FnMut(&mut Input<'_>) -> (u64, Vec<u8>),
) {
    let count = input.below(5);
    (count as u64).encode(out);
    for _ in 0..count {
        // What opens something and what closes it are one another's twins always.
        match input.below(8) {
            0 => {
                encode_call(address(enter), &[], out);
                encode_call(address(leave), &[], out);
                continue;
            }
            1 => {
                encode_call(address(enter), input.bytes(), out);
                encode_call(address(leave), input.bytes(), out);
                continue;
            }
            _ => {}
        }
        for _ in 0..2 {
            match input.below(6) {
                0 => encode_call(0, &[], out),
                1 => encode_call(address(fail), &[], out),
                2 => encode_call(address(nothing), input.bytes(), out),
                _ => {
                    let (function, args) = other(input);
                    encode_call(function, &args, out);
                }
            }
        }
    }
}
