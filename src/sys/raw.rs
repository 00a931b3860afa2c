// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! This process's memory by address, as a controller asks for it.
//!
//! Pages are looked at before they are touched, so that a bad address is an error and not a crash.
//! Another thread may still unmap them in between, and what lies there may be anything at all: both are
//! for the one who asks to know, so an access is made with `unsafe`.

use super::{gate, page_size};
use crate::page::AddressRange;
use std::io;
use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Read = libc::MADV_POPULATE_READ as isize,
    Write = libc::MADV_POPULATE_WRITE as isize,
}

/// So many bytes are checked ahead at most: pages that hold no memory yet are given some by that.
const MOST_AHEAD: u64 = 64 << 10;

/// Takes the pages of memory that is about to be written.
pub(crate) fn take(address: u64, size: u64) -> io::Result<()> {
    let range = AddressRange::new(address, size);
    let pages = range.and_then(|range| range.rounded_out(super::page_size()));
    populate(pages.ok_or(io::ErrorKind::InvalidInput)?, Need::Write)
}

fn populate(pages: AddressRange, need: Need) -> io::Result<()> {
    gate("madvise")?;
    let start = std::ptr::with_exposed_provenance_mut(pages.start() as usize);
    loop {
        // SAFETY: this advice changes no content; where nothing is mapped it is an error.
        let result = unsafe { libc::madvise(start, pages.size() as usize, need as libc::c_int) };
        match result {
            0 => return Ok(()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        }
    }
}

/// The advice came with Linux 5.14; without it pages are touched unseen.
fn pages_can_be_checked() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let here = 0u8;
        let here = std::ptr::from_ref(&here).expose_provenance() as u64;
        let page = AddressRange::new(page_size().round_down(here), page_size().bytes());
        page.is_some_and(|page| populate(page, Need::Write).is_ok())
    })
}

/// Access to memory by address. Remembers which pages were found good, for the next ones asked for
/// are mostly the same; so it serves one request and no longer.
#[derive(Debug)]
pub(crate) struct Memory {
    need: Need,
    good: AddressRange,
}

/// Integers that are read and written whole, if their address is a multiple of their size.
pub(crate) trait Whole: Copy {}

impl Whole for u8 {}
impl Whole for u16 {}
impl Whole for u32 {}
impl Whole for u64 {}

impl Memory {
    fn new(need: Need) -> Memory {
        let good = AddressRange::new(0, 0).expect("nothing has an end");
        Memory { need, good }
    }

    /// # Safety
    /// While it is used, nothing unmaps the memory that is asked for or writes it without
    /// synchronization.
    pub(crate) unsafe fn to_read() -> Memory {
        Memory::new(Need::Read)
    }

    /// The same for a range whose pages need not be looked at.
    ///
    /// # Safety
    /// As [`Memory::to_read`], and the range is mapped.
    pub(crate) unsafe fn known(range: AddressRange) -> Memory {
        Memory {
            need: Need::Read,
            good: range,
        }
    }

    /// # Safety
    /// As [`Memory::to_read`]; and no Rust object lies in what is written.
    pub(crate) unsafe fn to_write() -> Memory {
        Memory::new(Need::Write)
    }

    fn check(&mut self, address: u64, size: u64) -> Result<(), String> {
        let bytes = AddressRange::new(address, size);
        if size == 0 || bytes.is_some_and(|bytes| self.good.contains(bytes)) {
            return Ok(());
        }
        let (verb, kind) = match self.need {
            Need::Read => ("read", "readable"),
            Need::Write => ("write", "writable"),
        };
        let refused = |why: &dyn std::fmt::Display| {
            Err(format!(
                "{verb} {size} bytes at {address:#x}: {why}; not all of it is {kind} memory"
            ))
        };
        let Some(pages) = bytes.and_then(|bytes| bytes.rounded_out(page_size())) else {
            return refused(&"beyond the end of memory");
        };
        if pages_can_be_checked() {
            if let Err(error) = populate(pages, self.need) {
                return refused(&error);
            }
        }
        self.good = pages;
        Ok(())
    }

    /// Checks up to 64 KiB between two addresses, unless the first bytes there are known to be good: so what is
    /// read one after the other takes few system calls. Where not all is good, each read says so itself.
    pub(crate) fn check_ahead(&mut self, address: u64, end: u64) {
        let left = end.saturating_sub(address);
        let first = AddressRange::new(address, left.min(size_of::<u128>() as u64));
        if first.is_some_and(|first| !self.good.contains(first)) {
            let _ = self.check(address, left.min(MOST_AHEAD));
        }
    }

    /// Appends the bytes at an address.
    pub(crate) fn read(
        &mut self,
        address: u64,
        size: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        self.check(address, size)?;
        let count = size as usize; // memory that was checked is no larger than addresses go
        if out.try_reserve(count).is_err() {
            return Err(format!(
                "read {size} bytes at {address:#x}: the heap has no room for them"
            ));
        }
        let from: *const u8 = std::ptr::with_exposed_provenance(address as usize);
        let length = out.len();
        // SAFETY: the bytes can be read, and there is room for them behind what `out` holds.
        unsafe {
            out.as_mut_ptr()
                .add(length)
                .copy_from_nonoverlapping(from, count);
            out.set_len(length + count);
        }
        Ok(())
    }

