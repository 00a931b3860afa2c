// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Linked code that attacks its supervisor, or whose process is in the way of another's.

use super::host::{Host, link, start};
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
