// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What waits until the host answers or runs it, by the number that the host was given for it.

use crate::sys::AtForkStatic;
use slotmap::{DefaultKey, Key, KeyData, SlotMap};

/// A table of them. Numbers of another table, and of what was taken, are told apart from good ones.
pub(super) struct Numbered<T: Send + 'static>(AtForkStatic<Option<SlotMap<DefaultKey, T>>>);

impl<T: Send> Numbered<T> {
    pub(super) const fn new() -> Numbered<T> {
        Numbered(AtForkStatic::new(None))
    }

    /// The number under which `value` waits.
    pub(super) fn add(&'static self, value: T) -> u64 {
        let mut table = self.0.lock();
        let key = table.get_or_insert_with(SlotMap::new).insert(value);
        key.data().as_ffi()
    }

    /// What waits under a number, once.
    pub(super) fn take(&'static self, number: u64) -> Option<T> {
        let key = DefaultKey::from(KeyData::from_ffi(number));
        // A key of slotmap is made odd on the way in, so another number could name it.
        if key.data().as_ffi() != number {
            return None;
        }
        self.0.lock().as_mut()?.remove(key)
    }
}