    /// Appends the bytes up to the next zero, which is left out.
    pub(crate) fn read_string(&mut self, address: u64, out: &mut Vec<u8>) -> Result<(), String> {
        let page = page_size().bytes();
        let mut here = address;
        loop {
            let rest = page - here % page;
            let length = out.len();
            self.read(here, rest, out)?;
            if let Some(end) = out[length..].iter().position(|byte| *byte == 0) {
                out.truncate(length + end);
                return Ok(());
            }
            let next = here.checked_add(rest);
            here = next.ok_or_else(|| format!("the string at {address:#x} has no end"))?;
        }
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), String> {
        self.check(address, bytes.len() as u64)?;
        let to: *mut u8 = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: that many bytes can be written there.
        unsafe { to.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// The integer at an address.
    pub(crate) fn load<T: Whole>(&mut self, address: u64) -> Result<T, String> {
        self.check(address, size_of::<T>() as u64)?;
        let from: *const T = std::ptr::with_exposed_provenance(address as usize);
        // SAFETY: the bytes can be read, and any bytes are an integer.
        Ok(unsafe {
            if from.is_aligned() {
                from.read_volatile()
            } else {
                from.read_unaligned()
            }
        })
    }

    /// Puts an integer to an address. Linked code may run meanwhile and read it: stubs jump through
    /// pointers that are written here.
    pub(crate) fn store<T: Whole>(&mut self, address: u64, value: T) -> Result<(), String> {
        self.check(address, size_of::<T>() as u64)?;
        let to: *mut T = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: the bytes can be written.
        unsafe {
            if to.is_aligned() {
                to.write_volatile(value);
            } else {
                to.write_unaligned(value);
            }
        }
        Ok(())
    }
}

/// Gives the pages of a private mapping back, so that they are zero again and cost nothing until
/// they are touched.
///
/// # Safety
/// The range is the caller's, and its content is not used any more.
pub(crate) unsafe fn discard(pages: AddressRange) -> io::Result<()> {
    gate("madvise")?;
    let start = std::ptr::with_exposed_provenance_mut(pages.start() as usize);
    // SAFETY: as the caller says.
    let result = unsafe { libc::madvise(start, pages.size() as usize, libc::MADV_DONTNEED) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fault::Faults;
    use super::super::testing::{reading, writing};
    use super::super::{At, protect, replace_by_memory, reserve, unmap};
    use super::*;
    use crate::group::Protection;

    /// New pages to read and to write, and `reserved` without access behind them.
    fn pages(count: u64, reserved: u64) -> AddressRange {
        let page = page_size().bytes();
        let all = (count + reserved) * page;
        let start = reserve(At::Anywhere, all).unwrap();
        // SAFETY: they were just reserved.
        unsafe { replace_by_memory(start, count * page, Protection::READ_WRITE) }.unwrap();
        AddressRange::new(start, all).unwrap()
    }

    fn give_back(pages: AddressRange) {
        // SAFETY: a test that ends uses its pages no more.
        unsafe { unmap(pages.start(), pages.size()) }.unwrap();
    }

    #[test]
    fn what_is_checked_ahead_takes_no_system_call() {
        let page = page_size().bytes();
        let all = pages(4, 1);
        let (start, end) = (all.start(), all.start() + 4 * page);
        let mut memory = reading();
        memory.check_ahead(start + 1, end);
        let faults = Faults::all_after(0, libc::ENOMEM);
        for at in (start + 1..end - 1).step_by(1000) {
            memory.check_ahead(at, end);
            memory.load::<u8>(at).unwrap();
        }
        assert_eq!(faults.failed(), None);
        drop(faults);
        // What can't be read ahead is found out when it is read.
        let mut memory = reading();
        memory.check_ahead(start, end + page);
        memory.load::<u64>(end - 8).unwrap();
        memory.load::<u64>(end - 4).unwrap_err();
        give_back(all);
    }

    #[test]
    fn good_addresses_are_read_and_written_and_bad_ones_are_errors() {
        let page = page_size().bytes();
        let all = pages(2, 1);
        let start = all.start();
        let at = start + page - 3; // across two pages
        writing().write(at, b"hello").unwrap();
        let mut out = b"<".to_vec();
        reading().read(at, 5, &mut out).unwrap();
        reading().read_string(at, &mut out).unwrap();
        assert_eq!(out, b"<hellohello");
        writing().store(at, 0x0807_0605_0403_0201u64).unwrap();
        assert_eq!(reading().load::<u16>(at + 1), Ok(0x0302));
        writing().store(start, 7u32).unwrap();
        assert_eq!(reading().load::<u32>(start), Ok(7));

        let last = start + 2 * page;
        assert!(writing().write(last - 2, b"abc").is_err());
        assert!(reading().load::<u32>(last - 2).is_err());
        writing().write(last - 2, b"ab").unwrap();
        assert!(reading().read_string(last - 2, &mut out).is_err());
        // SAFETY: the test's own page.
        unsafe { protect(start, page, Protection::READ) }.unwrap();
        assert!(writing().store(start, 8u32).is_err());
        assert_eq!(reading().load::<u32>(start), Ok(7));
        for bad in [0, 8, u64::MAX - 1, 1 << 63] {
            assert!(reading().load::<u64>(bad).is_err(), "{bad:#x}");
            assert!(writing().store(bad, 1u64).is_err(), "{bad:#x}");
        }
        assert!(reading().read(start, u64::MAX, &mut out).is_err());
        assert_eq!(writing().write(8, &[]), Ok(()));
        give_back(all);
    }

    #[test]
    fn discarded_pages_are_zero() {
        let page = pages(1, 0);
        let start = page.start();
        writing().store(start, 7u64).unwrap();
        // SAFETY: the test's own page.
        unsafe { discard(page) }.unwrap();
        assert_eq!(reading().load::<u64>(start), Ok(0));
        give_back(page);
    }
}
