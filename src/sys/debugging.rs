// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Whether a debugger is to set software breakpoints in linked code.
//!
//! The kernel lets a debugger write into private mappings only, whatever their protection.

use super::gate;

/// The environment's word on it: 1 for pages that take breakpoints, 0 for no such pages even where a
/// process traces this one, as strace does. Without it a tracer decides.
const VARIABLE: &str = "JITMEM_DEBUG";

/// Why linked code is to lie in private pages; `None` if it need not.
pub(crate) fn debugging() -> Option<String> {
    match std::env::var(VARIABLE).as_deref() {
        Ok("1") => {
            return Some(format!(
                "{VARIABLE} is 1: a debugger may set software breakpoints"
            ));
        }
        Ok("0") => return None,
        _ => (),
    }
    gate("open(/proc/self/status)").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let tracer = tracer(&status)?;
    Some(format!(
        "process {tracer} traces this one and may set software breakpoints, unless {VARIABLE} is 0"
    ))
}

fn tracer(status: &str) -> Option<u64> {
    let field = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    field.trim().parse().ok().filter(|tracer| *tracer != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracer_is_a_process() {
        assert_eq!(tracer("Name:\tx\nTracerPid:\t42\nUid:\t0\n"), Some(42));
        assert_eq!(tracer("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(tracer("Name:\tx\n"), None);
    }
}
