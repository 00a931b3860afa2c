// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which LLVM a controller has that is this process's parent.

use jitmem::executor::server::SetupLayout;
use rustix::process::getppid;
use std::fs;
use std::io::{BufRead, BufReader};

/// More than the kernel gives of a process's mappings at once.
const BUFFER: usize = 4 << 10;

/// The release of the LLVM program that the parent is, or of the LLVM that it has loaded as a library;
/// `None` if neither tells.
pub(crate) fn llvm() -> Option<u32> {
    let parent = getppid()?.as_raw_nonzero();
    let loaded = || {
        let maps = fs::File::open(format!("/proc/{parent}/maps")).ok()?;
        // Line by line: a parent may have tens of thousands, and all that this process ever
        // allocates it keeps.
        let lines = BufReader::with_capacity(BUFFER, maps).split(b'\n');
        one_layout(lines.map_while(|line| line.ok()).filter_map(|line| {
            let name = line.rsplit(|byte| *byte == b'/').next()?;
            library(std::str::from_utf8(name).ok()?)
        }))
    };
    let named = || {
        let path = fs::read_link(format!("/proc/{parent}/exe")).ok()?;
        program(path.to_str()?)
    };
    // The kernel takes a microsecond for each mapping that it lists.
    named().or_else(loaded)
}

/// The release, if all that a parent has loaded expect the same of an executor: graphics drivers, for
/// one, bring LLVM along, and the parent's own may be linked into it.
fn one_layout(mut releases: impl Iterator<Item = u32>) -> Option<u32> {
    let first = releases.next()?;
    let alike =
        releases.all(|release| SetupLayout::of_llvm(release) == SetupLayout::of_llvm(first));
    alike.then_some(first)
}

/// The number that a text begins with.
fn number(text: &str) -> Option<u32> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    text[..end]
        .parse()
        .ok()
        .filter(|release| (14..100).contains(release))
}

/// The release in the file name of an LLVM library: libLLVM-16.so.1, libLLVM.so.22.1.
fn library(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("libLLVM")?;
    number(
        rest.strip_prefix('-')
            .or_else(|| rest.strip_prefix(".so."))?,
    )
}

/// The release in the path of one of LLVM's own programs: /usr/lib/llvm-16/bin/llvm-jitlink,
/// /usr/bin/llvm-jitlink-16, /usr/bin/clang-repl-16.
fn program(path: &str) -> Option<u32> {
    let (folders, name) = path.rsplit_once('/')?;
    if !name.starts_with("llvm-") && !name.starts_with("clang-") {
        return None;
    }
    let installed = folders
        .split('/')
        .find_map(|part| number(part.strip_prefix("llvm-")?));
    installed.or_else(|| number(name.rsplit('-').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_tell_their_release() {
        assert_eq!(library("libLLVM-14.so.1"), Some(14));
        assert_eq!(library("libLLVM-19.so"), Some(19));
        assert_eq!(library("libLLVM.so.19.1"), Some(19));
        assert_eq!(library("libLLVM.so.22.1 (deleted)"), Some(22));
        assert_eq!(library("libLLVMSupport.so.16"), None);
        assert_eq!(library("libLLVM.so"), None);
        assert_eq!(library("libc.so.6"), None);
    }

    #[test]
    fn programs_tell_theirs_by_folder_or_name() {
        assert_eq!(program("/usr/lib/llvm-16/bin/llvm-jitlink"), Some(16));
        assert_eq!(program("/usr/bin/llvm-jitlink-15"), Some(15));
        assert_eq!(program("/opt/llvm-project/bin/clang-repl"), None);
        assert_eq!(program("/usr/bin/clang-repl-16"), Some(16));
        assert_eq!(program("/usr/bin/postgres-15"), None);
    }

    #[test]
    fn several_count_if_they_agree() {
        let found = |releases: &[u32]| one_layout(releases.iter().copied());
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[16, 15, 16]), Some(16));
        assert_eq!(found(&[22, 22, 19]), Some(22));
        assert_eq!(found(&[15, 22]), None);
    }

    #[test]
    fn a_parent_without_llvm_tells_nothing() {
        // Whatever runs the tests is no LLVM program.
        assert_eq!(llvm(), None);
    }
}
