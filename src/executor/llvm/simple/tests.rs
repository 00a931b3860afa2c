// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

use super::super::testing::{
    Log, NOTHING, ask, failing, holds, noting, pair, protection_at, unique_code,
};
use super::*;
use crate::sys::testing::{call_void, reading, writing};
use crate::wire::sps::{ActionPair, Bytes, Call, Expected, Outcome, RemoteAllocGroup, to_bytes};

const R: u8 = 1;
const RW: u8 = 3;
const RX: u8 = 5;
const RWX: u8 = 7;

struct TestSession {
    manager: Arc<MemoryManager>,
    number: ExecutorAddr,
    page: u64,
}

type Actions<'a> = Vec<ActionPair<'a>>;

impl TestSession {
    fn new() -> TestSession {
        let (manager, number) = MemoryManager::publish();
        TestSession {
            manager,
            number: ExecutorAddr(number),
            page: sys::page_size().bytes(),
        }
    }

    fn reserve(&self, size: u64) -> u64 {
        let Expected(base) = ask::<Expected<ExecutorAddr>>(reserve, &(self.number, size));
        base.unwrap().0
    }

    fn finalize(&self, segments: &[SegFinalizeRequest<'_>], actions: Actions<'_>) -> Told<()> {
        let request = (segments.to_vec(), actions);
        ask::<Outcome>(finalize, &(self.number, request)).0
    }

    fn initialize(&self, segments: &[SegFinalizeRequest<'_>], actions: Actions<'_>) -> Told<u64> {
        let request = (segments.to_vec(), actions);
        let key = ask::<Expected<ExecutorAddr>>(initialize, &(self.number, request)).0;
        key.map(|key| key.0)
    }

    fn end(&self, function: fn(&[u8]) -> Answer, addresses: &[u64]) -> Told<()> {
        let addresses: Vec<ExecutorAddr> = addresses.iter().copied().map(ExecutorAddr).collect();
        ask::<Outcome>(function, &(self.number, addresses)).0
    }

    fn shut_down(self) {
        self.manager.shut_down(self.number.0).unwrap();
    }
}

fn segment(group: u8, address: u64, size: u64, content: &[u8]) -> SegFinalizeRequest<'_> {
    let group = RemoteAllocGroup(group);
    (group, ExecutorAddr(address), size, Bytes(content))
}

fn byte(address: u64) -> u8 {
    reading().load(address).unwrap()
}

fn starts(result: Told<impl std::fmt::Debug>, words: &str) {
    let message = result.unwrap_err();
    assert!(message.starts_with(words), "{message}");
}

#[test]
fn debuggers_forget_what_was_in_memory_that_goes() {
    let session = TestSession::new();
    let base = session.reserve(4 * session.page);
    let object = base + session.page;
    sys::register_debug_object(object, 1, true);
    session.shut_down();
    assert!(!sys::deregister_debug_object(object));
}

#[test]
fn a_slab_is_finalized_once_run_and_deallocated() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| log.note(number));
    let base = session.reserve(3 * session.page);
    let data = base + session.page;
    let segments = [
        segment(RX, base, 100, &bytes),
        segment(RW, data, session.page + 8, b"data"),
    ];
    let actions = vec![
        pair(noting(&one), noting(&two)),
        pair(noting(&three), noting(&four)),
    ];
    session.finalize(&segments, actions).unwrap();
    assert_eq!(log.ran(), [1, 3]);
    assert_eq!(call_void(base), 42);
    assert_eq!(protection_at(base), "r-xp");
    assert!(holds(base, &bytes));
    assert_eq!(protection_at(data), "rw-p");
    assert_eq!([byte(data + 3), byte(data + 4)], [b'a', 0]);
    session.end(deallocate, &[base]).unwrap();
    assert_eq!(log.ran(), [4, 2]);
    assert!(!holds(base, &bytes));
    let again = session.end(deallocate, &[base]);
    assert_eq!(
        again,
        Err(format!("No allocation entry found for {base:#x}"))
    );
    session.shut_down();
}

