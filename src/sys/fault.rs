// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Makes the n-th system call of a thread fail, so that tests can walk every error path.

use std::cell::{Cell, RefCell};
use std::io;

#[derive(Clone, Copy)]
struct Plan {
    remaining: u32,
    /// 0: the call is made.
    errno: i32,
    forever: bool,
}

thread_local! {
    static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
    static FAILED: Cell<Option<&'static str>> = const { Cell::new(None) };
    static MEANWHILE: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// While it lives, system calls of this thread fail as planned.
pub(crate) struct Faults(());

impl Faults {
    /// The call after `skip` others fails with `errno`, once.
    pub(crate) fn one(skip: u32, errno: i32) -> Faults {
        Self::plan(Plan {
            remaining: skip,
            errno,
            forever: false,
        })
    }

    /// Every call after `skip` others fails with `errno`.
    pub(crate) fn all_after(skip: u32, errno: i32) -> Faults {
        Self::plan(Plan {
            remaining: skip,
            errno,
            forever: true,
        })
    }

    /// As [`Faults::one`], and `meanwhile` is done while the call fails: what the kernel has changed by
    /// then, or another thread.
    pub(crate) fn one_while(skip: u32, errno: i32, meanwhile: impl FnOnce() + 'static) -> Faults {
        MEANWHILE.set(Some(Box::new(meanwhile)));
        Self::one(skip, errno)
    }

    /// No call fails, and `meanwhile` is done before the call after `skip` others.
    pub(crate) fn before(skip: u32, meanwhile: impl FnOnce() + 'static) -> Faults {
        Self::one_while(skip, 0, meanwhile)
    }

    fn plan(plan: Plan) -> Faults {
        PLAN.set(Some(plan));
        FAILED.set(None);
        Faults(())
    }

    /// The first call of the plan, if it came to that.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        FAILED.get()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        PLAN.set(None);
        MEANWHILE.set(None);
    }
}

pub(super) fn check(call: &'static str) -> io::Result<()> {
    let Some(mut plan) = PLAN.get() else {
        return Ok(());
    };
    if plan.remaining > 0 {
        plan.remaining -= 1;
        PLAN.set(Some(plan));
        return Ok(());
    }
    FAILED.set(FAILED.get().or(Some(call)));
    PLAN.set(plan.forever.then_some(plan));
    if let Some(meanwhile) = MEANWHILE.take() {
        meanwhile();
    }
    match plan.errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
