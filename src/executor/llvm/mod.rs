// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's own protocols on the executor's side, of LLVM 14 to 22, one file each.
//!
//! A wrapper function here is a safe function from argument bytes to result bytes. An argument that
//! LLVM calls an instance is a number that [`InstanceRegistry`] gave out; another number is an error. What
//! a controller may address freely, by the protocol's own meaning, goes through [`crate::sys`].
//!
//! Where a message begins with a capital letter it is the stock executor's, word for word.

mod dylib;
mod gdb;
mod memory_access;
mod request;
mod run;
mod shared;
mod simple;
mod symbols;
#[cfg(test)]
mod testing;

pub(crate) use dylib::{load_cxx_runtime, lookup_published};
pub(crate) use gdb::register as register_debug_object;
pub(crate) use symbols::{CallClass, FunctionBody, PublishedFunction, PublishedSymbol, Services};

use crate::lock::Mutex;
use crate::wire::answer::{Told, answer, expected, outcome};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Instances by the number that a controller knows them by. No number is given twice in a process,
/// so one that is gone, or belongs to another registry, is never taken for another.
pub(crate) struct InstanceRegistry<T> {
    what: &'static str,
    live: Mutex<BTreeMap<u64, Arc<T>>>,
}

impl<T> InstanceRegistry<T> {
    pub(crate) const fn new(what: &'static str) -> InstanceRegistry<T> {
        InstanceRegistry {
            what,
            live: Mutex::new(BTreeMap::new()),
        }
    }

    pub(crate) fn add(&self, instance: Arc<T>) -> u64 {
        // Numbers that are small, but not 0: LLVM takes 0 for a symbol that is not there.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        self.live.lock().insert(number, instance);
        number
    }

    pub(crate) fn get(&self, number: u64) -> Told<Arc<T>> {
        self.live.lock().get(&number).cloned().ok_or_else(|| {
            format!(
                "no {} has the number {number:#x}: its session has ended, or the controller asks \
                 another process than it thinks",
                self.what
            )
        })
    }

    pub(crate) fn remove(&self, number: u64) {
        self.live.lock().remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_given_twice() {
        static ONE: InstanceRegistry<u8> = InstanceRegistry::new("one");
        static TWO: InstanceRegistry<u8> = InstanceRegistry::new("two");
        let one = ONE.add(Arc::new(1));
        let two = TWO.add(Arc::new(2));
        assert_ne!(one, two);
        assert_eq!(ONE.get(one).as_deref(), Ok(&1));
        assert!(
            TWO.get(one)
                .unwrap_err()
                .starts_with("no two has the number 0x")
        );
        ONE.remove(one);
        assert!(ONE.get(one).is_err());
        assert!(ONE.add(Arc::new(3)) > one);
    }
}
