// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What is mapped in this process.

use super::gate;
use crate::page::AddressRange;
use std::io;

/// One line of /proc/self/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Where.
    pub(crate) range: AddressRange,
    /// Code of an executable or library file: what linked code may refer to directly.
    pub(crate) image: bool,
    /// Private memory without access: address space that something keeps for itself.
    pub(crate) reserved: bool,
}

/// All mappings, in address order.
pub(crate) fn mappings() -> io::Result<Vec<Mapping>> {
    gate("open(/proc/self/maps)")?;
    let text = std::fs::read_to_string("/proc/self/maps")?;
    Ok(text.lines().filter_map(parse).collect())
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
    let reserved = rest.starts_with("---p") && file.is_empty();
    Some(Mapping {
        range,
        image,
        reserved,
    })
}

/// Whether all of a range is mapped and nothing in it can be accessed.
pub(crate) fn is_reserved(range: AddressRange) -> io::Result<bool> {
    let mut end = range.start();
    for mapping in mappings()?.iter().filter(|mapping| mapping.reserved) {
        if mapping.range.start() <= end {
            end = end.max(mapping.range.end());
        }
    }
    Ok(end >= range.end())
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
