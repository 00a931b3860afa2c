// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reading `.eh_frame` sections: which functions they describe, and where. The format is that of the Linux
//! Standard Base Core Specification 5.0, 10.6, as compilers for 64-bit processors write it.

use crate::page::AddressRange;

/// Memory that is read by the executor's addresses, wherever this process has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
    range: AddressRange,
    start: *const u8,
}

impl Bytes {
    /// What is `range` in the executor is at `address` here.
    ///
    /// # Safety
    /// As long as the value or a copy is used, what is read of the range is mapped, and is not written
    /// meanwhile.
    pub(crate) unsafe fn new(range: AddressRange, address: u64) -> Bytes {
        Bytes {
            range,
            start: std::ptr::with_exposed_provenance(address as usize),
        }
    }

    /// The first of their addresses.
    pub(crate) fn start(&self) -> u64 {
        self.range.start()
    }

    /// Some bytes, if they are in the range.
    fn load<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let wanted = AddressRange::new(address, N as u64)?;
        if !self.range.contains(wanted) {
            return None;
        }
        let offset = (address - self.range.start()) as usize;
        // SAFETY: inside the range, which is mapped as the one who made this says; bytes have no alignment.
        Some(unsafe { self.start.wrapping_add(offset).cast::<[u8; N]>().read() })
    }

    fn u8(&self, address: u64) -> Option<u8> {
        self.load(address).map(u8::from_ne_bytes)
    }

    fn u32(&self, address: u64) -> Option<u32> {
        self.load(address).map(u32::from_ne_bytes)
    }

    /// Where the number behind a LEB128 number of 64 bits begins.
    fn behind_leb128(&self, address: u64) -> Option<u64> {
        let mut places = address..address + MOST_LEB128;
        let last = places.find(|place| self.u8(*place).is_none_or(|byte| byte & 0x80 == 0))?;
        self.u8(last).map(|_| last + 1)
    }
}

/// How pointers to code are written: a DW_EH_PE constant that is one of those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Encoding {
    size: u64,
    signed: bool,
    relative: bool,
}

impl Encoding {
    /// `None` for what no compiler writes for code.
    fn new(encoding: u8) -> Option<Encoding> {
        let (size, signed) = match encoding & 0x0f {
            0x00 | 0x04 => (8, false),
            0x02 => (2, false),
            0x03 => (4, false),
            0x0a => (2, true),
            0x0b => (4, true),
            0x0c => (8, true),
            _ => return None,
        };
        let relative = match encoding & 0xf0 {
            0x00 => false,
            0x10 => true,
            _ => return None,
        };
        Some(Encoding {
            size,
            signed,
            relative,
        })
    }

    fn load(self, bytes: &Bytes, address: u64) -> Option<u64> {
        Some(match (self.size, self.signed) {
            (2, false) => u16::from_ne_bytes(bytes.load(address)?).into(),
            (2, true) => i16::from_ne_bytes(bytes.load(address)?) as u64,
            (4, false) => bytes.u32(address)?.into(),
            (4, true) => bytes.u32(address)? as i32 as u64,
            _ => u64::from_ne_bytes(bytes.load(address)?),
        })
    }

    /// A pointer that is written at an address.
    fn pointer(self, bytes: &Bytes, address: u64) -> Option<u64> {
        let value = self.load(bytes, address)?;
        Some(match self.relative {
            true => address.wrapping_add(value),
            false => value,
        })
    }

    /// A number of bytes, which has the form of a pointer and its lower bits' meaning.
    fn size(self, bytes: &Bytes, address: u64) -> Option<u64> {
        let unsigned = Encoding {
            signed: false,
            ..self
        };
        unsigned.load(bytes, address)
    }
}

/// A record of a section: a common information entry (CIE) or a frame description entry (FDE).
#[derive(Clone, Copy, Debug)]
struct Record {
    /// Where its identifier is: 0 in a CIE, the distance back to the CIE in an FDE.
    body: u64,
    id: u32,
    /// Where the next record begins.
    end: u64,
}

/// Bytes of a LEB128 number of 64 bits, at most.
const MOST_LEB128: u64 = 10;

/// Letters of an augmentation string, of which there are seven that compilers write. A section may name a CIE for each
/// of its descriptions, so a CIE must be short.
const MOST_LETTERS: u64 = 8;

/// Bytes of a record's length, and of its identifier.
const WORD: u64 = 4;

impl Record {
    /// The record at an address; `Ok(None)` for the zero that ends a section, an error for what is no
    /// record. Lengths of 64 bits are none: libgcc knows no such records.
    fn at(bytes: &Bytes, address: u64) -> Result<Option<Record>, Malformed> {
        let length = match bytes.u32(address).ok_or(Malformed)? {
            0 => return Ok(None),
            u32::MAX => return Err(Malformed),
            length => u64::from(length),
        };
        let body = address + WORD;
        let id = bytes.u32(body).ok_or(Malformed)?;
        if length < WORD || body + length > bytes.range.end() {
            return Err(Malformed);
        }
        Ok(Some(Record {
            body,
            id,
            end: body + length,
        }))
    }

