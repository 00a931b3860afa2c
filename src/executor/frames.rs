// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Registering frames of code that was linked in this process.

use crate::error::Result;
use crate::manager::Manager;
use crate::mapper::{Action, Registration, WrapperCall};
use crate::wire::sps::{AddrRange, ExecutorAddr, to_bytes};

/// Has the unwinder of this process know an `.eh_frame` section of `size` bytes at `start`, and forget it
/// when its allocation goes. For managers of this process.
///
/// # Safety
/// Whenever the action is run, a section is there that describes code that is there, and it stays as it is
/// until the action's twin has run.
pub unsafe fn eh_frame_action(start: u64, size: u64) -> Action {
    let section = section_of(start, size);
    // SAFETY: wrapper functions of ours, and the caller says that there is such a section.
    unsafe { action_of(Registration::own(), section) }
}

/// [`eh_frame_action`] for a manager, whichever process its executor is: for allocations of its own. Where the executor's
/// unwinder asks an index, finalize takes no message for it.
///
/// # Errors
/// `Unsupported` where it is not known what registers frames in the executor: it is older, or the host's own mapper has
/// it.
///
/// # Safety
/// As [`eh_frame_action`], for the executor; the action is given to this manager alone.
pub unsafe fn manager_eh_frame_action(manager: &Manager, start: u64, size: u64) -> Result<Action> {
    let registration = manager.core().registration()?;
    // SAFETY: the executor says that these are such functions, and the caller that there is such a section.
    Ok(unsafe { action_of(registration, section_of(start, size)) })
}

pub(crate) fn section_of(start: u64, size: u64) -> Vec<u8> {
    to_bytes(&AddrRange {
        start: ExecutorAddr(start),
        end: ExecutorAddr(start.saturating_add(size)),
    })
}

/// # Safety
/// The functions are in the manager's executor, and take such a section, which is there as [`eh_frame_action`] says.
pub(crate) unsafe fn action_of(registration: Registration, section: Vec<u8>) -> Action {
    // SAFETY: as the caller says.
    let call = |function: u64| unsafe { WrapperCall::new(function, section.clone()) };
    Action {
        finalize: call(registration.register),
        dealloc: call(registration.deregister),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::group::Protection;
    use crate::manager::{Dylib, Options, Segment};
    use crate::mapper::{InProcessKind, Mapper};
    use crate::page::AddressRange;
    use crate::sys;
    use crate::unwind::eh_frame::testing::Section;
    use std::ptr;

    /// Where the unwinder says that the function begins that an address is in.
    fn found(address: u64) -> u64 {
        let find = sys::symbol(c"_Unwind_Find_FDE").expect("Rust's own programs have libgcc_s");
        let mut bases = [0u64; 3];
        let pc = ptr::with_exposed_provenance(address as usize);
        // SAFETY: libgcc's function, and three words, as it wants them.
        unsafe { sys::call_unwinder(find, pc, bases.as_mut_ptr().cast()) };
        bases[2]
    }

    #[test]
    fn frames_are_a_part_of_a_finalize_request() {
        let mapper = Mapper::in_process(InProcessKind::Auto).unwrap();
        let manager = Manager::new(&mapper, Options::default()).unwrap();
        let segments = [
            Segment::new(Protection::READ_EXEC, 64),
            Segment::new(Protection::READ, 128),
        ];
        let mut graph = manager.allocate(segments, Dylib::NONE).unwrap();
        let (code, start) = (graph.address(0), graph.address(1));
        let mut section = Section::new(start);
        section.describe(AddressRange::new(code, 64).unwrap());
        let bytes = section.finish();
        graph.write(0, 0, &[0xcc; 64]).unwrap();
        graph.write(1, 0, &[0; 128]).unwrap();
        graph.write(1, 0, &bytes).unwrap();
        // SAFETY: the section was just written, and describes the code.
        let action = unsafe { manager_eh_frame_action(&manager, start, bytes.len() as u64) };
        assert_eq!(found(code + 10), 0);
        let handle = graph.finalize([action.unwrap()]).unwrap();
        assert_eq!(found(code), code);
        assert_eq!(found(code + 63), code);
        manager.deallocate([handle]).unwrap();
        assert_eq!(found(code + 10), 0);
    }
}
