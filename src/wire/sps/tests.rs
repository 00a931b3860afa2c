// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Golden bytes of every type, and what holds for any value and any bytes.

use super::*;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// The value is written as these bytes and read from them, whatever stands behind; what ends
/// earlier is refused. A macro, so that values may borrow from the bytes.
macro_rules! golden {
    ($value:expr, $bytes:expr) => {{
        let value = $value;
        let bytes: Vec<u8> = $bytes.to_vec();
        assert_eq!(to_bytes(&value), bytes);
        assert!(least(&value) <= bytes.len());
        let followed = [bytes.as_slice(), b"more"].concat();
        let mut reader = Reader::new(&followed);
        assert_eq!(read_like(&value, &mut reader), Ok(value.clone()));
        assert_eq!(reader.rest(), b"more");
        for end in 0..bytes.len() {
            let read = read_like(&value, &mut Reader::new(&bytes[..end]));
            assert!(
                read.is_err(),
                "{read:?} from {end} of {} bytes",
                bytes.len()
            );
        }
    }};
}

fn read_like<'a, T: Decode<'a>>(_: &T, reader: &mut Reader<'a>) -> Result<T, Malformed> {
    T::decode(reader)
}

fn least<'a, T: Decode<'a>>(_: &T) -> usize {
    T::LEAST
}

fn some_symbol() -> SymbolDef {
    SymbolDef {
        address: ExecutorAddr(0x7fff_dead_beef_1000),
        flags: 0x10,
        target_flags: 1,
    }
}

#[test]
fn golden_integers() {
    golden!(0xa1u8, b"\xa1");
    golden!(-2i8, b"\xfe");
    golden!(0xa1a2u16, b"\xa2\xa1");
    golden!(-2i16, b"\xfe\xff");
    golden!(0xa1a2_a3a4u32, b"\xa4\xa3\xa2\xa1");
    golden!(-2i32, b"\xfe\xff\xff\xff");
    golden!(
        0xa1a2_a3a4_a5a6_a7a8u64,
        b"\xa8\xa7\xa6\xa5\xa4\xa3\xa2\xa1"
    );
    golden!(-2i64, b"\xfe\xff\xff\xff\xff\xff\xff\xff");
}

#[test]
fn golden_booleans() {
    golden!(false, b"\0");
    golden!(true, b"\x01");
    assert_eq!(from_bytes::<bool>(&[2]), Err(Malformed::Bool(2)));
}

#[test]
fn golden_addresses() {
    golden!(
        ExecutorAddr(0x7fff_dead_beef_1000),
        b"\0\x10\xef\xbe\xad\xde\xff\x7f"
    );
    let range = AddrRange {
        start: ExecutorAddr(0x1000),
        end: ExecutorAddr(0x1234),
    };
    assert_eq!(range.size(), 0x234);
    golden!(range, b"\0\x10\0\0\0\0\0\0\x34\x12\0\0\0\0\0\0");
    let reversed = b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
    assert_eq!(from_bytes::<AddrRange>(reversed), Err(Malformed::Range));
}

#[test]
fn golden_sequences() {
    golden!(Vec::<u64>::new(), [0; 8]);
    golden!(vec![1u16, 0x203], b"\x02\0\0\0\0\0\0\0\x01\0\x03\x02");
    golden!(
        vec![ExecutorAddr(1)],
        b"\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"
    );
    golden!(
        vec![vec![7u8], vec![]],
        b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0"
    );
}

#[test]
fn golden_strings_and_buffers() {
    let bytes = b"\x04\0\0\0\0\0\0\0m\xc3\xa4h";
    golden!("mäh", bytes);
    golden!("mäh".to_owned(), bytes);
    golden!(Bytes("mäh".as_bytes()), bytes);
    golden!("mäh".as_bytes().to_vec(), bytes);
    golden!("", [0; 8]);
    golden!(Bytes(b"\0\xff"), b"\x02\0\0\0\0\0\0\0\0\xff");
}

#[test]
fn text_that_is_not_utf_8() {
    let bytes = b"\x02\0\0\0\0\0\0\0a\xff";
    assert_eq!(from_bytes::<&str>(bytes), Err(Malformed::Text));
    assert_eq!(from_bytes::<String>(bytes), Ok("a\u{fffd}".to_owned()));
}

