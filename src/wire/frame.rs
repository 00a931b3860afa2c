// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! EPC's messages: a header of 32 bytes, then a body, and the body that opens a session.

use super::sps::{Bytes, Decode, Encode, ExecutorAddr, Malformed, Reader};
use std::collections::BTreeMap;
use std::fmt;

/// Bytes of a header on the wire.
pub const HEADER_SIZE: usize = 32;

/// The tag of a result that is an out-of-band error: the body is its text.
pub const OUT_OF_BAND: u64 = 1;

/// Our controllers number their calls from here, LLVM's from 0. So an executor knows to whom it can answer
/// with an [`OUT_OF_BAND`] result; to others such an error is a result without bytes.
pub const FIRST_OWN_CALL: u64 = 1 << 63;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Opcode {
    /// The executor introduces itself; the first message of a session.
    Setup = 0,
    /// The sender ends the session; the body is an [`super::sps::Outcome`].
    Hangup = 1,
    /// The answer to a call.
    Result = 2,
    /// A call of a wrapper function (to the executor) or of a tag (to the controller).
    CallWrapper = 3,
}

/// Why a session can't go on. The texts that stock executors have are theirs, word for word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A message that is smaller than its own header.
    TooSmall,
    /// No opcode has this number.
    UnexpectedOpcode,
    /// The stream ends inside a message.
    EndOfFile,
    /// A Setup that is not the first message, or that comes from the controller.
    UnexpectedSetup,
    /// A Result for a call that was not made, or that was answered already.
    UnknownSequence(u64),
    /// A Setup whose sequence number or tag is not 0.
    NumberedSetup,
    /// A Result whose tag is not 0.
    TaggedResult,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameError::TooSmall => f.write_str("Message size too small"),
            FrameError::UnexpectedOpcode => f.write_str("Unexpected opcode"),
            FrameError::EndOfFile => f.write_str("Unexpected end-of-file"),
            FrameError::UnexpectedSetup => f.write_str("Unexpected Setup opcode"),
            FrameError::UnknownSequence(number) => {
                write!(f, "No call for sequence number {number}")
            }
            FrameError::NumberedSetup => f.write_str("Unexpected number or tag in a Setup message"),
            FrameError::TaggedResult => f.write_str("Unexpected tag in a Result message"),
        }
    }
}

impl std::error::Error for FrameError {}

/// What stands before each body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the message, this header included.
    pub size: u64,
    /// What the message is.
    pub opcode: Opcode,
    /// Chosen by the caller, unique among its calls that are not answered yet.
    pub sequence: u64,
    /// The function or tag that is called; 0 in other messages.
    pub tag: u64,
}

impl Header {
    /// The header of a message with `body` bytes behind it.
    pub fn new(opcode: Opcode, sequence: u64, tag: u64, body: usize) -> Header {
        Header {
            size: HEADER_SIZE as u64 + body as u64,
            opcode,
            sequence,
            tag,
        }
    }

    /// Bytes behind the header. A decoded header may say anything here: the reader of the body
    /// holds it against a limit of its own first.
    pub fn body_size(&self) -> u64 {
        self.size.saturating_sub(HEADER_SIZE as u64)
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let fields = [self.size, self.opcode as u64, self.sequence, self.tag];
        let mut bytes = [0; HEADER_SIZE];
        for (place, field) in bytes.chunks_exact_mut(8).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header that the bytes are. [`Header::check`] is left to the reader, who may have
    /// reasons of its own to refuse the opcode.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Header, FrameError> {
        let (size, opcode, sequence, tag) = Decode::decode(&mut Reader::new(bytes))
            .expect("a header's bytes are four integers of 64 bits");
        if size < HEADER_SIZE as u64 {
            return Err(FrameError::TooSmall);
        }
        let opcode = match opcode {
            0u64 => Opcode::Setup,
            1 => Opcode::Hangup,
            2 => Opcode::Result,
            3 => Opcode::CallWrapper,
            _ => return Err(FrameError::UnexpectedOpcode),
        };
        Ok(Header {
            size,
            opcode,
            sequence,
            tag,
        })
    }

    /// Whether this is a result that tells one of our controllers of an error.
    pub fn is_out_of_band(&self) -> bool {
        self.opcode == Opcode::Result && self.tag == OUT_OF_BAND && self.sequence >= FIRST_OWN_CALL
    }

