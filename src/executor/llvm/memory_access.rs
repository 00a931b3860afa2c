// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reading and writing the executor's memory by address.
//!
//! LLVM's protocol has no place for an error here, so a bad address is an out-of-band error.

use crate::sys::{Answer, Memory};
use crate::wire::sps::{AddrRange, Bytes, Decode, Encode, ExecutorAddr, Malformed, Reader};

/// For each element of the argument, `body`; what it appends is the answer.
fn each<'a, T: Decode<'a>>(
    args: &'a [u8],
    mut memory: Memory,
    answers: bool,
    mut body: impl FnMut(&mut Memory, T, &mut Vec<u8>) -> Result<(), String>,
) -> Answer {
    let malformed = |malformed: Malformed| {
        format!("Could not deserialize arguments for wrapper function call: {malformed}")
    };
    let elements: Vec<T> = Decode::decode(&mut Reader::new(args)).map_err(malformed)?;
    let mut out = Vec::new();
    if answers {
        (elements.len() as u64).encode(&mut out);
    }
    for element in elements {
        body(&mut memory, element, &mut out)?;
    }
    Ok(out)
}

fn write<'a, T: Decode<'a>>(
    args: &'a [u8],
    mut store: impl FnMut(&mut Memory, u64, T) -> Result<(), String>,
) -> Answer {
    each(
        args,
        // SAFETY: the controller says what may be written in the process that it uses.
        unsafe { Memory::to_write() },
        false,
        |memory, (address, value): (ExecutorAddr, T), _| store(memory, address.0, value),
    )
}

fn read<'a, T: Decode<'a>>(
    args: &'a [u8],
    load: impl FnMut(&mut Memory, T, &mut Vec<u8>) -> Result<(), String>,
) -> Answer {
    // SAFETY: the controller says what can be read in the process that it uses.
    each(args, unsafe { Memory::to_read() }, true, load)
}

/// Appends a sequence of bytes whose count is known only when they are there.
fn counted(
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
) -> Result<(), String> {
    let place = out.len();
    0u64.encode(out);
    let start = out.len();
    body(out)?;
    let count = (out.len() - start) as u64;
    out[place..start].copy_from_slice(&count.to_le_bytes());
    Ok(())
}

macro_rules! integers {
    ($($write:ident $read:ident $type:ty),*) => {$(
        /// `void (sequence<(addr, integer)>)`.
        pub(super) fn $write(args: &[u8]) -> Answer {
            write(args, Memory::store::<$type>)
        }

        /// `sequence<integer> (sequence<addr>)`.
        pub(super) fn $read(args: &[u8]) -> Answer {
            read(args, |memory, address: ExecutorAddr, out| {
                memory.load::<$type>(address.0).map(|value| value.encode(out))
            })
        }
    )*};
}

integers!(
    write_uint8s read_uint8s u8,
    write_uint16s read_uint16s u16,
    write_uint32s read_uint32s u32,
    write_uint64s read_uint64s u64
);

/// `void (sequence<(addr, addr)>)`.
pub(super) fn write_pointers(args: &[u8]) -> Answer {
    write_uint64s(args)
}

/// `sequence<addr> (sequence<addr>)`.
pub(super) fn read_pointers(args: &[u8]) -> Answer {
    read_uint64s(args)
}

/// `void (sequence<(addr, bytes)>)`.
pub(super) fn write_buffers(args: &[u8]) -> Answer {
    write(args, |memory, address, bytes: Bytes<'_>| {
        memory.write(address, bytes.0)
    })
}

/// `sequence<bytes> (sequence<addr range>)`.
pub(super) fn read_buffers(args: &[u8]) -> Answer {
    read(args, |memory, range: AddrRange, out| {
        counted(out, |out| memory.read(range.start.0, range.size(), out))
    })
}