#[test]
fn golden_tuples() {
    golden!((), b"");
    golden!((3u8,), b"\x03");
    golden!((3u8, 4u16), b"\x03\x04\0");
    golden!((3u8, 4u16, false), b"\x03\x04\0\0");
    golden!((3u8, 4u16, false, -1i8), b"\x03\x04\0\0\xff");
    golden!((3u8, 4u16, false, -1i8, 5u8), b"\x03\x04\0\0\xff\x05");
}

#[test]
fn golden_maps() {
    golden!(BTreeMap::<String, ExecutorAddr>::new(), [0; 8]);
    let map: BTreeMap<_, _> = [("b", 2u8), ("a", 1)].into();
    golden!(
        map.clone(),
        b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x01\x01\0\0\0\0\0\0\0b\x02"
    );
    let other_order = b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0b\x02\x01\0\0\0\0\0\0\0a\x01";
    assert_eq!(from_bytes(other_order), Ok(map));
    let twice = b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\x01\x01\0\0\0\0\0\0\0a\x02";
    let refused = from_bytes::<BTreeMap<&str, u8>>(twice);
    assert_eq!(refused, Err(Malformed::DuplicateKey));
}

#[test]
fn golden_options() {
    golden!(None::<u16>, b"\0");
    golden!(Some(0x102u16), b"\x01\x02\x01");
    golden!(Some(None::<u16>), b"\x01\0");
}

#[test]
fn golden_errors() {
    golden!(Outcome(Ok(())), b"\0");
    golden!(Outcome(Err("bad".to_owned())), b"\x01\x03\0\0\0\0\0\0\0bad");
}

#[test]
fn golden_expected() {
    golden!(Expected(Ok(())), b"\x01");
    golden!(
        Expected(Ok(ExecutorAddr(0x1000))),
        b"\x01\0\x10\0\0\0\0\0\0"
    );
    golden!(
        Expected::<ExecutorAddr>(Err("bad".to_owned())),
        b"\0\x03\0\0\0\0\0\0\0bad"
    );
    golden!(
        Expected(Ok((ExecutorAddr(0x1000), "/name".to_owned()))),
        b"\x01\0\x10\0\0\0\0\0\0\x05\0\0\0\0\0\0\0/name"
    );
}

#[test]
fn golden_symbols() {
    golden!(some_symbol(), b"\0\x10\xef\xbe\xad\xde\xff\x7f\x10\x01");
    golden!(
        Expected(Ok(vec![some_symbol(), SymbolDef::default()])),
        b"\x01\x02\0\0\0\0\0\0\0\
          \0\x10\xef\xbe\xad\xde\xff\x7f\x10\x01\
          \0\0\0\0\0\0\0\0\0\0"
    );
    golden!(
        Expected(Ok(vec![None, Some(some_symbol())])),
        b"\x01\x02\0\0\0\0\0\0\0\
          \0\
          \x01\0\x10\xef\xbe\xad\xde\xff\x7f\x10\x01"
    );
    golden!(
        Expected(Ok(vec![ExecutorAddr(1)])),
        b"\x01\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0"
    );
}