    fn is_common(self) -> bool {
        self.id == 0
    }
}

/// What is no `.eh_frame` section, or has what this reader does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// How the descriptions that belong to a CIE write pointers to code.
fn encoding_of(bytes: &Bytes, common: u64) -> Option<Encoding> {
    let record = Record::at(bytes, common).ok()??;
    if !record.is_common() {
        return None;
    }
    let version = bytes.u8(record.body + WORD)?;
    let augmentation = record.body + WORD + 1;
    let mut letters = augmentation..=augmentation + MOST_LETTERS;
    let end = letters.find(|letter| bytes.u8(*letter) == Some(0))?;
    // Alignment of code and of data.
    let register = bytes.behind_leb128(bytes.behind_leb128(end + 1)?)?;
    let mut data = match version {
        1 => register + 1,
        3 => bytes.behind_leb128(register)?,
        _ => return None,
    };
    if end == augmentation {
        return Encoding::new(0);
    }
    if bytes.u8(augmentation)? != b'z' {
        return None;
    }
    data = bytes.behind_leb128(data)?;
    let mut found = Encoding::new(0);
    for letter in augmentation + 1..end {
        match bytes.u8(letter)? {
            b'R' => {
                found = Encoding::new(bytes.u8(data)?);
                data += 1;
            }
            b'L' => data += 1,
            // How it is found is the unwinder's matter; here is how large it is.
            b'P' => data += 1 + Encoding::new(bytes.u8(data)? & 0x0f)?.size,
            b'S' | b'B' | b'G' => {}
            _ => return None,
        }
    }
    found
}

/// A function that a section describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its code.
    pub(crate) code: AddressRange,
    /// Its frame description.
    pub(crate) description: u64,
}

/// The functions that a section describes from a record on, in its order. Those without code, as compilers leave
/// them where nothing can be reached, are left out: no address is in them, and others may begin where they lie.
pub(crate) struct Functions {
    bytes: Bytes,
    next: u64,
    /// The CIE that was read last.
    common: Option<(u64, Encoding)>,
}

impl Functions {
    /// From the record at an address on.
    pub(crate) fn from(bytes: Bytes, record: u64) -> Functions {
        Functions {
            bytes,
            next: record,
            common: None,
        }
    }

    fn encoding(&mut self, common: u64) -> Option<Encoding> {
        match self.common {
            Some((known, encoding)) if known == common => Some(encoding),
            _ => {
                let encoding = encoding_of(&self.bytes, common)?;
                self.common = Some((common, encoding));
                Some(encoding)
            }
        }
    }

    fn describe(&mut self, record: Record) -> Option<Function> {
        let encoding = self.encoding(record.body.checked_sub(record.id.into())?)?;
        let start = encoding.pointer(&self.bytes, record.body + WORD)?;
        let size = encoding.size(&self.bytes, record.body + WORD + encoding.size)?;
        Some(Function {
            code: AddressRange::new(start, size)?,
            description: record.body - WORD,
        })
    }
}

