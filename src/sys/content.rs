// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The content of a file in this process's memory. Of a large one most of the time goes into pages that the system
//! zeroes one by one, so that lies in huge pages where the system gives them.

use super::{gate, page_size};
use rustix::buffer::spare_capacity;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::slice;

/// The size of a huge page on x86-64, and on AArch64 with pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Where a huge page costs less than small ones. To zero it takes as long as some hundred of these.
const LEAST_IN_HUGE: usize = HUGE / 4;

/// Bytes that say whether the rest is wanted.
const FIRST: usize = 4096;

/// Bytes that were read.
pub(crate) enum Content {
    Small(Vec<u8>),
    Large(Mapping),
}

impl Content {
    /// The first `size` bytes of a file, or as many as it has. Of a large one the first page is read before the rest, which
    /// is left out where it does not begin with `magic`: another file is not worth its memory.
    pub(super) fn read(file: BorrowedFd<'_>, magic: &[u8], size: usize) -> io::Result<Content> {
        if size < LEAST_IN_HUGE {
            let mut content = Vec::new();
            content.try_reserve_exact(size).map_err(|_| no_room())?;
            while content.len() < size {
                gate("read")?;
                match rustix::io::read(file, spare_capacity(&mut content)) {
                    Ok(0) => break,
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            return Ok(Content::Small(content));
        }
        let mut content = Mapping::new(size)?;
        let mut filled = 0;
        while filled < size && content.starts_with(&magic[..filled.min(magic.len())]) {
            gate("read")?;
            let end = if filled < FIRST { FIRST } else { size };
            match rustix::io::read(file, &mut content[filled..end]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        content.size = filled;
        Ok(Content::Large(content))
    }
}

fn no_room() -> io::Error {
    let why = "there is no memory for it";
    io::Error::new(io::ErrorKind::OutOfMemory, why)
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Small(bytes) => bytes,
            Content::Large(mapping) => mapping,
        }
    }
}

impl DerefMut for Content {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Content::Small(bytes) => bytes,
            Content::Large(mapping) => mapping,
        }
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({} bytes)", self.len())
    }
}

/// Memory of this process's own, which begins with zeros. Its bytes are those from `start` on, at a multiple of a huge
/// page's size.
pub(crate) struct Mapping {
    mapped: usize,
    mapped_size: usize,
    start: usize,
    size: usize,
}

impl Mapping {
    fn new(size: usize) -> io::Result<Mapping> {
        let page = page_size().bytes() as usize;
        let whole = size.checked_next_multiple_of(HUGE);
        let mapped_size = whole.and_then(|whole| whole.checked_add(HUGE - page));
        let mapped_size = mapped_size.ok_or_else(no_room)?;
        gate("mmap")?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: new memory at a place that the system chooses.
        let mapped =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped_size, access, flags) };
        let mapped = mapped.map_err(|_| no_room())?.expose_provenance();
        let mapping = Mapping {
            mapped,
            mapped_size,
            start: mapped.next_multiple_of(HUGE),
            size,
        };
        // Of the last one so much is used that it pays.
        let wanted = (size + HUGE - LEAST_IN_HUGE) / HUGE * HUGE;
        let start = std::ptr::with_exposed_provenance_mut(mapping.start);
        // SAFETY: inside the mapping, since a huge page is a multiple of pages; this advice changes no content. Where
        // the system has no huge pages it is an error, and small ones serve.
        let _ = unsafe { rustix::mm::madvise(start, wanted, Advice::LinuxHugepage) };
        Ok(mapping)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = std::ptr::with_exposed_provenance(self.start);
        // SAFETY: mapped for this value alone, for as long as it is there, and all of it are bytes from the first.
        unsafe { slice::from_raw_parts(start, self.size) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: as above, and this is the one reference to it.
        unsafe { slice::from_raw_parts_mut(start, self.size) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped for this value alone, to which there is no reference any more.
        let _ = unsafe { super::unmap(self.mapped as u64, self.mapped_size as u64) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    #[test]
    fn content_is_what_a_file_has() {
        let path = std::env::temp_dir().join(format!("jitmem-content-{}", std::process::id()));
        for size in [0, 1, 5000, LEAST_IN_HUGE - 1, LEAST_IN_HUGE, HUGE, HUGE + 1] {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 / 5) as u8).collect();
            fs::write(&path, &bytes).unwrap();
            let magic = &bytes[..size.min(8)];
            let read =
                |most| Content::read(File::open(&path).unwrap().as_fd(), magic, most).unwrap();
            let mut content = read(size);
            assert!(*content == *bytes, "{size}");
            assert!(*read(size / 2) == bytes[..size / 2], "{size}");
            // One that has become shorter.
            assert!(*read(size + HUGE) == *bytes, "{size}");
            let other = Content::read(File::open(&path).unwrap().as_fd(), b"another", size);
            let kept = if size < LEAST_IN_HUGE { size } else { FIRST };
            assert_eq!(other.unwrap().len(), kept);
            if let Some(last) = content.last_mut() {
                *last = 3;
                assert_eq!(content.last(), Some(&3));
            }
        }
        fs::remove_file(&path).unwrap();
    }
}
