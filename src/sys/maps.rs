// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is mapped in this process.

use super::gate;
use crate::page::AddressRange;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// One line of /proc/self/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Where.
    pub(crate) range: AddressRange,
    /// Code of an executable or library file: what linked code may refer to directly.
    pub(crate) image: bool,
    /// Private memory without access: address space that something keeps for itself.
    pub(crate) reserved: bool,
    /// Private memory of no file, with any access or none.
    pub(crate) private_memory: bool,
}

/// All mappings, in address order.
pub(crate) fn mappings() -> io::Result<Vec<Mapping>> {
    gate("open(/proc/self/maps)")?;
    // The name of a mapped file need not be UTF-8.
    let lines = std::fs::read("/proc/self/maps")?;
    let lines = lines.split(|byte| *byte == b'\n');
    Ok(lines
        .filter_map(|line| parse(&String::from_utf8_lossy(line)))
        .collect())
}

fn parse(line: &str) -> Option<Mapping> {
    // start-end perms offset dev inode [path]; the path may hold blanks.
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let range = AddressRange::new(start, end.checked_sub(start)?)?;
    let executable = rest.as_bytes().get(2) == Some(&b'x');
    let file = rest.splitn(5, ' ').nth(4).map_or("", str::trim_start);
    // Memory is listed as a file where it is a memfd or shared.
    let memory = ["/memfd:", "/dev/zero"];
    let memory = memory.iter().any(|prefix| file.starts_with(prefix));
    let image = executable && file.starts_with('/') && !memory;
    let private_memory = rest.as_bytes().get(3) == Some(&b'p') && file.is_empty();
    Some(Mapping {
        range,
        image,
        reserved: private_memory && rest.starts_with("---"),
        private_memory,
    })
}

/// Whether all of a range is mapped and nothing in it can be accessed.
pub(crate) fn is_reserved(range: AddressRange) -> io::Result<bool> {
    is_all(range, |mapping| mapping.reserved)
}

/// Whether all of a range is private memory of no file.
pub(crate) fn is_private_memory(range: AddressRange) -> io::Result<bool> {
    is_all(range, |mapping| mapping.private_memory)
}

fn is_all(range: AddressRange, wanted: fn(&Mapping) -> bool) -> io::Result<bool> {
    let mut end = range.start();
    for mapping in mappings()?.iter().filter(|mapping| wanted(mapping)) {
        if mapping.range.start() <= end {
            end = end.max(mapping.range.end());
        }
    }
    Ok(end >= range.end())
}

/// Bytes of /proc/self/pagemap that are read at once; there are 8 for each page.
const PAGEMAP_BYTES: usize = 32 << 10;

/// The pages of a range that have been touched, as runs in address order. Others have never held anything
/// but zeros, in private memory.
pub(crate) fn touched(pages: AddressRange) -> io::Result<Vec<AddressRange>> {
    /// Bits of an entry: the page is in memory, or swapped out.
    const THERE: u64 = 0b11 << 62;
    let page = super::page_size().bytes();
    gate("open(/proc/self/pagemap)")?;
    let file = File::open("/proc/self/pagemap")?;
    let mut runs: Vec<AddressRange> = Vec::new();
    let mut buffer = [0; PAGEMAP_BYTES];
    let mut address = pages.start();
    while address < pages.end() {
        let left = (pages.end() - address) / page * 8;
        let part = &mut buffer[..left.min(PAGEMAP_BYTES as u64) as usize];
        gate("pread")?;
        file.read_exact_at(part, address / page * 8)?;
        for entry in part.chunks_exact(8) {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            if entry & THERE != 0 {
                let mut start = address;
                if let Some(last) = runs.last().filter(|last| last.end() == address) {
                    start = last.start();
                    runs.pop();
                }
                runs.extend(AddressRange::new(start, address + page - start));
            }
            address += page;
        }
    }
    Ok(runs)
}

/// An address inside libc's code: the neighbourhood that linked code must reach.
pub(crate) fn libc_address() -> u64 {
    libc::getpid as *const () as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let line = "7f00-8f00 r-xp 00000000 08:01 123                        /usr/lib/a b.so";
        let mapping = parse(line).unwrap();
        assert_eq!(mapping.range, AddressRange::new(0x7f00, 0x1000).unwrap());
        assert!(mapping.image);
        assert!(
            !parse("7f00-8f00 r-xs 00000000 00:01 123    /memfd:jitmem")
                .unwrap()
                .image
        );
        assert!(
            !parse("7f00-8f00 r-xs 00000000 00:01 123    /dev/zero (deleted)")
                .unwrap()
                .image
        );
        assert!(
            !parse("7f00-8f00 r--p 00000000 08:01 123    /usr/lib/a.so")
                .unwrap()
                .image
        );
        assert!(
            !parse("7f00-8f00 r-xp 00000000 00:00 0      [vdso]")
                .unwrap()
                .image
        );
        assert!(!parse("7f00-8f00 rw-p 00000000 00:00 0").unwrap().image);
        assert!(parse("8f00-7f00 rw-p 00000000 00:00 0").is_none());
        assert!(parse("").is_none());
    }

    #[test]
    fn a_file_may_have_any_name() {
        use std::os::unix::ffi::OsStringExt;
        let name = [
            b"jitmem-caf\xe9-".to_vec(),
            std::process::id().to_string().into(),
        ]
        .concat();
        let path = std::env::temp_dir().join(std::ffi::OsString::from_vec(name));
        std::fs::write(&path, [0; 100]).unwrap();
        let file = File::open(&path).unwrap();
        let at = crate::sys::At::Anywhere;
        let page = crate::sys::page_size().bytes();
        let none = crate::group::Protection::NONE;
        let start = crate::sys::map_file(at, page, none, std::os::fd::AsFd::as_fd(&file)).unwrap();
        let all = mappings().unwrap();
        let found = all.iter().find(|one| one.range.start() == start).unwrap();
        assert!(!found.private_memory);
        // SAFETY: the test's own page.
        unsafe { crate::sys::unmap(start, page) }.unwrap();
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn libc_is_among_the_images() {
        let libc = libc_address();
        let here = AddressRange::new(libc, 1).unwrap();
        let mappings = mappings().unwrap();
        assert!(
            mappings
                .iter()
                .any(|mapping| mapping.image && mapping.range.contains(here))
        );
        assert!(
            mappings
                .windows(2)
                .all(|pair| pair[0].range.end() <= pair[1].range.start())
        );
    }
}