impl Iterator for Functions {
    type Item = Result<Function, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // A section ends with a zero, or where it ends.
            if self.next == self.bytes.range.end() {
                return None;
            }
            match Record::at(&self.bytes, self.next) {
                Ok(None) => return None,
                Err(malformed) => {
                    self.next = self.bytes.range.end();
                    return Some(Err(malformed));
                }
                Ok(Some(record)) => {
                    self.next = record.end;
                    let described = match record.is_common() {
                        true => continue,
                        false => self.describe(record).ok_or(Malformed),
                    };
                    if described.is_ok_and(|function| function.code.size() == 0) {
                        continue;
                    }
                    return Some(described);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A section, built up.
    pub(crate) struct Section {
        pub(crate) bytes: Vec<u8>,
        start: u64,
        common: u64,
    }

    impl Section {
        /// That will be at an address, with pointers of four relative bytes.
        pub(crate) fn new(start: u64) -> Section {
            // Version 1, "zR", alignments 1 and -8, register 16, one byte of data: sdata4 | pcrel.
            let common = b"\x01zR\0\x01\x78\x10\x01\x1b\x0c\x07\x08\x90\x01\0\0";
            Section::with_common(start, common)
        }

        /// With a CIE of the caller's.
        pub(crate) fn with_common(start: u64, common: &[u8]) -> Section {
            let mut section = Section {
                bytes: Vec::new(),
                start,
                common: start,
            };
            section.record(0, common);
            section
        }

        fn record(&mut self, id: u32, body: &[u8]) {
            let length = WORD as u32 + body.len() as u32;
            self.bytes.extend(length.to_ne_bytes());
            self.bytes.extend(id.to_ne_bytes());
            self.bytes.extend(body);
        }

        fn end(&self) -> u64 {
            self.start + self.bytes.len() as u64
        }

        /// Describes a function. Gives where.
        pub(crate) fn describe(&mut self, code: AddressRange) -> u64 {
            let description = self.end();
            let from_start = code.start().wrapping_sub(description + 2 * WORD) as u32;
            let mut body = from_start.to_ne_bytes().to_vec();
            body.extend((code.size() as u32).to_ne_bytes());
            body.extend([0; 4]);
            self.record((description + WORD - self.common) as u32, &body);
            description
        }

        /// With its end.
        pub(crate) fn finish(mut self) -> Vec<u8> {
            self.bytes.extend([0; 4]);
            self.bytes
        }
    }

    /// Bytes that are at an address of the executor's.
    pub(crate) fn bytes_at(start: u64, bytes: &[u8]) -> Bytes {
        let range = AddressRange::new(start, bytes.len() as u64).unwrap();
        // SAFETY: the tests keep what they read.
        unsafe { Bytes::new(range, bytes.as_ptr().expose_provenance() as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{Section, bytes_at};
    use super::*;

    const START: u64 = 0x7000_0000_1000;

    fn code(start: u64, size: u64) -> AddressRange {
        AddressRange::new(start, size).unwrap()
    }

    #[test]
    fn functions_are_found_in_the_order_of_the_section() {
        let mut section = Section::new(START);
        let all = [code(START - 0x1000, 8), code(START + 0x500, 77)];
        let descriptions = all.map(|code| section.describe(code));
        let bytes = section.finish();
        let found: Vec<Function> = Functions::from(bytes_at(START, &bytes), START)
            .map(Result::unwrap)
            .collect();
        let expected = [0, 1].map(|index| Function {
            code: all[index],
            description: descriptions[index],
        });
        assert_eq!(found, expected);
        let last = Functions::from(bytes_at(START, &bytes), descriptions[1]);
        assert_eq!(last.count(), 1);
        // A section may end without a zero.
        let short = bytes_at(START, &bytes[..bytes.len() - 4]);
        assert_eq!(Functions::from(short, START).count(), 2);
    }

    #[test]
    fn no_description_costs_more_than_a_short_one() {
        // Signal frames, whose letter takes no data.
        let letters = |count| b"S".repeat(count);
        let code_alignment = |bytes: usize| [&b"\x81".repeat(bytes - 1)[..], b"\x00"].concat();
        let described = |letters: Vec<u8>, alignment: Vec<u8>| {
            let parts = [
                b"\x01zR",
                &letters[..],
                b"\0",
                &alignment[..],
                b"\x78\x10\x01\x1b\0\0\0",
            ];
            let mut section = Section::with_common(START, &parts.concat());
            section.describe(code(START + 0x100, 16));
            let bytes = section.finish();
            let mut found = Functions::from(bytes_at(START, &bytes), START);
            found.next().is_some_and(|function| function.is_ok())
        };
        assert!(described(letters(6), code_alignment(1)));
        assert!(described(letters(0), code_alignment(10)));
        assert!(!described(letters(7), code_alignment(1)));
        assert!(!described(letters(0), code_alignment(11)));
    }

    #[test]
    fn functions_without_code_are_left_out() {
        let mut section = Section::new(START);
        let with = code(START + 0x500, 16);
        section.describe(code(START + 0x100, 0));
        section.describe(with);
        section.describe(code(START + 0x510, 0));
        let bytes = section.finish();
        let found = Functions::from(bytes_at(START, &bytes), START);
        let codes: Vec<AddressRange> = found.map(|function| function.unwrap().code).collect();
        assert_eq!(codes, [with]);
    }

    #[test]
    fn pointers_have_the_forms_that_compilers_write() {
        let value = START + 0x100;
        let at = START;
        for (encoding, content, expected) in [
            (0x00, value.to_ne_bytes().to_vec(), value),
            (0x04, value.to_ne_bytes().to_vec(), value),
            (0x1b, 16i32.to_ne_bytes().to_vec(), at + 16),
            (0x1b, (-16i32).to_ne_bytes().to_vec(), at - 16),
            (0x1c, (-16i64).to_ne_bytes().to_vec(), at - 16),
            (0x03, 16u32.to_ne_bytes().to_vec(), 16),
            (0x1a, (-2i16).to_ne_bytes().to_vec(), at - 2),
            (0x12, 2u16.to_ne_bytes().to_vec(), at + 2),
        ] {
            let read = Encoding::new(encoding).unwrap();
            let bytes = bytes_at(at, &content);
            assert_eq!(read.pointer(&bytes, at), Some(expected), "{encoding:#x}");
            assert_eq!(read.pointer(&bytes, at + 1), None);
        }
        // LEB128, relative to data, indirect.
        assert!(
            [0x01, 0x3b, 0x9b]
                .map(Encoding::new)
                .iter()
                .all(Option::is_none)
        );
    }

    #[test]
    fn no_bytes_are_read_outside_whatever_is_there() {
        let mut section = Section::new(START);
        section.describe(code(START + 0x100, 16));
        let right = section.finish();
        for size in 0..right.len() {
            let part = bytes_at(START, &right[..size]);
            let _ = Functions::from(part, START).count();
        }
        for place in 0..right.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut wrong = right.clone();
                wrong[place] = value;
                let functions = Functions::from(bytes_at(START, &wrong), START);
                assert!(functions.count() <= 2);
            }
        }
    }
}