    /// Whether sequence number and tag are 0 where the opcode wants it.
    pub fn check(&self) -> Result<(), FrameError> {
        match self.opcode {
            Opcode::Setup if self.sequence != 0 || self.tag != 0 => Err(FrameError::NumberedSetup),
            Opcode::Result if self.tag != 0 && !self.is_out_of_band() => {
                Err(FrameError::TaggedResult)
            }
            _ => Ok(()),
        }
    }
}

/// A whole message.
#[cfg(any(test, feature = "internals"))]
pub fn message(opcode: Opcode, sequence: u64, tag: u64, body: &[u8]) -> Vec<u8> {
    let header = Header::new(opcode, sequence, tag, body.len());
    [header.encode().as_slice(), body].concat()
}

/// Which fields the body of a Setup has. Nothing in it says so: an executor has to be told, a
/// controller can recognize it (`Setup::recognize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupLayout {
    /// LLVM 14 to 16: no bootstrap map.
    Symbols,
    /// LLVM 17 and later.
    MapAndSymbols,
}

impl SetupLayout {
    /// What controllers of this release of LLVM expect.
    pub fn of_llvm(release: u32) -> SetupLayout {
        match release {
            ..=16 => SetupLayout::Symbols,
            _ => SetupLayout::MapAndSymbols,
        }
    }
}

/// How an executor introduces itself: the body of [`Opcode::Setup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Setup {
    /// The target triple of the executor's process.
    pub triple: String,
    /// Bytes of a page there.
    pub page_size: u64,
    /// Values by name, each serialized on its own. [`SetupLayout::Symbols`] has no place for it.
    pub bootstrap_map: BTreeMap<String, Vec<u8>>,
    /// Addresses by name.
    pub bootstrap_symbols: BTreeMap<String, ExecutorAddr>,
}

impl Setup {
    /// The body's bytes.
    pub fn encode(&self, layout: SetupLayout) -> Vec<u8> {
        let mut out = Vec::new();
        (self.triple.as_str(), self.page_size).encode(&mut out);
        if layout == SetupLayout::MapAndSymbols {
            self.bootstrap_map.encode(&mut out);
        }
        self.bootstrap_symbols.encode(&mut out);
        out
    }

    /// The body in a layout that is known. Bytes behind it are ignored.
    pub fn decode(body: &[u8], layout: SetupLayout) -> Result<Setup, Malformed> {
        Setup::take(&mut Reader::new(body), layout)
    }

    /// The body in the layout that takes all of its bytes, and which that is. What the old layout
    /// has for addresses the new one reads as lengths, so to fit both, a body needs symbols at
    /// addresses that are smaller than itself; it then counts as the new one.
    pub fn recognize(body: &[u8]) -> Result<(Setup, SetupLayout), Malformed> {
        let whole = |layout| {
            let mut bytes = Reader::new(body);
            let setup = Setup::take(&mut bytes, layout)?;
            match bytes.rest().len() {
                0 => Ok((setup, layout)),
                surplus => Err(Malformed::Length(surplus as u64)),
            }
        };
        whole(SetupLayout::MapAndSymbols)
            .or_else(|error| whole(SetupLayout::Symbols).map_err(|_| error))
    }

