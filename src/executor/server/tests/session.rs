// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a session answers, and in which thread.

use super::*;
use crate::lock::Condvar;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn a_session_over_pipes_answers_and_ends() {
    let mut controller = over_pipes();
    assert!(controller.setup.triple.ends_with("-linux-gnu"));
    let read = controller.symbol(READ);
    assert_eq!(controller.call(read, &nothing()), nothing());
    let byte = 7u8;
    let here = std::ptr::from_ref(&byte).expose_provenance() as u64;
    let answer = controller.call(read, &to_bytes(&vec![here]));
    assert_eq!(answer, to_bytes(&vec![7u8]));
    assert_eq!(controller.call(read, &[1]), []); // malformed
    assert_eq!(controller.call(0, &[]), []);
    let page = (ExecutorAddr(controller.symbol(MANAGER)), 1u64);
    let reserve = controller.symbol(RESERVE);
    let base = controller.call(reserve, &to_bytes(&page));
    assert!(
        from_bytes::<Expected<ExecutorAddr>>(&base)
            .unwrap()
            .0
            .is_ok()
    );
    controller.finish().unwrap();
}

#[test]
fn one_socket_serves_both_directions_and_hangup_ends() {
    let options = Options {
        layout: SetupLayout::Symbols,
        symbols: vec![("mine".to_owned(), 77), (READ.to_owned(), 78)],
        ..Options::default()
    };
    let mut controller = over_socket(options);
    assert_eq!(controller.symbol("mine"), 77);
    assert_eq!(controller.symbol(READ), 78);
    let lookup = "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper";
    assert_eq!(controller.call(controller.symbol(lookup), &[]), []);
    controller.send(&message(Opcode::Hangup, 0, 0, &[0]));
    assert_eq!(controller.executor.join().unwrap(), Ok(()));
    // The stream has ended for the controller as well.
    assert_eq!(controller.input.read(&mut [0]).unwrap(), 0);
}

#[test]
fn calls_that_block_hinder_nobody() {
    static OPEN: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());
    const COUNT: usize = 33;
    fn wait_for_all(args: &[u8]) -> Answer {
        let mut count = OPEN.0.lock();
        *count += 1;
        OPEN.1.notify_all();
        while *count < COUNT as u32 {
            count = OPEN.1.wait(count);
        }
        Ok(args.to_vec())
    }
    let function = wrapper_address(wait_for_all);
    for functions in [vec![], vec![function]] {
        *OPEN.0.lock() = 0;
        let mut controller = over_socket(Options {
            functions,
            ..Options::default()
        });
        let mut left: Vec<u64> = (0..COUNT - 1)
            .map(|number| controller.start(function, &[number as u8]))
            .collect();
        // Others are answered while all those wait.
        let read = controller.symbol(READ);
        assert_eq!(controller.call(read, &nothing()), nothing());
        left.push(controller.start(function, &[COUNT as u8]));
        while !left.is_empty() {
            let (header, body) = controller.receive();
            assert_eq!(body.len(), 1);
            let place = left.iter().position(|number| *number == header.sequence);
            left.remove(place.expect("each call is answered once"));
        }
        controller.finish().unwrap();
    }
}

#[test]
fn actions_that_are_left_run_at_the_end() {
    static RAN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    fn note(args: &[u8]) -> Answer {
        RAN.lock().extend(args);
        let failed = format!("no {}", args[0]);
        Ok(to_bytes(&Outcome(if args == [3] {
            Err(failed)
        } else {
            Ok(())
        })))
    }
    let mut controller = over_pipes();
    let manager = ExecutorAddr(controller.symbol(MANAGER));
    let reserve = controller.symbol(RESERVE);
    let base = controller.call(reserve, &to_bytes(&(manager, 1u64)));
    let base = from_bytes::<Expected<ExecutorAddr>>(&base)
        .unwrap()
        .0
        .unwrap();
    let mut request = Vec::new();
    (manager, 1u64).encode(&mut request);
    (1u8, base, 1u64, "x").encode(&mut request);
    3u64.encode(&mut request);
    for number in [1u8, 2, 3] {
        let note = ExecutorAddr(wrapper_address(note));
        let call = (note, vec![number]);
        (ExecutorAddr(0), 0u64, call).encode(&mut request);
    }
    let initialize = controller.symbol(INITIALIZE);
    let key = controller.call(initialize, &request);
    assert_eq!(
        from_bytes::<Expected<ExecutorAddr>>(&key).unwrap().0,
        Ok(base)
    );
    assert_eq!(*RAN.lock(), []);
    let error = controller.finish().unwrap_err();
    assert_eq!(error.status(), Status::ActionFailed);
    assert!(error.message().contains("no 3"), "{error}");
    assert_eq!(*RAN.lock(), [3, 2, 1]);
}

#[test]
fn thread_locals_of_a_program_end_before_its_answer() {
    static ENDED: Mutex<u32> = Mutex::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            *ENDED.lock() += 1;
        }
    }
    thread_local!(static LOCAL: Counted = const { Counted });
    fn program(_: &[u8]) -> Answer {
        LOCAL.with(|_| ());
        Ok(Vec::new())
    }
    let mut controller = over_pipes();
    for number in 1..=3 {
        controller.call(wrapper_address(program), &[]);
        assert_eq!(*ENDED.lock(), number);
    }
    controller.finish().unwrap();
}

#[test]
fn a_controller_that_reads_late_gets_all_answers() {
    let mut controller = over_pipes();
    let read = controller.symbol(READ);
    // More than fits into the pipes, both ways.
    let count = 20_000;
    let mut output = controller.output.take().unwrap();
    let (written, told) = std::sync::mpsc::channel();
    let sender = std::thread::spawn(move || {
        for number in 0..count {
            let call = message(Opcode::CallWrapper, number, read, &nothing());
            output.write_all(&call).unwrap();
        }
        written.send(()).unwrap();
        output
    });
    // All is written although nothing is read: the executor never stops reading.
    told.recv_timeout(std::time::Duration::from_secs(60))
        .unwrap();
    controller.output = Some(sender.join().unwrap());
    let mut seen = vec![false; count as usize];
    for _ in 0..count {
        let (header, body) = controller.receive();
        assert_eq!(body, nothing());
        assert!(!std::mem::replace(
            &mut seen[header.sequence as usize],
            true
        ));
    }
    controller.finish().unwrap();
}

#[test]
fn answers_of_several_threads_are_whole() {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    fn filled(args: &[u8]) -> Answer {
        STARTED.fetch_add(1, Ordering::Relaxed);
        Ok(args.repeat(300_000))
    }
    let mut controller = over_pipes();
    let count = 8;
    for number in 0..count {
        controller.start(wrapper_address(filled), &[number]);
    }
    // None is read before all are about to be written, and no pipe holds one.
    while STARTED.load(Ordering::Relaxed) < count.into() {
        std::thread::yield_now();
    }
    for _ in 0..count {
        let (header, body) = controller.receive();
        assert!(body == vec![header.sequence as u8; 300_000]);
    }
    controller.finish().unwrap();
}