#[test]
fn the_old_rules_for_requests() {
    let session = TestSession::new();
    let bytes = unique_code();
    let base = session.reserve(2 * session.page);
    assert_eq!(session.finalize(&[], vec![]), Ok(()));
    let orphan = session.finalize(&[], vec![pair(NOTHING, NOTHING)]);
    starts(
        orphan,
        "Finalization actions attached to empty finalization request",
    );
    let inside = base + session.page;
    let elsewhere = session.finalize(&[segment(R, inside, 1, b"")], vec![]);
    let words = format!("Attempt to finalize unrecognized allocation {inside:#x}");
    assert_eq!(elsewhere, Err(words));
    let long = session.finalize(&[segment(R, base, 2, b"abc")], vec![]);
    starts(
        long,
        &format!("Segment {base:#x} content size (0x3 bytes) exceeds segment size (0x2 bytes)"),
    );
    session
        .finalize(&[segment(R, base, 64, &bytes)], vec![])
        .unwrap();
    let twice = session.finalize(&[segment(R, base, 3, b"abc")], vec![]);
    starts(twice, "In initialize, region 0x");
    let other = session.reserve(0);
    let unknown = session.end(deallocate, &[other, 16, base]);
    assert_eq!(
        unknown,
        Err("No allocation entry found for 0x10".to_owned())
    );
    assert!(!holds(base, &bytes));
    session.shut_down();
}

#[test]
fn a_failing_action_ends_a_slab_under_the_old_rules() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|number| log.note(number));
    let base = session.reserve(session.page);
    let actions = vec![
        pair(noting(&one), noting(&two)),
        pair(NOTHING, noting(&three)),
        pair(failing(&four), noting(&five)),
    ];
    let failed = session.finalize(&[segment(RX, base, 64, &bytes)], actions);
    assert!(failed.unwrap_err().contains("bad 4"));
    assert_eq!(log.ran(), [1, 4, 3, 2]);
    assert!(!holds(base, &bytes));
    starts(
        session.end(deallocate, &[base]),
        "No allocation entry found for",
    );
    session.shut_down();
}

#[test]
fn regions_come_and_go_inside_a_slab() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let [one, two, three, four] = [1, 2, 3, 4].map(|number| log.note(number));
    let page = session.page;
    let slab = session.reserve(1 << 30);
    let code = slab + 4 * page;
    // The last byte is in another page.
    let size = page + 0xb88;
    let segments = [
        segment(RW, code + page, size, b"data"),
        segment(RX, code, 64, &bytes),
    ];
    for _ in 0..3 {
        let actions = vec![pair(noting(&one), noting(&two))];
        assert_eq!(session.initialize(&segments, actions), Ok(code));
        assert_eq!(call_void(code), 42);
        writing()
            .write(code + page, &vec![0xee; 2 * page as usize])
            .unwrap();
        session.end(deinitialize, &[code]).unwrap();
        assert_eq!(log.ran(), [1, 2]);
        assert_eq!(protection_at(code), "rw-p");
    }
    // Ended before, so there is nothing to do; but never begun is an error.
    assert_eq!(session.end(deinitialize, &[code]), Ok(()));
    assert_eq!(log.ran(), []);
    let words = format!(
        "In deinitialize, address {slab:#x} does not correspond to the start of any initialized \
         region"
    );
    assert_eq!(session.end(deinitialize, &[slab]), Err(words));
    let words = "In deinitialize, address 0x10 is not part of any reserved address range";
    assert_eq!(session.end(deinitialize, &[16]), Err(words.to_owned()));

    let first = vec![pair(noting(&one), noting(&two))];
    let second = vec![pair(noting(&three), noting(&four))];
    session.initialize(&segments, first).unwrap();
    session
        .initialize(&[segment(R, slab, 1, b"x")], second)
        .unwrap();
    assert_eq!(
        [byte(code + page + 4), byte(code + page + size - 1)],
        [0, 0]
    );
    let over = session.initialize(&[segment(R, code + 2 * page, 8, b"")], vec![]);
    let words = format!(
        "In initialize, region {:#x} -- {:#x} overlaps previous region {code:#x} -- {:#x}",
        code + 2 * page,
        code + 2 * page + 8,
        code + page + size
    );
    assert_eq!(over, Err(words));
    assert_eq!(log.ran(), [1, 3]);
    session.end(release, &[slab]).unwrap();
    assert_eq!(log.ran(), [4, 2]);
    assert!(!holds(code, &bytes));
    let words = format!("In release, {slab:#x} is not part of any reserved address range");
    assert_eq!(session.end(release, &[slab]), Err(words));
    session.shut_down();
}