    fn take(bytes: &mut Reader<'_>, layout: SetupLayout) -> Result<Setup, Malformed> {
        let (triple, page_size) = Decode::decode(bytes)?;
        let bootstrap_map = match layout {
            SetupLayout::Symbols => BTreeMap::new(),
            SetupLayout::MapAndSymbols => <BTreeMap<String, Bytes<'_>>>::decode(bytes)?
                .into_iter()
                .map(|(name, value)| (name, value.0.to_vec()))
                .collect(),
        };
        Ok(Setup {
            triple,
            page_size,
            bootstrap_map,
            bootstrap_symbols: Decode::decode(bytes)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    const CALL: &[u8; HEADER_SIZE] = b"\x25\0\0\0\0\0\0\0\
        \x03\0\0\0\0\0\0\0\
        \x08\x07\x06\x05\x04\x03\x02\x01\
        \0\x10\xef\xbe\xad\xde\xff\x7f";

    const TRIPLE: &[u8] = b"\x13\0\0\0\0\0\0\0x86_64-pc-linux-gnu\0\x10\0\0\0\0\0\0";

    fn header_with(size: u64, opcode: u64) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        bytes[8..16].copy_from_slice(&opcode.to_le_bytes());
        bytes
    }

    #[test]
    fn the_layout_changed_with_17() {
        assert_eq!([14, 16, 17, 22].map(SetupLayout::of_llvm), {
            use SetupLayout::*;
            [Symbols, Symbols, MapAndSymbols, MapAndSymbols]
        });
    }

    #[test]
    fn golden_header() {
        let header = Header::new(
            Opcode::CallWrapper,
            0x0102_0304_0506_0708,
            0x7fff_dead_beef_1000,
            5,
        );
        assert_eq!(header.size, 0x25);
        assert_eq!(header.body_size(), 5);
        assert_eq!(&header.encode(), CALL);
        assert_eq!(Header::decode(CALL), Ok(header));
    }

    #[test]
    fn golden_messages() {
        let hangup = message(Opcode::Hangup, 0, 0, &[0]);
        assert_eq!(hangup, [&header_with(33, 1)[..], &[0]].concat());
        let empty = message(Opcode::Result, 0, 0, &[]);
        assert_eq!(empty, header_with(32, 2));
    }

    #[test]
    fn each_opcode_has_its_number() {
        let opcodes = [
            Opcode::Setup,
            Opcode::Hangup,
            Opcode::Result,
            Opcode::CallWrapper,
        ];
        for (number, opcode) in (0..).zip(opcodes) {
            let header = Header::decode(&header_with(32, number)).unwrap();
            assert_eq!(header.opcode, opcode);
            assert_eq!(header.encode(), header_with(32, number));
        }
        for number in [4, 0x1_0000_0003, u64::MAX] {
            let refused = Header::decode(&header_with(32, number));
            assert_eq!(refused, Err(FrameError::UnexpectedOpcode));
        }
    }

    #[test]
    fn a_message_holds_at_least_its_header() {
        for size in [0, 1, 31] {
            assert_eq!(
                Header::decode(&header_with(size, 2)),
                Err(FrameError::TooSmall)
            );
        }
        let most = Header::decode(&header_with(u64::MAX, 2)).unwrap();
        assert_eq!(most.body_size(), u64::MAX - 32);
    }

    #[test]
    fn number_and_tag_are_zero_where_the_opcode_wants_it() {
        let check = |opcode, sequence, tag| Header::new(opcode, sequence, tag, 0).check();
        assert_eq!(check(Opcode::Setup, 0, 0), Ok(()));
        assert_eq!(check(Opcode::Setup, 1, 0), Err(FrameError::NumberedSetup));
        assert_eq!(check(Opcode::Setup, 0, 1), Err(FrameError::NumberedSetup));
        assert_eq!(check(Opcode::Result, 7, 0), Ok(()));
        assert_eq!(check(Opcode::Result, 7, 1), Err(FrameError::TaggedResult));
        assert_eq!(check(Opcode::CallWrapper, 7, 1), Ok(()));
    }

    #[test]
    fn the_texts_are_those_of_stock_executors() {
        let texts = [
            (FrameError::TooSmall, "Message size too small"),
            (FrameError::UnexpectedOpcode, "Unexpected opcode"),
            (FrameError::EndOfFile, "Unexpected end-of-file"),
            (FrameError::UnexpectedSetup, "Unexpected Setup opcode"),
            (
                FrameError::UnknownSequence(17),
                "No call for sequence number 17",
            ),
        ];
        for (error, text) in texts {
            assert_eq!(error.to_string(), text);
        }
    }

    fn setup() -> Setup {
        Setup {
            triple: "x86_64-pc-linux-gnu".to_owned(),
            page_size: 4096,
            bootstrap_map: [("key".to_owned(), vec![1, 2])].into(),
            bootstrap_symbols: [
                ("b".to_owned(), ExecutorAddr(0x1234)),
                ("aa".to_owned(), ExecutorAddr(u64::MAX)),
            ]
            .into(),
        }
    }

    const MAP: &[u8] = b"\x01\0\0\0\0\0\0\0\
        \x03\0\0\0\0\0\0\0key\
        \x02\0\0\0\0\0\0\0\x01\x02";

    const SYMBOLS: &[u8] = b"\x02\0\0\0\0\0\0\0\
        \x02\0\0\0\0\0\0\0aa\
        \xff\xff\xff\xff\xff\xff\xff\xff\
        \x01\0\0\0\0\0\0\0b\
        \x34\x12\0\0\0\0\0\0";

    #[test]
    fn golden_setup_since_17() {
        let body = [TRIPLE, MAP, SYMBOLS].concat();
        assert_eq!(setup().encode(SetupLayout::MapAndSymbols), body);
        let decoded = Setup::decode(&body, SetupLayout::MapAndSymbols);
        assert_eq!(decoded, Ok(setup()));
    }

    #[test]
    fn golden_setup_until_16() {
        let body = [TRIPLE, SYMBOLS].concat();
        let without_map = Setup {
            bootstrap_map: BTreeMap::new(),
            ..setup()
        };
        assert_eq!(setup().encode(SetupLayout::Symbols), body);
        assert_eq!(without_map.encode(SetupLayout::Symbols), body);
        let decoded = Setup::decode(&body, SetupLayout::Symbols);
        assert_eq!(decoded, Ok(without_map));
    }

    #[test]
    fn a_setup_without_names_is_recognized() {
        let bare = Setup::default();
        for layout in [SetupLayout::Symbols, SetupLayout::MapAndSymbols] {
            let body = bare.encode(layout);
            assert_eq!(Setup::recognize(&body), Ok((bare.clone(), layout)));
        }
        assert_eq!(Setup::recognize(&[0; 23]), Err(Malformed::Truncated));
        assert_eq!(Setup::recognize(&[0; 33]), Err(Malformed::Length(1)));
    }

    #[test]
    fn a_name_that_stands_twice_is_refused() {
        let twice = b"\x02\0\0\0\0\0\0\0\
            \x01\0\0\0\0\0\0\0b\x34\x12\0\0\0\0\0\0\
            \x01\0\0\0\0\0\0\0b\x34\x12\0\0\0\0\0\0";
        let body = [TRIPLE, twice].concat();
        let refused = Setup::decode(&body, SetupLayout::Symbols);
        assert_eq!(refused, Err(Malformed::DuplicateKey));
    }

    fn opcodes() -> impl Strategy<Value = Opcode> {
        prop_oneof![
            Just(Opcode::Setup),
            Just(Opcode::Hangup),
            Just(Opcode::Result),
            Just(Opcode::CallWrapper)
        ]
    }

    fn setups() -> impl Strategy<Value = Setup> {
        // Addresses of an executor: its first 64 KiB are never mapped.
        let addresses = (0x1_0000..=u64::MAX).prop_map(ExecutorAddr);
        (
            any::<String>(),
            any::<u64>(),
            btree_map(any::<String>(), vec(any::<u8>(), 0..16), 0..4),
            btree_map(any::<String>(), addresses, 0..4),
        )
            .prop_map(
                |(triple, page_size, bootstrap_map, bootstrap_symbols)| Setup {
                    triple,
                    page_size,
                    bootstrap_map,
                    bootstrap_symbols,
                },
            )
    }

    proptest! {
        #[test]
        fn any_header_round_trips(
            opcode in opcodes(), sequence: u64, tag: u64, body in 0..usize::MAX - HEADER_SIZE
        ) {
            let header = Header::new(opcode, sequence, tag, body);
            prop_assert_eq!(header.body_size(), body as u64);
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_32_bytes_are_a_header_or_refused(bytes: [u8; HEADER_SIZE]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert_eq!(header.encode(), bytes);
            }
        }

        #[test]
        fn any_setup_round_trips_and_is_recognized(setup in setups()) {
            let new = setup.encode(SetupLayout::MapAndSymbols);
            prop_assert_eq!(
                Setup::recognize(&new),
                Ok((setup.clone(), SetupLayout::MapAndSymbols))
            );
            let old = setup.encode(SetupLayout::Symbols);
            let expected = Setup { bootstrap_map: BTreeMap::new(), ..setup };
            prop_assert_eq!(Setup::recognize(&old), Ok((expected, SetupLayout::Symbols)));
        }

        #[test]
        fn a_setup_that_ends_early_is_refused(setup in setups(), cut: proptest::sample::Index) {
            for layout in [SetupLayout::Symbols, SetupLayout::MapAndSymbols] {
                let body = setup.encode(layout);
                let short = &body[..cut.index(body.len())];
                prop_assert!(Setup::decode(short, layout).is_err());
            }
        }

        #[test]
        fn any_bytes_are_a_setup_or_refused(bytes in vec(any::<u8>(), 0..96)) {
            let _ = Setup::recognize(&bytes);
        }
    }
}
