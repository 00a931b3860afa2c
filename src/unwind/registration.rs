// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Making the frames of linked code known to the unwinder, so that exceptions pass through it.
//!
//! The unwinder is the one that the process has, found by name: a process of C code alone may have
//! none before linked code wants one. An unwinder believes what it is told, and one of them aborts
//! when it is to forget what it never knew, so frames are looked at and remembered here.

use super::{regions, unwinder};
use crate::lock::Mutex;
use crate::page::AddressRange;
use crate::sys::{self, Answer, FrameRegistrar, Memory};
use crate::wire::answer::{Told, outcome};
use crate::wire::sps::{AddrRange, ExecutorAddr};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

fn registrar() -> Told<FrameRegistrar> {
    static FOUND: OnceLock<FrameRegistrar> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(*found);
    }
    let found =
        match sys::frame_registrar() {
            Some(found) => found,
            None => {
                // SAFETY: any program may load it.
                let opened = unsafe { sys::open_library(Some(c"libgcc_s.so.1")) }.map(|_| ());
                sys::frame_registrar().ok_or_else(|| {
                format!(
                    "register eh-frames: no unwinder is in this process, nor is libgcc_s.so.1 to \
                     be had ({}); link the executor with libgcc_s or libunwind",
                    opened.err().as_deref().unwrap_or("it has no __register_frame")
                )
            })?
            }
        };
    Ok(*FOUND.get_or_init(|| found))
}

/// Addresses of the frame descriptions of a section, or why it is none. It ends with a zero length,
/// which is where the unwinder stops.
fn descriptions(section: AddrRange) -> Told<Vec<u64>> {
    // SAFETY: the controller says that a section is there, which nothing changes while it is read.
    descriptions_in(section, unsafe { Memory::to_read() })
}

fn descriptions_in(section: AddrRange, mut memory: Memory) -> Told<Vec<u64>> {
    let mut found = Vec::new();
    let mut here = section.start.0;
    loop {
        let wrong = |why: &str| {
            Err(format!(
                "the .eh_frame section {:#x} -- {:#x}: the record at {here:#x} {why}",
                section.start.0, section.end.0
            ))
        };
        if here > section.end.0 {
            return wrong("ends outside");
        }
        memory.check_ahead(here, section.end.0);
        // At the end of the section this looks behind it, as the unwinder will.
        let length: u32 = memory.load(here)?;
        let (length, header) = match length {
            0 => return Ok(found),
            u32::MAX => (memory.load::<u64>(here.saturating_add(4))?, 12),
            length => (u64::from(length), 4),
        };
        let body = here + header; // inside memory that was just read
        if length < 4 {
            return wrong("is too short");
        }
        let Some(next) = body.checked_add(length) else {
            return wrong("ends outside");
        };
        if memory.load::<u32>(body)? != 0 {
            found.push(here);
        }
        here = next;
    }
}

/// Sections that this process has made known so far: by its own indexes, and by the unwinder's registration.
static INDEXED: AtomicU64 = AtomicU64::new(0);
static REGISTERED_SO_FAR: AtomicU64 = AtomicU64::new(0);

/// How many sections this process has made known so far: by its own indexes, and by registering them with the
/// unwinder.
pub(crate) fn counts() -> (u64, u64) {
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (load(&INDEXED), load(&REGISTERED_SO_FAR))
}

/// Has an unwinder that asks us find the frames of a section.
///
/// # Safety
/// The section is there, and stays as it is until it is deregistered.
unsafe fn enter(section: AddrRange) -> bool {
    let Some(range) = section.range().filter(|_| unwinder::asked()) else {
        return false;
    };
    // SAFETY: as the caller says.
    let entered = unsafe { regions::enter(range) };
    if entered {
        INDEXED.fetch_add(1, Ordering::Relaxed);
    }
    entered
}

/// Undoes [`enter`], if that was done.
///
/// # Safety
/// The section is there.
unsafe fn take_out(section: AddrRange) -> bool {
    let range = section.range().filter(|_| unwinder::asked());
    // SAFETY: as the caller says.
    range.is_some_and(|range| unsafe { regions::take_out(range) })
}

/// A section that the unwinder knows.
struct Known {
    /// How often it is registered at the moment.
    count: usize,
    end: ExecutorAddr,
    /// Its frame descriptions, where the unwinder takes them one by one.
    frames: Vec<u64>,
}

