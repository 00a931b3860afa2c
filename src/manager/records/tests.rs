// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Handles: each is good for one life, in one manager.

use super::*;

fn insert(records: &mut Records<()>) -> (Key, u64) {
    records.make_spare(0).unwrap();
    records.insert(0, 0, false, |_| ())
}

#[test]
fn a_handle_is_good_for_one_life_in_one_manager() {
    for random in [0, u64::MAX, 0x1234_5678_9abc_def0] {
        let mut records = Records::new(random);
        let (key, first) = insert(&mut records);
        assert!(records.find_in_flight(first).is_ok());
        assert!(records.find_finalized(first).is_err());
        records.remove(key);
        assert!(records.find_in_flight(first).is_err());
        let (again, second) = insert(&mut records);
        assert_eq!(again, key, "slots are used again");
        assert_ne!(first, second);
        assert!(records.find_in_flight(first).is_err());
        let mut other = Records::new(!random);
        let (_, foreign) = insert(&mut other);
        assert!(records.find_in_flight(foreign).is_err());
        for handle in [first, second, foreign] {
            assert!(handle != 0 && handle != u64::MAX);
        }
        assert_eq!(records.iter().count(), 1);
    }
}

#[test]
fn a_slot_that_was_used_as_often_as_can_be_told_is_not_used_again() {
    let mut records = Records::new(7);
    let (key, _) = insert(&mut records);
    let slot = records.slots.get(key.0);
    slot.begin(LAST_GENERATION - 2);
    slot.set_phase(Phase::Vacant);
    records.slots.give(key.0, slot);
    // `remove` has not seen the first.
    let (again, early) = insert(&mut records);
    assert_eq!(again, key);
    records.remove(key);
    let (again, last) = insert(&mut records);
    assert_eq!(again, key);
    assert!(records.find_in_flight(last).is_ok());
    records.remove(key);
    let (other, _) = insert(&mut records);
    assert_ne!(other, key);
    for handle in [early, last] {
        assert!(records.find_in_flight(handle).is_err());
    }
}

#[test]
fn a_record_is_small() {
    assert_eq!(size_of::<Slot>(), 16);
}
