// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Root's rights, one by one.

use crate::error::Result;
use crate::sys::explain;
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// More than any kernel has yet: what it has not, it answers with EINVAL.
const MOST: u32 = 64;

/// Takes all from this thread and those that it starts; no program gives them back.
#[cold]
pub(super) fn drop_all() -> Result<()> {
    set_no_new_privs(true).map_err(|error| explain("prctl(PR_SET_NO_NEW_PRIVS)", error.into()))?;
    for number in 0..MOST {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => continue,
            // Without CAP_SETPCAP the set stays, and gives nothing: new privileges are refused.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(error) => return Err(explain("prctl(PR_CAPBSET_DROP)", error.into())),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => (), // before Linux 4.3
        Err(error) => return Err(explain("prctl(PR_CAP_AMBIENT)", error.into())),
    }
    let none = CapabilitySet::empty();
    let none = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, none).map_err(|error| explain("capset", error.into()))
}