/// By their first addresses.
static REGISTERED: Mutex<BTreeMap<u64, Known>> = Mutex::new(BTreeMap::new());

fn forget(unwinder: FrameRegistrar, start: u64, frames: Vec<u64>) {
    let calls = match unwinder.one_by_one {
        true => frames,
        false => vec![start],
    };
    for frames in calls.into_iter().rev() {
        // SAFETY: the unwinder's own function, and a section that it knows.
        unsafe { sys::call_on_frames(unwinder.deregister, frames) };
    }
}

/// Has the unwinder forget what is registered in memory that is about to go, as some controllers leave
/// it: whatever is thrown later would run into it. A section that can't be read any more is left, for
/// the unwinder would read it.
pub(crate) fn forget_within(memory: AddressRange) {
    regions::forget_within(memory);
    let known: Vec<(u64, Known)> = {
        let mut registered = REGISTERED.lock();
        let range = registered.range(memory.start()..memory.end());
        let starts: Vec<u64> = range.map(|(start, _)| *start).collect();
        let known = starts
            .into_iter()
            .map(|start| registered.remove_entry(&start));
        known.flatten().collect()
    };
    for (start, known) in known {
        let section = AddrRange {
            start: ExecutorAddr(start),
            end: known.end,
        };
        let (Ok(unwinder), Ok(frames)) = (registrar(), descriptions(section)) else {
            continue;
        };
        if !frames.is_empty() {
            (0..known.count).for_each(|_| forget(unwinder, start, known.frames.clone()));
        }
    }
}

/// `error (addr range)`, for a controller, which may be wrong.
pub(crate) fn register(args: &[u8]) -> Answer {
    outcome(args, |section: AddrRange| {
        let frames = descriptions(section)?;
        // SAFETY: it was looked through, and the controller says that it stays.
        match frames.is_empty() || unsafe { enter(section) } {
            true => Ok(()),
            false => register_with_unwinder(section, frames),
        }
    })
}

/// `error (addr range)`, for an action of this process's own, whose maker says that the section is right.
pub(crate) fn register_own(args: &[u8]) -> Answer {
    outcome(args, |section: AddrRange| {
        // SAFETY: as the maker of the action says.
        if unsafe { enter(section) } {
            return Ok(());
        }
        let frames = match section.range() {
            // SAFETY: as above, so that the section is mapped.
            Some(range) => descriptions_in(section, unsafe { Memory::known(range) })?,
            None => descriptions(section)?,
        };
        match frames.is_empty() {
            true => Ok(()),
            false => register_with_unwinder(section, frames),
        }
    })
}

fn register_with_unwinder(section: AddrRange, mut frames: Vec<u64>) -> Told<()> {
    let start = section.start.0;
    let unwinder = registrar()?;
    let calls = if unwinder.one_by_one {
        frames.clone()
    } else {
        frames.clear();
        vec![start]
    };
    let end = section.end;
    let known = Known {
        count: 0,
        end,
        frames,
    };
    REGISTERED.lock().entry(start).or_insert(known).count += 1;
    REGISTERED_SO_FAR.fetch_add(1, Ordering::Relaxed);
    for frames in calls {
        // SAFETY: the unwinder's own function, and a section that was looked through.
        unsafe { sys::call_on_frames(unwinder.register, frames) };
    }
    Ok(())
}

/// `error (addr range)`, for a controller, which may be wrong.
pub(crate) fn deregister(args: &[u8]) -> Answer {
    outcome(args, |section: AddrRange| {
        // SAFETY: it was looked through.
        let taken_out = descriptions(section).is_ok() && unsafe { take_out(section) };
        match taken_out {
            true => Ok(()),
            false => deregister_from_unwinder(section),
        }
    })
}

/// `error (addr range)`, the twin of [`register_own`].
pub(crate) fn deregister_own(args: &[u8]) -> Answer {
    outcome(args, |section: AddrRange| {
        // SAFETY: as the maker of the action says.
        let taken_out = unsafe { take_out(section) };
        match taken_out {
            true => Ok(()),
            false => deregister_from_unwinder(section),
        }
    })
}