#[test]
fn a_failing_action_leaves_a_slab_as_it_was() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let [one, two, three] = [1, 2, 3].map(|number| log.note(number));
    let slab = session.reserve(2 * session.page);
    let actions = vec![
        pair(noting(&one), noting(&two)),
        pair(failing(&three), NOTHING),
    ];
    let code = [segment(RX, slab, 64, &bytes)];
    let failed = session.initialize(&code, actions);
    assert!(failed.unwrap_err().contains("bad 3"));
    assert_eq!(log.ran(), [1, 3, 2]);
    assert_eq!(protection_at(slab), "rw-p");
    assert_eq!(session.initialize(&code, vec![]), Ok(slab));
    assert_eq!(call_void(slab), 42);
    session.end(release, &[slab]).unwrap();
    session.shut_down();
}

#[test]
fn a_region_without_bytes_has_its_place_for_itself() {
    let session = TestSession::new();
    let log = Log::new();
    let one = log.note(1);
    let slab = session.reserve(2 * session.page);
    let empty = [segment(R, slab, 0, b"")];
    let dealloc = || vec![pair(NOTHING, noting(&one))];
    assert_eq!(session.initialize(&empty, dealloc()), Ok(slab));
    for size in [0, 8] {
        let over = session.initialize(&[segment(R, slab, size, b"")], vec![]);
        assert!(over.unwrap_err().contains("overlaps previous region"));
    }
    session.end(deinitialize, &[slab]).unwrap();
    assert_eq!(log.ran(), [1]);
    let eight = [segment(R, slab, 8, b"12345678")];
    assert_eq!(session.initialize(&eight, dealloc()), Ok(slab));
    assert!(session.initialize(&empty, vec![]).is_err());
    session.end(deinitialize, &[slab]).unwrap();
    assert_eq!(session.initialize(&empty, vec![]), Ok(slab));
    session.end(release, &[slab]).unwrap();
    assert_eq!(log.ran(), [1]);
    session.shut_down();
}

#[test]
fn failing_deallocation_actions_stop_nothing() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let [one, two, three] = [1, 2, 3].map(|number| log.note(number));
    let slab = session.reserve(session.page);
    let actions = vec![
        pair(NOTHING, noting(&one)),
        pair(NOTHING, failing(&two)),
        pair(NOTHING, failing(&three)),
    ];
    let rx = [segment(RX, slab, 64, &bytes)];
    session.initialize(&rx, actions.clone()).unwrap();
    let failed = session.end(deinitialize, &[slab]).unwrap_err();
    assert!(
        failed.contains("bad 3") && failed.contains("bad 2"),
        "{failed}"
    );
    assert_eq!(log.ran(), [3, 2, 1]);
    session.initialize(&rx, actions).unwrap();
    assert!(session.end(release, &[slab]).is_err());
    assert_eq!(log.ran(), [3, 2, 1]);
    assert!(!holds(slab, &bytes));
    session.shut_down();
}