#[test]
fn golden_calls_and_actions() {
    let none = Call {
        function: ExecutorAddr(0),
        args: Bytes(b""),
    };
    let call = Call {
        function: ExecutorAddr(0x1234),
        args: Bytes(b"args"),
    };
    golden!(none, [0; 16]);
    golden!(call, b"\x34\x12\0\0\0\0\0\0\x04\0\0\0\0\0\0\0args");
    golden!(
        ActionPair {
            finalize: call,
            dealloc: none
        },
        b"\x34\x12\0\0\0\0\0\0\x04\0\0\0\0\0\0\0args\
          \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
}

#[test]
fn golden_alloc_groups() {
    let byte = |bits, finalize| {
        let protection = Protection::from_bits(bits).expect("a protection");
        RemoteAllocGroup::new(protection, finalize)
    };
    golden!(byte(1, false), b"\x01");
    golden!(byte(3, false), b"\x03");
    golden!(byte(5, true), b"\x0d");
}

#[test]
fn golden_finalize_request() {
    let segment = (
        RemoteAllocGroup::new(Protection::READ_EXEC, false),
        ExecutorAddr(0x1000),
        0x1b88u64,
        Bytes(b"\xc3"),
    );
    let call = Call {
        function: ExecutorAddr(1),
        args: Bytes(b"a"),
    };
    let pair = ActionPair {
        finalize: call,
        dealloc: call,
    };
    golden!(
        (vec![segment], vec![pair]),
        b"\x01\0\0\0\0\0\0\0\
          \x05\0\x10\0\0\0\0\0\0\x88\x1b\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\xc3\
          \x01\0\0\0\0\0\0\0\
          \x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a\
          \x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0a"
    );
}

#[test]
fn an_alloc_group_is_known_or_refused() {
    for byte in 0..=u8::MAX {
        let known = AllocGroup::try_from(RemoteAllocGroup(byte));
        let writable_code = byte & 6 == 6;
        assert_eq!(known.is_ok(), byte < 16 && !writable_code, "{byte:#x}");
        if let Ok(group) = known {
            let finalize = group.lifetime == Lifetime::Finalize;
            assert_eq!(finalize, byte & 8 != 0);
            assert_eq!(
                RemoteAllocGroup::new(group.protection, finalize),
                RemoteAllocGroup(byte)
            );
        }
    }
}

#[test]
fn lengths_that_lie() {
    let counted = |count: u64, rest: &[u8]| [&count.to_le_bytes(), rest].concat();
    for count in [4, 1 << 32, 1 << 61, u64::MAX] {
        let bytes = counted(count, b"bad");
        let lie = Malformed::Length(count);
        assert_eq!(from_bytes::<Bytes<'_>>(&bytes), Err(lie));
        assert_eq!(from_bytes::<String>(&bytes), Err(lie));
        assert_eq!(from_bytes::<Vec<bool>>(&bytes), Err(lie));
        let error = [&[1], bytes.as_slice()].concat();
        assert_eq!(from_bytes::<Outcome>(&error), Err(lie));
    }
    // Three symbols need 30 bytes; that 29 are too few is seen before the first is read.
    let lie = counted(3, &[0xff; 29]);
    assert_eq!(
        from_bytes::<Vec<SymbolDef>>(&lie),
        Err(Malformed::Length(3))
    );
    let map = from_bytes::<BTreeMap<ExecutorAddr, u16>>(&lie);
    assert_eq!(map, Err(Malformed::Length(3)));
}

/// One value of each type that holds others.
type Everything<'a> = (
    (u16, i32, bool),
    BTreeMap<String, Vec<i8>>,
    Vec<(RemoteAllocGroup, AddrRange, Bytes<'a>)>,
    Expected<Vec<Option<SymbolDef>>>,
    (Outcome, Vec<ActionPair<'a>>, &'a str),
);

fn addresses() -> impl Strategy<Value = ExecutorAddr> {
    any::<u64>().prop_map(ExecutorAddr)
}

fn ranges() -> impl Strategy<Value = AddrRange> {
    (addresses(), addresses()).prop_map(|(one, other)| AddrRange {
        start: one.min(other),
        end: one.max(other),
    })
}

fn symbols() -> impl Strategy<Value = SymbolDef> {
    (addresses(), any::<u8>(), any::<u8>()).prop_map(|(address, flags, target_flags)| SymbolDef {
        address,
        flags,
        target_flags,
    })
}

fn results<T: std::fmt::Debug>(
    values: impl Strategy<Value = T>,
) -> impl Strategy<Value = Result<T, String>> {
    prop_oneof![
        values.prop_map(Ok),
        // Errors are read as one line; `any` has a line separator at times.
        any::<String>().prop_map(|text| Err::<T, String>(said(text.as_bytes())))
    ]
}

fn buffers() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..12)
}

prop_compose! {
    /// `Everything`'s own parts, and what it shall borrow: content by segment, actions, text.
    fn parts()(
        plain in any::<(u16, i32, bool)>(),
        map in btree_map(any::<String>(), vec(any::<i8>(), 0..4), 0..4),
        segments in vec((any::<u8>().prop_map(RemoteAllocGroup), ranges(), buffers()), 0..4),
        found in results(vec(proptest::option::of(symbols()), 0..4)),
        outcome in results(Just(())),
        actions in vec((addresses(), buffers(), addresses(), buffers()), 0..4),
        text in any::<String>(),
    ) -> Parts {
        Parts { plain, map, segments, found, outcome, actions, text }
    }
}