fn deregister_from_unwinder(section: AddrRange) -> Told<()> {
    let start = section.start.0;
    let frames = {
        let mut registered = REGISTERED.lock();
        match registered.get_mut(&start) {
            Some(known) if known.count > 1 => {
                known.count -= 1;
                known.frames.clone()
            }
            Some(_) => registered
                .remove(&start)
                .map(|known| known.frames)
                .unwrap_or_default(),
            None if descriptions(section).is_ok_and(|frames| frames.is_empty()) => {
                return Ok(());
            }
            None => {
                return Err(format!(
                    "deregister eh-frames: no section is registered at {start:#x}"
                ));
            }
        }
    };
    forget(registrar()?, start, frames);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sps::{Outcome, from_bytes, to_bytes};

    fn range_of(bytes: &[u8]) -> AddrRange {
        let start = bytes.as_ptr().expose_provenance() as u64;
        AddrRange {
            start: ExecutorAddr(start),
            end: ExecutorAddr(start + bytes.len() as u64),
        }
    }

    fn record(id: u32, body: &[u8]) -> Vec<u8> {
        let length = 4 + body.len() as u32;
        [&length.to_le_bytes()[..], &id.to_le_bytes(), body].concat()
    }

    /// A CIE for a code pointer of 8 bytes, and a description of code at `code`.
    fn frames(code: u64) -> Vec<u8> {
        let cie = record(0, &[1, 0, 1, 0x78, 16, 0x0c, 7, 8, 0x90, 1, 0, 0]);
        let mut body = code.to_le_bytes().to_vec();
        body.extend(16u64.to_le_bytes());
        body.extend([0; 4]);
        let fde = record(cie.len() as u32 + 4, &body);
        [cie, fde, vec![0; 4]].concat()
    }

    #[test]
    fn descriptions_are_found_and_common_parts_are_not() {
        let bytes = frames(0x1000);
        let start = bytes.as_ptr().expose_provenance() as u64;
        assert_eq!(descriptions(range_of(&bytes)), Ok(vec![start + 20]));
        assert_eq!(descriptions(range_of(&[0; 4])), Ok(Vec::new()));
        // The end of the section stands behind the range, where the unwinder finds it.
        let mut range = range_of(&bytes);
        range.end.0 -= 4;
        assert_eq!(descriptions(range), Ok(vec![start + 20]));
    }

    #[test]
    fn what_is_no_section_is_refused() {
        let refused = |bytes: &[u8]| descriptions(range_of(bytes)).is_err();
        assert!(refused(&[3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
        assert!(refused(&[64, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
        let huge = [&[0xff; 12][..], &[0; 16]].concat();
        assert!(refused(&huge));
        let nowhere = AddrRange {
            start: ExecutorAddr(8),
            end: ExecutorAddr(16),
        };
        assert!(descriptions(nowhere).is_err());
        let answer = register(&to_bytes(&nowhere)).unwrap();
        assert!(from_bytes::<Outcome>(&answer).unwrap().0.is_err());
    }

    #[test]
    fn sections_are_forgotten_as_often_as_they_were_registered() {
        let bytes = frames(0x7000_0000_1000);
        let args = to_bytes(&range_of(&bytes));
        for _ in 0..2 {
            assert_eq!(register(&args), Ok(vec![0]));
        }
        for _ in 0..2 {
            assert_eq!(deregister(&args), Ok(vec![0]));
        }
        let unknown = from_bytes::<Outcome>(&deregister(&args).unwrap()).unwrap();
        assert!(unknown.0.unwrap_err().contains("no section is registered"));
        // As often as that: memory that goes takes what is left along.
        for _ in 0..2 {
            assert_eq!(register(&args), Ok(vec![0]));
        }
        let start = range_of(&bytes).start.0;
        forget_within(AddressRange::new(start + 1, 100).unwrap());
        assert!(REGISTERED.lock().contains_key(&start));
        forget_within(AddressRange::new(start - 1, 100).unwrap());
        assert!(!REGISTERED.lock().contains_key(&start));
        let unknown = from_bytes::<Outcome>(&deregister(&args).unwrap()).unwrap();
        assert!(unknown.0.is_err());
        let empty = to_bytes(&range_of(&[0; 4]));
        assert_eq!(register(&empty), Ok(vec![0]));
        assert_eq!(deregister(&empty), Ok(vec![0]));
    }
}
