// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A control group (version 2) of this process's own: what bounds memory, with memfds and files in memory, and tasks.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process;

/// What groups that this program makes are called, before their process's number.
const PREFIX: &str = "jitmem-executor-";

/// Moves this process into a new group with these bounds, and gives its folder. `together`: where memory is short all
/// of the group ends. The group is removed by the next
/// executor that makes one there: no process can remove the one that it is in.
pub(crate) fn enter(memory: Option<u64>, tasks: Option<u64>, together: bool) -> Result<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let own = own_group(&groups, &mounts)?;
    let bounds = Bounds {
        memory,
        tasks,
        together,
    };
    enter_below(&own, &bounds)
}

struct Bounds {
    memory: Option<u64>,
    tasks: Option<u64>,
    together: bool,
}

/// The folder of this process's group.
fn own_group(groups: &str, mounts: &str) -> Result<PathBuf> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.context("this process is in no control group of version 2")?;
    ensure!(
        !path.split('/').any(|part| part == ".."),
        "this process's control group, {path}, lies outside its namespace"
    );
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, at) = (place.next()?, place.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then_some(at)
    });
    let mount = mount.context("no file system of control groups of version 2 is mounted")?;
    Ok(Path::new(mount).join(path))
}

/// Makes the group in this process's own or, where that holds processes and so can't have such groups, beside it.
fn enter_below(own: &Path, bounds: &Bounds) -> Result<PathBuf> {
    let beside = own.parent().filter(|beside| is_group(beside));
    let mut failures = Vec::new();
    for above in [Some(own), beside].into_iter().flatten() {
        remove_left_over(above);
        let group = above.join(format!("{PREFIX}{}", process::id()));
        match bound(above, &group, bounds) {
            Ok(()) => return Ok(group),
            Err(error) => {
                // Empty, or not there.
                let _ = fs::remove_dir(&group);
                failures.push(format!("{error:#}"));
            }
        }
    }
    bail!("{}", failures.join("; "))
}

fn is_group(folder: &Path) -> bool {
    folder.join("cgroup.procs").exists()
}

/// Removes the groups of executors that have ended. The kernel keeps those that have processes.
fn remove_left_over(above: &Path) {
    let entries = fs::read_dir(above).into_iter().flatten().flatten();
    for entry in entries {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

fn bound(above: &Path, group: &Path, bounds: &Bounds) -> Result<()> {
    match fs::create_dir(group) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => (),
        made => made.with_context(|| format!("make {}", group.display()))?,
    }
    for (controller, file, most) in [
        ("memory", "memory.max", bounds.memory),
        ("pids", "pids.max", bounds.tasks),
    ] {
        let Some(most) = most else { continue };
        if !group.join(file).exists() {
            write(above, "cgroup.subtree_control", &format!("+{controller}"))?;
        }
        write(group, file, &most.to_string())?;
    }
    if bounds.memory.is_some() {
        // What is swapped out would be beside the bound. Kernels without swap or before 4.19 lack the files.
        let _ = write(group, "memory.swap.max", "0");
        if bounds.together {
            let _ = write(group, "memory.oom.group", "1");
        }
    }
    write(group, "cgroup.procs", &process::id().to_string())
}

/// Writes into a file that the kernel has made.
fn write(group: &Path, file: &str, text: &str) -> Result<()> {
    let path = group.join(file);
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).open(&path);
    let written = opened.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.with_context(|| format!("write \"{text}\" into {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
25 1 0:22 / /proc rw,nosuid - proc proc rw
30 25 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_own_group_is_of_version_2() {
        let found = own_group("9:pids:/x\n0::/user.slice/a\n", MOUNTS).unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/unified/user.slice/a"));
        let refused = |groups, mounts| own_group(groups, mounts).unwrap_err().to_string();
        assert!(refused("9:pids:/x\n", MOUNTS).contains("in no control group of version 2"));
        assert!(refused("0::/../x\n", MOUNTS).contains("outside its namespace"));
        assert!(refused("0::/x\n", "").contains("is mounted"));
    }

    /// A folder with the files that the kernel makes in a group.
    fn group(path: &Path, files: &[&str]) {
        fs::create_dir_all(path).unwrap();
        for file in files {
            fs::write(path.join(file), "").unwrap();
        }
    }

    #[test]
    fn a_group_that_can_not_have_bounds_leads_to_the_one_beside() {
        let folder = std::env::temp_dir().join(format!("jitmem-cgroup-{}", process::id()));
        let own = folder.join("above/own");
        group(&folder.join("above"), &["cgroup.procs"]);
        group(&own, &["cgroup.procs"]);
        // The kernel would have made the files; here they are made for the group beside only.
        let beside = folder.join(format!("above/{PREFIX}{}", process::id()));
        group(
            &beside,
            &[
                "cgroup.procs",
                "memory.max",
                "pids.max",
                "memory.swap.max",
                "memory.oom.group",
            ],
        );
        let gone = folder.join(format!("above/{PREFIX}0"));
        group(&gone, &[]);
        let mut bounds = Bounds {
            memory: Some(1 << 30),
            tasks: Some(64),
            together: true,
        };
        let found = enter_below(&own, &bounds).unwrap();
        assert_eq!(found, beside);
        assert!(!gone.exists());
        let read = |file| fs::read_to_string(beside.join(file)).unwrap();
        assert_eq!(read("memory.max"), "1073741824");
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("pids.max"), "64");
        assert_eq!(read("cgroup.procs"), process::id().to_string());
        // The supervisor of linked code goes on.
        fs::write(beside.join("memory.oom.group"), "0").unwrap();
        bounds.together = false;
        enter_below(&own, &bounds).unwrap();
        assert_eq!(read("memory.oom.group"), "0");
        // Without the controllers there is no group, and none is left.
        fs::remove_file(beside.join("memory.max")).unwrap();
        let error = enter_below(&own, &bounds).unwrap_err().to_string();
        assert!(error.contains("cgroup.subtree_control"), "{error}");
        assert!(!own.join(format!("{PREFIX}{}", process::id())).exists());
        fs::remove_dir_all(folder).unwrap();
    }
}