#[derive(Debug)]
struct Parts {
    plain: (u16, i32, bool),
    map: BTreeMap<String, Vec<i8>>,
    segments: Vec<(RemoteAllocGroup, AddrRange, Vec<u8>)>,
    found: Result<Vec<Option<SymbolDef>>, String>,
    outcome: Result<(), String>,
    actions: Vec<(ExecutorAddr, Vec<u8>, ExecutorAddr, Vec<u8>)>,
    text: String,
}

impl Parts {
    fn everything(&self) -> Everything<'_> {
        let call = |function, args| Call {
            function,
            args: Bytes(args),
        };
        (
            self.plain,
            self.map.clone(),
            self.segments
                .iter()
                .map(|(group, range, content)| (*group, *range, Bytes(content)))
                .collect(),
            Expected(self.found.clone()),
            (
                Outcome(self.outcome.clone()),
                self.actions
                    .iter()
                    .map(|(finalize, args, dealloc, dealloc_args)| ActionPair {
                        finalize: call(*finalize, args),
                        dealloc: call(*dealloc, dealloc_args),
                    })
                    .collect(),
                &self.text,
            ),
        )
    }
}

/// Bytes that look like a message: counts, small and absurd, between booleans and noise.
fn like_a_message() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => (0u64..5).prop_map(|count| count.to_le_bytes().to_vec()),
        1 => any::<u64>().prop_map(|count| count.to_le_bytes().to_vec()),
        2 => any::<bool>().prop_map(|flag| vec![u8::from(flag)]),
        2 => buffers(),
    ];
    vec(part, 0..24).prop_map(|parts| parts.concat())
}

/// Reads a value, or not. One that was read is the same when it is written and read again.
macro_rules! read_any {
    ($type:ty, $bytes:expr) => {{
        let mut reader = Reader::new($bytes);
        if let Ok(value) = <$type>::decode(&mut reader) {
            let taken = $bytes.len() - reader.rest().len();
            prop_assert!(least(&value) <= taken);
            let written = to_bytes(&value);
            prop_assert_eq!(from_bytes::<$type>(&written), Ok(value));
        }
    }};
}

proptest! {
    #[test]
    fn any_value_round_trips(parts in parts(), behind in buffers()) {
        let value = parts.everything();
        let mut bytes = to_bytes(&value);
        bytes.extend(&behind);
        let mut reader = Reader::new(&bytes);
        prop_assert_eq!(read_like(&value, &mut reader), Ok(value));
        prop_assert_eq!(reader.rest(), behind);
    }

    #[test]
    fn a_value_cut_off_anywhere_is_refused(parts in parts(), cut: proptest::sample::Index) {
        let bytes = to_bytes(&parts.everything());
        let short = &bytes[..cut.index(bytes.len())];
        prop_assert!(from_bytes::<Everything<'_>>(short).is_err());
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in like_a_message()) {
        read_any!(Everything<'_>, &bytes);
        read_any!(Vec<(bool, i64)>, &bytes);
        read_any!(Vec<Vec<Vec<u8>>>, &bytes);
        read_any!(BTreeMap<String, Bytes<'_>>, &bytes);
        read_any!(BTreeMap<&str, Option<&str>>, &bytes);
        read_any!(Vec<AddrRange>, &bytes);
        read_any!(Vec<ActionPair<'_>>, &bytes);
        read_any!(Outcome, &bytes);
        read_any!(Expected<Vec<SymbolDef>>, &bytes);
        read_any!(Expected<Vec<Option<SymbolDef>>>, &bytes);
    }
}

#[test]
fn what_another_program_says_is_one_line() {
    let said = |text: &[u8]| {
        let bytes = to_bytes(&Outcome(Err(String::new())));
        let bytes = [&bytes[..1], &to_bytes(&Bytes(text))].concat();
        from_bytes::<Outcome>(&bytes).unwrap().0.unwrap_err()
    };
    assert_eq!(said("häufig: 7 °C".as_bytes()), "häufig: 7 °C");
    assert_eq!(
        said(b"a\nb\r\x1b[2J\0\x7f"),
        "a\\nb\\r\\u{1b}[2J\\u{0}\\u{7f}"
    );
    assert_eq!(
        said("\u{202e}\u{2028}\u{2066}\u{85}".as_bytes()),
        "\\u{202e}\\u{2028}\\u{2066}\\u{85}"
    );
    assert_eq!(said(b"a\xffb"), "a\u{fffd}b");
    let long = said(&[b'x'; 1 << 20]);
    assert_eq!((long.len(), long.ends_with("xx [cut]")), (4096 + 6, true));
}
