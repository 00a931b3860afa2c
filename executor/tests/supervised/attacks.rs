// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that attacks its supervisor, or whose process is in the way of another's.

use super::host::{Host, link, start};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::fs;

/// mov eax, 7; ret
const SEVEN: &[u8] = &[0xb8, 7, 0, 0, 0, 0xc3];

/// The sockets of a process, by the kernel's numbers.
fn sockets(process: i32) -> BTreeSet<String> {
    let folder = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let files = folder.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let names = files.map(|file| file.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("socket:")).collect()
}

fn supervisor(host: &Host) -> i32 {
    host.process.id().try_into().unwrap()
}

#[test]
fn a_child_has_no_socket_of_its_supervisors() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (seven, code) = link(&manager, SEVEN);
    for _ in 0..3 {
        assert_eq!(host.run_at_last(seven), 7);
        let (child, own) = (sockets(host.child()), sockets(supervisor(&host)));
        assert!(!child.is_empty() && !own.is_empty());
        assert!(child.is_disjoint(&own), "{child:?} and {own:?}");
        host.kill_child();
    }
    manager.deallocate([code]).unwrap();
    host.end(manager);
}

/// fork, by the system call alone; what is forked waits for ever: jz 1f; ret; 1: pause; jmp 1b
const FORK: &[u8] = &[
    0xb8, 57, 0, 0, 0, 0x0f, 0x05, 0x85, 0xc0, 0x74, 1, 0xc3, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb,
    0xf7,
];

#[test]
fn what_a_child_has_forked_does_not_hide_its_end() {
    let host = start(&["--supervise"]);
    let manager = host.manager();
    let (fork, forking) = link(&manager, FORK);
    let (seven, code) = link(&manager, SEVEN);
    for _ in 0..3 {
        assert_eq!(host.run_at_last(seven), 7);
        let forked = Pid::from_raw(host.run(fork).unwrap()).unwrap();
        host.kill_child();
        assert_eq!(host.run_at_last(seven), 7);
        kill_process(forked, Signal::KILL).unwrap();
    }
    manager.deallocate([forking, code]).unwrap();
    host.end(manager);
}
