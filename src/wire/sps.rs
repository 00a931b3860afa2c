// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Simple Packed Serialization: the byte format of ORC's RPC.
//!
//! No tags, no padding: values stand one after the other, integers little-endian, sequences after
//! their 64-bit count. Bytes behind the last argument are ignored, as LLVM does. Decoding checks
//! every length against the bytes that are there before it makes room for anything.

use crate::error::Error;
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::page::AddressRange;
use std::collections::BTreeMap;
use std::fmt;

/// Why bytes are no value of the type that was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end inside a value.
    Truncated,
    /// A length says more than there are bytes.
    Length(u64),
    /// A byte that must be 0 or 1.
    Bool(u8),
    /// A string that is not UTF-8.
    Text,
    /// An address range whose end is below its start.
    Range,
    /// A key stands twice in a map.
    DuplicateKey,
    /// A kind of message that is not known.
    Choice(u8),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Truncated => f.write_str("the bytes end inside a value"),
            Malformed::Length(length) => write!(f, "a length of {length} is more than is there"),
            Malformed::Bool(byte) => write!(f, "a boolean has the value {byte}"),
            Malformed::Text => f.write_str("a string is not UTF-8"),
            Malformed::Range => f.write_str("an address range ends before it starts"),
            Malformed::DuplicateKey => f.write_str("a key stands twice in a map"),
            Malformed::Choice(kind) => write!(f, "no message is of kind {kind}"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Bytes that are still to be decoded.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// What has not been decoded.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(Malformed::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self
            .take(N)?
            .try_into()
            .expect("take gives as many as it was asked for"))
    }

    /// The count of a sequence of `T`, which is no more than the bytes that are left can hold.
    fn count<T: Decode<'a>>(&mut self) -> Result<usize, Malformed> {
        const { assert!(T::LEAST > 0, "a count that no bytes bear out") };
        let count = u64::decode(self)?;
        let most = self.0.len() / T::LEAST;
        match usize::try_from(count) {
            Ok(fits) if fits <= most => Ok(fits),
            _ => Err(Malformed::Length(count)),
        }
    }
}

/// A value that can be written.
pub trait Encode {
    /// Appends the value.
    fn encode(&self, out: &mut Vec<u8>);
}

/// A value that can be read.
pub trait Decode<'a>: Sized {
    /// The fewest bytes that any value takes; what a lying count is held against.
    const LEAST: usize;

    /// Takes the value off the front.
    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed>;
}

/// The bytes of a value.
pub fn to_bytes(value: &impl Encode) -> Vec<u8> {
    let mut out = Vec::new();
    value.encode(&mut out);
    out
}

/// The value that `bytes` begin with.
pub fn from_bytes<'a, T: Decode<'a>>(bytes: &'a [u8]) -> Result<T, Malformed> {
    T::decode(&mut Reader::new(bytes))
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Encode for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }

        impl Decode<'_> for $type {
            const LEAST: usize = size_of::<$type>();

            fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(<$type>::from_le_bytes(bytes.array()?))
            }
        }
    )*};
}

integer!(u8, u16, u32, u64, i8, i16, i32, i64);

impl Encode for bool {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Decode<'_> for bool {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        match u8::decode(bytes)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::Bool(other)),
        }
    }
}

macro_rules! tuple {
    ($($name:ident)*) => {
        impl<$($name: Encode),*> Encode for ($($name,)*) {
            #[allow(non_snake_case, unused_variables)]
            fn encode(&self, out: &mut Vec<u8>) {
                let ($($name,)*) = self;
                $($name.encode(out);)*
            }
        }

        impl<'a, $($name: Decode<'a>),*> Decode<'a> for ($($name,)*) {
            const LEAST: usize = 0 $(+ $name::LEAST)*;

            #[allow(unused_variables, clippy::unused_unit)]
            fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
                Ok(($($name::decode(bytes)?,)*))
            }
        }
    };
}

tuple!();
tuple!(A);
tuple!(A B);
tuple!(A B C);
tuple!(A B C D);
tuple!(A B C D E);

impl<T: Encode> Encode for [T] {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        self.iter().for_each(|element| element.encode(out));
    }
}

impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_slice().encode(out);
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Vec<T> {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = bytes.count::<T>()?;
        (0..count).map(|_| T::decode(bytes)).collect()
    }
}

/// A byte buffer or string, borrowed from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Encode for Bytes<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.0.len() as u64).encode(out);
        out.extend(self.0);
    }
}

impl<'a> Decode<'a> for Bytes<'a> {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        let count = bytes.count::<u8>()?;
        Ok(Bytes(bytes.take(count)?))
    }
}

impl Encode for str {
    fn encode(&self, out: &mut Vec<u8>) {
        Bytes(self.as_bytes()).encode(out);
    }
}

impl Encode for &str {
    fn encode(&self, out: &mut Vec<u8>) {
        Bytes(self.as_bytes()).encode(out);
    }
}

impl<'a> Decode<'a> for &'a str {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        std::str::from_utf8(Bytes::decode(bytes)?.0).map_err(|_| Malformed::Text)
    }
}

impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        self.as_str().encode(out);
    }
}

/// Bytes of what another program says, at most.
const MOST_SAID: usize = 4096;

/// What another program says, in one line for people to read. A process that is not trusted must not be able to
/// print lines of its own into a log, to move a terminal's cursor, or to reverse the order of what follows.
pub(crate) fn said(bytes: &[u8]) -> String {
    let kept = bytes.get(..MOST_SAID).unwrap_or(bytes);
    let mut text = String::with_capacity(kept.len());
    for character in String::from_utf8_lossy(kept).chars() {
        match character {
            '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                text.extend(character.escape_default());
            }
            _ if character.is_control() => text.extend(character.escape_default()),
            _ => text.push(character),
        }
    }
    if kept.len() < bytes.len() {
        text.push_str(" [cut]");
    }
    text
}

/// Names come from other programs, so what is not UTF-8 is replaced and not refused.
impl Decode<'_> for String {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(String::from_utf8_lossy(Bytes::decode(bytes)?.0).into_owned())
    }
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.len() as u64).encode(out);
        for (key, value) in self {
            key.encode(out);
            value.encode(out);
        }
    }
}

impl<'a, K: Decode<'a> + Ord, V: Decode<'a>> Decode<'a> for BTreeMap<K, V> {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        let mut map = BTreeMap::new();
        for _ in 0..bytes.count::<(K, V)>()? {
            let (key, value) = <(K, V)>::decode(bytes)?;
            if map.insert(key, value).is_some() {
                return Err(Malformed::DuplicateKey);
            }
        }
        Ok(map)
    }
}

impl<T: Encode> Encode for Option<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Option<T> {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        if bool::decode(bytes)? {
            Ok(Some(T::decode(bytes)?))
        } else {
            Ok(None)
        }
    }
}

/// An executor address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecutorAddr(pub u64);

impl Encode for ExecutorAddr {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode<'_> for ExecutorAddr {
    const LEAST: usize = 8;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(ExecutorAddr(u64::decode(bytes)?))
    }
}

/// `SPSExecutorAddrRange`: start and end, not length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddrRange {
    /// The first byte.
    pub start: ExecutorAddr,
    /// Behind the last byte.
    pub end: ExecutorAddr,
}

impl AddrRange {
    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.end.0 - self.start.0
    }

    /// The same in the crate's own form; `None` if it ends before it starts.
    pub fn range(&self) -> Option<AddressRange> {
        let size = self.end.0.checked_sub(self.start.0)?;
        AddressRange::new(self.start.0, size)
    }
}

impl From<AddressRange> for AddrRange {
    fn from(range: AddressRange) -> AddrRange {
        AddrRange {
            start: ExecutorAddr(range.start()),
            end: ExecutorAddr(range.end()),
        }
    }
}

impl Encode for AddrRange {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.start, self.end).encode(out);
    }
}

impl Decode<'_> for AddrRange {
    const LEAST: usize = 16;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (start, end) = Decode::decode(bytes)?;
        if end < start {
            return Err(Malformed::Range);
        }
        Ok(AddrRange { start, end })
    }
}

/// `SPSError`: success, or a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome(pub Result<(), String>);

impl Encode for Outcome {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.as_ref().err().map(String::as_str).encode(out);
    }
}