/// `sequence<string> (sequence<addr>)`, each up to its NUL.
pub(super) fn read_strings(args: &[u8]) -> Answer {
    read(args, |memory, address: ExecutorAddr, out| {
        counted(out, |out| memory.read_string(address.0, out))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sps::to_bytes;

    fn address_of<T>(value: &T) -> ExecutorAddr {
        ExecutorAddr(std::ptr::from_ref(value).expose_provenance() as u64)
    }

    #[test]
    fn what_is_written_is_read() {
        let mut memory = [0u64; 2];
        let start = std::ptr::from_mut(&mut memory[0]).expose_provenance() as u64;
        let at = |offset| ExecutorAddr(start + offset);
        let nothing = Ok(Vec::new());
        assert_eq!(
            write_uint8s(&to_bytes(&vec![(at(0), 1u8), (at(1), 2)])),
            nothing
        );
        assert_eq!(write_uint16s(&to_bytes(&vec![(at(3), 0x0504u16)])), nothing);
        assert_eq!(write_uint32s(&to_bytes(&vec![(at(8), 7u32)])), nothing);
        let read = read_uint64s(&to_bytes(&vec![at(0), at(8)])).unwrap();
        assert_eq!(read, to_bytes(&vec![0x05_0400_0201u64, 7]));
        assert_eq!(write_uint64s(&to_bytes(&vec![(at(0), !0u64)])), nothing);
        assert_eq!(write_pointers(&to_bytes(&vec![(at(8), at(0))])), nothing);
        assert_eq!(
            read_pointers(&to_bytes(&vec![at(8)])).unwrap(),
            to_bytes(&vec![at(0)])
        );
        assert_eq!(
            read_uint32s(&to_bytes(&vec![at(0)])).unwrap(),
            to_bytes(&vec![!0u32])
        );
        assert_eq!(
            read_uint16s(&to_bytes(&vec![at(0)])).unwrap(),
            to_bytes(&vec![!0u16])
        );
        assert_eq!(
            read_uint8s(&to_bytes(&vec![at(0)])).unwrap(),
            to_bytes(&vec![!0u8])
        );
        assert_eq!(memory[0], !0);
    }

    #[test]
    fn buffers_and_strings() {
        let memory = std::cell::UnsafeCell::new(*b"........\0");
        let start = address_of(&memory);
        let written = vec![(start, Bytes(b"hello")), (start, Bytes(b""))];
        assert_eq!(write_buffers(&to_bytes(&written)), Ok(Vec::new()));
        let end = ExecutorAddr(start.0 + 7);
        let ranges = vec![AddrRange { start, end }, AddrRange { start, end: start }];
        let read = read_buffers(&to_bytes(&ranges)).unwrap();
        assert_eq!(read, to_bytes(&vec![Bytes(b"hello.."), Bytes(b"")]));
        let strings = read_strings(&to_bytes(&vec![start, ExecutorAddr(start.0 + 8)])).unwrap();
        assert_eq!(strings, to_bytes(&vec!["hello...", ""]));
    }

    #[test]
    fn nothing_asked_nothing_read() {
        assert_eq!(read_uint8s(&to_bytes(&0u64)), Ok(to_bytes(&0u64)));
        assert!(
            read_uint8s(&[])
                .unwrap_err()
                .starts_with("Could not deserialize")
        );
        assert!(read_uint8s(&to_bytes(&1u64)).is_err());
    }

    #[test]
    fn bad_addresses_are_errors() {
        let bad = ExecutorAddr(8);
        assert!(
            read_uint32s(&to_bytes(&vec![bad]))
                .unwrap_err()
                .contains("0x8")
        );
        assert!(write_uint32s(&to_bytes(&vec![(bad, 1u32)])).is_err());
        assert!(read_strings(&to_bytes(&vec![bad])).is_err());
        let all = AddrRange {
            start: ExecutorAddr(0),
            end: ExecutorAddr(!0),
        };
        assert!(read_buffers(&to_bytes(&vec![all])).is_err());
        let code: fn(&[u8]) -> Answer = write_buffers;
        let code = (code as *const ()).expose_provenance() as u64;
        let write = to_bytes(&vec![(ExecutorAddr(code), Bytes(b"\xcc"))]);
        assert!(write_buffers(&write).unwrap_err().contains("writable"));
    }
}