#[test]
fn requests_that_jitmem_can_not_honour_are_refused_whole() {
    let session = TestSession::new();
    let bytes = unique_code();
    let page = session.page;
    let slab = session.reserve(2 * page);
    let refused = |segments: &[SegFinalizeRequest<'_>], words: &str| {
        let message = session.initialize(segments, vec![]).unwrap_err();
        assert!(message.contains(words), "{message}");
    };
    refused(&[], "Finalization request is empty");
    let orphan = session.initialize(&[], vec![pair(NOTHING, NOTHING)]);
    starts(
        orphan,
        "Finalization actions attached to empty finalization request",
    );
    refused(&[segment(RWX, slab, 64, &bytes)], "writable and executable");
    refused(&[segment(0x13, slab, 64, &bytes)], "bits other than");
    refused(&[segment(R, u64::MAX, 2, b"")], "beyond the end of memory");
    refused(
        &[segment(R, slab, 2 * page + 1, b"")],
        "does not lie inside its reservation",
    );
    let adjacent = [segment(R, slab, 8, b"a"), segment(RX, slab + 8, 8, b"b")];
    refused(&adjacent, "share a page");
    refused(
        &[segment(R, 16, 2, b"ab")],
        "In initialize, 0x10 -- 0x12 is not part of",
    );
    let far = session.reserve(page);
    let apart = [segment(R, slab, 1, b"a"), segment(R, far, 1, b"b")];
    refused(&apart, "reservation");
    assert_eq!([byte(slab), byte(far)], [0, 0]);
    // Bit 3 is the lifetime.
    assert_eq!(
        session.initialize(&[segment(RX | 8, slab, 64, &bytes)], vec![]),
        Ok(slab)
    );
    let huge = ask::<Expected<ExecutorAddr>>(reserve, &(session.number, u64::MAX));
    assert!(
        huge.0
            .unwrap_err()
            .starts_with("reserve 18446744073709551615 bytes")
    );
    let huge = ask::<Expected<ExecutorAddr>>(reserve, &(session.number, 1u64 << 60));
    assert!(huge.0.is_err());
    session.shut_down();
}

#[test]
fn large_zero_fill_is_zero_again_in_memory_that_was_used() {
    let session = TestSession::new();
    let size = 1 << 20;
    let slab = session.reserve(size);
    writing().write(slab, &vec![0xee; size as usize]).unwrap();
    let tail = size - 5;
    session
        .initialize(&[segment(RW, slab, tail, b"abc")], vec![])
        .unwrap();
    let mut all = Vec::new();
    reading().read(slab, size, &mut all).unwrap();
    assert_eq!(&all[..3], b"abc");
    assert!(all[3..tail as usize].iter().all(|byte| *byte == 0));
    session.shut_down();
}

#[test]
fn the_end_of_a_session_runs_what_is_left_and_gives_all_back() {
    let session = TestSession::new();
    let bytes = unique_code();
    let log = Log::new();
    let notes: Vec<[u8; 2]> = (1..=4).map(|number| log.note(number)).collect();
    let slabs: Vec<u64> = (0..4).map(|_| session.reserve(session.page)).collect();
    // Addresses may come in any order; actions end in the reverse of theirs.
    for (index, slab) in slabs.iter().enumerate().take(3) {
        let action = vec![pair(NOTHING, noting(&notes[index]))];
        let code = [segment(RX, *slab, 64, &bytes)];
        if index == 1 {
            session.finalize(&code, action).unwrap();
        } else {
            session.initialize(&code, action).unwrap();
        }
    }
    let manager = session.number;
    session.shut_down();
    assert_eq!(log.ran(), [3, 2, 1]);
    assert!(!slabs.iter().any(|slab| holds(*slab, &bytes)));
    let unknown = ask::<Expected<ExecutorAddr>>(reserve, &(manager, 1u64));
    assert!(
        unknown
            .0
            .unwrap_err()
            .starts_with("no memory manager has the number")
    );
    assert!(reserve(&to_bytes(&manager)).is_err());
}

#[test]
fn an_action_may_use_the_manager_that_runs_it() {
    fn nested(args: &[u8]) -> Answer {
        let base = ask::<Expected<ExecutorAddr>>(
            reserve,
            &(
                crate::wire::sps::from_bytes::<ExecutorAddr>(args).unwrap(),
                1u64,
            ),
        );
        Ok(to_bytes(&Outcome(base.0.map(drop))))
    }
    let session = TestSession::new();
    let bytes = unique_code();
    let slab = session.reserve(1);
    let args = to_bytes(&session.number);
    let call = Call {
        function: ExecutorAddr(sys::wrapper_address(nested)),
        args: Bytes(&args),
    };
    session
        .initialize(&[segment(RX, slab, 64, &bytes)], vec![pair(call, call)])
        .unwrap();
    session.end(release, &[slab]).unwrap();
    session.shut_down();
}