impl Decode<'_> for Outcome {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Outcome(match Option::<Bytes<'_>>::decode(bytes)? {
            Some(message) => Err(said(message.0)),
            None => Ok(()),
        }))
    }
}

/// `SPSExpected<T>`: a value, or a message. Its boolean says "has value", the reverse of
/// [`Outcome`]'s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected<T>(pub Result<T, String>);

impl<T: Encode> Encode for Expected<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.is_ok().encode(out);
        match &self.0 {
            Ok(value) => value.encode(out),
            Err(message) => message.encode(out),
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Expected<T> {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Expected(match bool::decode(bytes)? {
            true => Ok(T::decode(bytes)?),
            false => Err(said(Bytes::decode(bytes)?.0)),
        }))
    }
}

/// `SPSExecutorSymbolDef`: where a symbol is, and its flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SymbolDef {
    /// Its address; 0 for a weak symbol that is not there.
    pub address: ExecutorAddr,
    /// `JITSymbolFlags`; exported is 0x10.
    pub flags: u8,
    /// The target's own flags.
    pub target_flags: u8,
}

impl Encode for SymbolDef {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.address, self.flags, self.target_flags).encode(out);
    }
}

impl Decode<'_> for SymbolDef {
    const LEAST: usize = 10;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (address, flags, target_flags) = Decode::decode(bytes)?;
        Ok(SymbolDef {
            address,
            flags,
            target_flags,
        })
    }
}

/// `SPSWrapperFunctionCall`: a function and its argument bytes. Function 0 means "no call".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    /// Address of a wrapper function.
    pub function: ExecutorAddr,
    /// What it is called with.
    pub args: Bytes<'a>,
}

impl Encode for Call<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.function, self.args).encode(out);
    }
}

impl<'a> Decode<'a> for Call<'a> {
    const LEAST: usize = 16;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (function, args) = Decode::decode(bytes)?;
        Ok(Call { function, args })
    }
}

/// `SPSAllocActionCallPair`: the finalize call and its deallocation twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActionPair<'a> {
    /// Run on finalize.
    pub finalize: Call<'a>,
    /// Run on deallocate.
    pub dealloc: Call<'a>,
}

impl Encode for ActionPair<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.finalize, self.dealloc).encode(out);
    }
}

impl<'a> Decode<'a> for ActionPair<'a> {
    const LEAST: usize = 32;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        let (finalize, dealloc) = Decode::decode(bytes)?;
        Ok(ActionPair { finalize, dealloc })
    }
}

/// `SPSRemoteAllocGroup`: protection in bits 0 to 2, finalize lifetime in bit 3. Any byte is one;
/// whether it is a group that jitmem knows, the conversion to [`AllocGroup`] finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAllocGroup(pub u8);

impl RemoteAllocGroup {
    const FINALIZE_BIT: u8 = 8;

    /// The group with this protection and the lifetime finalize or standard; there is none for
    /// segments that are never in executor memory.
    pub fn new(protection: Protection, finalize: bool) -> RemoteAllocGroup {
        let lifetime = if finalize { Self::FINALIZE_BIT } else { 0 };
        RemoteAllocGroup(protection.bits() as u8 | lifetime)
    }
}

impl From<AllocGroup> for RemoteAllocGroup {
    fn from(group: AllocGroup) -> RemoteAllocGroup {
        RemoteAllocGroup::new(group.protection, group.lifetime == Lifetime::Finalize)
    }
}

impl TryFrom<RemoteAllocGroup> for AllocGroup {
    type Error = Error;

    /// Fails for unknown bits and for what is writable and executable.
    fn try_from(group: RemoteAllocGroup) -> crate::Result<AllocGroup> {
        let finalize = group.0 & RemoteAllocGroup::FINALIZE_BIT != 0;
        let bits = group.0 & !RemoteAllocGroup::FINALIZE_BIT;
        Ok(AllocGroup {
            protection: Protection::from_bits(bits.into())?,
            lifetime: if finalize {
                Lifetime::Finalize
            } else {
                Lifetime::Standard
            },
        })
    }
}

impl Encode for RemoteAllocGroup {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}

impl Decode<'_> for RemoteAllocGroup {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(RemoteAllocGroup(u8::decode(bytes)?))
    }
}

#[cfg(test)]
mod tests;
