// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What a controller and our executor service say to each other. Both sides are this crate, so
//! that each message is written down once; `open` tells whether they speak the same version.
//!
//! Every function takes the session first, but for `open`, and answers a [`Reply`].

use super::sps::{
    ActionPair, AddrRange, Bytes, Decode, Encode, ExecutorAddr, Malformed, Reader, said,
};
use crate::error::{Error, Status};

/// Grows with each change of what is said here.
pub const VERSION: u32 = 8;
/// The oldest version that either side still speaks.
pub const OLDEST_VERSION: u32 = 4;
/// The version with [`Step::Replace`], and what stands between that and [`Step::Index`].
pub const PARTS_VERSION: u32 = 5;
/// The version with [`OpenedWithFrames`] and [`Step::Index`].
pub const INDEX_VERSION: u32 = 6;

/// The version with [`OpenWithWish`], [`OpenedWithData`], [`Step::MapPrivate`] and [`Item::InitializeData`].
pub const PRIVATE_VERSION: u32 = 7;

/// The version with [`Restarted`].
pub const RESTARTED_VERSION: u32 = 8;

/// The tag of the one call of an executor's through a session's channel: a [`Restarted`], which is not answered.
pub const RESTARTED: u64 = 1;

/// An executor publishes this if it takes descriptors that come along with calls; the value has no meaning.
pub const TAKES_DESCRIPTORS: &str = "jitmem_service_takes_descriptors";

/// Bytes that the answer to a message of so many bytes may have: an outcome for each of its parts, and what
/// went wrong with some.
pub const fn most_answer(message: usize) -> u64 {
    (64 << 10) + 16 * message as u64
}

/// A message of our own whose fields stand one after the other.
macro_rules! message {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? { $($(#[$field_doc])* pub $field: $type,)* }

        impl $(<$life>)? Encode for $name $(<$life>)? {
            fn encode(&self, out: &mut Vec<u8>) {
                $(self.$field.encode(out);)*
            }
        }

        message!(@decode $name $(<$life>)? { $($field: $type,)* });
    };
    (@decode $name:ident <$life:lifetime> { $($field:ident: $type:ty,)* }) => {
        impl<$life> Decode<$life> for $name<$life> {
            const LEAST: usize = 0 $(+ <$type as Decode<$life>>::LEAST)*;

            fn decode(bytes: &mut Reader<$life>) -> Result<Self, Malformed> {
                Ok($name { $($field: Decode::decode(bytes)?,)* })
            }
        }
    };
    (@decode $name:ident { $($field:ident: $type:ty,)* }) => {
        impl Decode<'_> for $name {
            const LEAST: usize = 0 $(+ <$type as Decode<'_>>::LEAST)*;

            fn decode(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok($name { $($field: Decode::decode(bytes)?,)* })
            }
        }
    };
}

message! {
    /// A failure on the other side.
    Failure {
        /// Number of a [`Status`].
        status: u32,
        /// What happened.
        message: String,
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            status: error.status() as u32,
            message: error.message().to_owned(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let status = Status::said_by_others(failure.status);
        Error::new(status, said(failure.message.as_bytes()))
    }
}

/// A value, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply<T>(pub Result<T, Failure>);

impl<T> From<Result<T, Error>> for Reply<T> {
    fn from(result: Result<T, Error>) -> Reply<T> {
        Reply(result.map_err(Failure::from))
    }
}

impl<T: Encode> Encode for Reply<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.is_ok().encode(out);
        match &self.0 {
            Ok(value) => value.encode(out),
            Err(failure) => failure.encode(out),
        }
    }
}

impl<'a, T: Decode<'a>> Decode<'a> for Reply<T> {
    const LEAST: usize = 1;

    fn decode(bytes: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(Reply(match bool::decode(bytes)? {
            true => Ok(T::decode(bytes)?),
            false => Err(Failure::decode(bytes)?),
        }))
    }
}

message! {
    /// `open`: begins a session.
    Open {
        /// The controller's [`VERSION`], or an older one that an executor of before speaks.
        version: u32,
        /// Which service of the executor; 0 is the process's own.
        instance: u64,
    }
}

message! {
    /// What a controller of [`PRIVATE_VERSION`] opens a session with.
    OpenWithWish {
        /// What others open one with.
        open: Open,
        /// The controller wants the session's data to be private. The executor may choose so by itself.
        private_data: bool,
    }
}

message! {
    /// What `open` answers.
    Opened {
        /// The session's name in all that follows.
        session: u64,
        /// Bytes of a page there.
        page_size: u64,
        /// Whether code that another process writes is seen there by itself.
        coherent: bool,
        /// Where the functions of the service are.
        functions: Functions,
    }
}

message! {
    /// What `open` answers to a controller of [`INDEX_VERSION`].
    OpenedWithFrames {
        /// What it answers to others.
        opened: Opened,
        /// Which calls an index stands for.
        frames: FrameFunctions,
    }
}

message! {
    /// What `open` answers to a controller of [`PRIVATE_VERSION`].
    OpenedWithData {
        /// What it answers to others.
        opened: OpenedWithFrames,
        /// Whether data is private: what linked code writes is seen by no other process, and the memfds hold
        /// what was finalized. Then writable chunks are memfds ([`Step::MapPrivate`]), none has pages of the
        /// executor's own, and what is finalized with data goes by [`Item::InitializeData`].
        private_data: bool,
    }
}

message! {
    /// What a controller of [`RESTARTED_VERSION`] is told when another process has taken the place of the one that
    /// ran linked code, and has run its finalize actions.
    Restarted {
        /// How often that has happened since the executor began to serve.
        restarts: u64,
        /// What has ended the process before.
        why: String,
    }
}

message! {
    /// Functions that need no call for code that is in an index ([`Step::Index`]), if the executor's unwinder asks
    /// one. Each takes an `.eh_frame` section's range.
    #[derive(Copy, Default)]
    FrameFunctions {
        /// Whether it does.
        asked: bool,
        /// Registers it.
        register: ExecutorAddr,
        /// Deregisters it.
        deregister: ExecutorAddr,
    }
}

message! {
    /// Addresses of the wrapper functions, named after what they do.
    Functions {
        /// [`Attach`].
        attach: ExecutorAddr,
        /// [`Reserve`].
        reserve: ExecutorAddr,
        /// [`Change`].
        change: ExecutorAddr,
        /// Session and a sequence of [`Item`]s.
        apply: ExecutorAddr,
        /// Session alone: ends it.
        close: ExecutorAddr,
    }
}

/// A message that is one of several kinds, told apart by a first byte.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? [$reader:lifetime] {
        $($(#[$variant_doc:meta])* $tag:literal $variant:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name $(<$life>)? {
            $($(#[$variant_doc])* $variant { $($(#[$field_doc])* $field: $type,)* },)*
        }

        impl $(<$life>)? Encode for $name $(<$life>)? {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $($name::$variant { $($field,)* } => {
                        out.push($tag);
                        $($field.encode(out);)*
                    })*
                }
            }
        }

        impl<$reader> Decode<$reader> for $name $(<$life>)? {
            const LEAST: usize = 1;

            fn decode(bytes: &mut Reader<$reader>) -> Result<Self, Malformed> {
                match u8::decode(bytes)? {
                    $($tag => Ok($name::$variant { $($field: Decode::decode(bytes)?,)* }),)*
                    other => Err(Malformed::Choice(other)),
                }
            }
        }
    };
}

choice! {
    /// `attach`: makes a channel of the session's own, through which memfds travel. The controller tries
    /// one way after the other. Answers nothing but to `Listening`: no number of the executor's is acted on. An
    /// executor refuses a way that it does not know.
    Attach<'a> ['a] {
        /// Connect to the abstract Unix socket of this name, and send the token.
        0 Connect {
            /// The socket's name.
            name: Bytes<'a>,
            /// What only the two sides know.
            token: Bytes<'a>,
        }
        /// Try to open a memfd of the controller's by its process and number; no channel then.
        1 Files {
            /// How the controller numbers processes. No number is looked up where others count.
            numbering: Numbering<'a>,
            /// The file.
            file: File,
            /// What it begins with.
            token: Bytes<'a>,
        }
        /// Serve the socket that comes along with this message, and send the token through it.
        2 Shared {
            /// The kernel's number of the socket.
            cookie: u64,
            /// What only the two sides know.
            token: Bytes<'a>,
        }
        /// Tell the name of the executor's own listener; answers a [`ListenerName`].
        3 Listening {}
        /// Take the connection to the listener that a token has come through, and send the other one.
        4 Accept {
            /// What the controller has sent through it: a [`Token`].
            expected: Bytes<'a>,
            /// What only the two sides know, and what was not sent through it.
            token: Bytes<'a>,
        }
    }
}

/// What a controller sends through its connection to an executor's listener.
pub type Token = [u8; 16];

message! {
    /// Which abstract Unix socket an executor listens at. It says no more than the random part of the name, so
    /// that it leads a controller to no other kind of socket.
    #[derive(Copy)]
    ListenerName {
        /// The upper half of the random part.
        high: u64,
        /// The lower half.
        low: u64,
    }
}

impl From<u128> for ListenerName {
    fn from(random: u128) -> ListenerName {
        let (high, low) = ((random >> 64) as u64, random as u64);
        ListenerName { high, low }
    }
}

impl ListenerName {
    /// The whole name.
    pub fn text(self) -> String {
        format!("jitmem-executor-{:016x}{:016x}", self.high, self.low)
    }
}

message! {
    /// Which processes the controller's numbers are.
    Numbering<'a> {
        /// Which start of which machine.
        boot: Bytes<'a>,
        /// The device of its /proc.
        device: u64,
        /// Its namespace of processes.
        namespace: u64,
    }
}

message! {
    /// A file behind a descriptor of the controller's.
    File {
        /// The controller, as it knows itself.
        process: u32,
        /// Its descriptor.
        descriptor: u32,
        /// Device and inode, so that no other is mistaken for it.
        device: u64,
        /// See `device`.
        inode: u64,
    }
}

choice! {
    /// Where a window shall go.
    At ['a] {
        /// Where the executor's own images are in reach.
        0 Default {}
        /// So that these addresses, and all between them, are in reach.
        1 Near {
            /// The lowest address.
            lowest: u64,
            /// The highest address; may be the same.
            highest: u64,
        }
        /// Exactly here.
        2 Fixed {
            /// The address.
            address: u64,
        }
    }
}

message! {
    /// `reserve`: address space for a window. Answers a [`ReservedAt`].
    Reserve {
        /// Bytes wanted.
        size: u64,
        /// Bytes at least.
        least: u64,
        /// Where.
        at: At,
    }
}

message! {
    /// What [`Reserve`] answers.
    ReservedAt {
        /// The window.
        range: AddrRange,
        /// Whether everything that was asked for is in reach.
        in_reach: bool,
    }
}

message! {
    /// `change`: what lies where in the windows of the session, done in this order. Answers one
    /// `Reply<()>` each. At most one is under way at a time, so that what is given back can be
    /// taken again.
    Change {
        /// The changes.
        changes: Vec<Step>,
    }
}

choice! {
    /// One change.
    Step ['a] {
        /// Pages of the memfd that came with the message, the next one in order.
        0 Map {
            /// Where.
            range: AddrRange,
            /// Bits of the final protection.
            protection: u8,
        }
        /// Pages of a memfd that is to be opened.
        1 MapFile {
            /// Where.
            range: AddrRange,
            /// Bits of the final protection.
            protection: u8,
            /// The memfd.
            file: File,
        }
        /// Pages of the executor's own; content comes in [`Item::Initialize`].
        2 MapOwn {
            /// Where.
            range: AddrRange,
            /// Bits of the final protection.
            protection: u8,
            /// Take the pages now.
            commit: bool,
        }
        /// Takes back what was mapped.
        3 Unmap {
            /// Where.
            range: AddrRange,
        }
        /// Gives a window back with all that is in it.
        4 Release {
            /// The whole window.
            range: AddrRange,
        }
        /// Shows the memfd that came with the message in place of the one before. What is in use of it
        /// holds the same. Only for what linked code can't write.
        5 Replace {
            /// The whole chunk.
            range: AddrRange,
        }
        /// The same with a memfd that is to be opened.
        6 ReplaceFile {
            /// The whole chunk.
            range: AddrRange,
            /// The memfd.
            file: File,
        }
        /// Gives the memory of a chunk of the executor's own pages back, but for some of them.
        7 Keep {
            /// The whole chunk.
            range: AddrRange,
            /// A bit for each page that stays, the first one's the lowest of the first number.
            pages: Vec<u64>,
        }
        /// Has the unwinder look in the index that is in the memfd that came with the message.
        8 Index {
            /// The whole window.
            window: AddrRange,
        }
        /// The same with a memfd that is to be opened.
        9 IndexFile {
            /// The whole window.
            window: AddrRange,
            /// The memfd.
            file: File,
        }
        /// Pages of the memfd that came with the message, copied when they are written there.
        10 MapPrivate {
            /// Where.
            range: AddrRange,
            /// Bits of the final protection.
            protection: u8,
        }
        /// The same with a memfd that is to be opened.
        11 MapPrivateFile {
            /// Where.
            range: AddrRange,
            /// Bits of the final protection.
            protection: u8,
            /// The memfd.
            file: File,
        }
    }
}

message! {
    /// Content of one segment for pages of the executor's own.
    Content<'a> {
        /// Its addresses, zero-fill included.
        range: AddrRange,
        /// The zero-fill is known to be zero.
        zeroed: bool,
        /// What it begins with.
        bytes: Bytes<'a>,
    }
}

choice! {
    /// One allocation in `apply`, which takes the session and a sequence of these and answers one
    /// `Reply<u64>` each. They are done in order.
    Item<'a> ['a] {
        /// Makes it visible and runs its finalize actions. Answers a key, 0 if there is nothing to
        /// tear down.
        0 Initialize {
            /// What is not shared.
            content: Vec<Content<'a>>,
            /// Code in shared pages, for which instruction caches must be flushed.
            code: Vec<AddrRange>,
            /// First to last.
            actions: Vec<ActionPair<'a>>,
        }
        /// Runs its deallocation actions last to first. Answers 0.
        1 Deinitialize {
            /// What [`Item::Initialize`] answered.
            key: u64,
            /// Code in pages of the executor's own, to be filled with traps.
            traps: Vec<AddrRange>,
        }
        /// [`Item::Initialize`] in a session with private data.
        2 InitializeData {
            /// What shall be in private pages as it is in their memfds.
            data: Vec<AddrRange>,
            /// Code in shared pages, for which instruction caches must be flushed.
            code: Vec<AddrRange>,
            /// First to last.
            actions: Vec<ActionPair<'a>>,
        }
        /// What a supervised executor has a new child do for [`Item::InitializeData`]; no controller sends it.
        3 InitializeAgain {
            /// Where the two processes agree on whether it has begun.
            place: u64,
            /// First to last.
            actions: Vec<ActionPair<'a>>,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sps::{Call, from_bytes, to_bytes};
    use super::*;

    fn range(start: u64, end: u64) -> AddrRange {
        AddrRange {
            start: ExecutorAddr(start),
            end: ExecutorAddr(end),
        }
    }

    #[test]
    fn messages_come_back() {
        let call = Call {
            function: ExecutorAddr(7),
            args: Bytes(b"args"),
        };
        let items = vec![
            Item::Initialize {
                content: vec![Content {
                    range: range(1, 9),
                    zeroed: true,
                    bytes: Bytes(b"abc"),
                }],
                code: vec![range(1, 2)],
                actions: vec![ActionPair {
                    finalize: call,
                    dealloc: call,
                }],
            },
            Item::Deinitialize {
                key: 3,
                traps: vec![range(4, 5)],
            },
            Item::InitializeData {
                data: vec![range(1, 9)],
                code: vec![],
                actions: vec![],
            },
            Item::InitializeAgain {
                place: 1 << 40,
                actions: vec![],
            },
        ];
        assert_eq!(from_bytes(&to_bytes(&items)), Ok(items));
        let file = File {
            process: 1,
            descriptor: 2,
            device: 3,
            inode: 4,
        };
        let change = Change {
            changes: vec![
                Step::Map {
                    range: range(1, 2),
                    protection: 5,
                },
                Step::MapFile {
                    range: range(1, 2),
                    protection: 5,
                    file: file.clone(),
                },
                Step::MapOwn {
                    range: range(1, 2),
                    protection: 3,
                    commit: true,
                },
                Step::Unmap { range: range(1, 2) },
                Step::Release { range: range(1, 2) },
                Step::Replace { range: range(1, 2) },
                Step::ReplaceFile {
                    range: range(1, 2),
                    file: file.clone(),
                },
                Step::Keep {
                    range: range(1, 2),
                    pages: vec![1, u64::MAX],
                },
                Step::Index {
                    window: range(1, 2),
                },
                Step::IndexFile {
                    window: range(1, 2),
                    file: file.clone(),
                },
                Step::MapPrivate {
                    range: range(1, 2),
                    protection: 3,
                },
                Step::MapPrivateFile {
                    range: range(1, 2),
                    protection: 3,
                    file: file.clone(),
                },
            ],
        };
        assert_eq!(from_bytes(&to_bytes(&change)), Ok(change));
        for attach in [
            Attach::Connect {
                name: Bytes(b"name"),
                token: Bytes(b"token"),
            },
            Attach::Files {
                numbering: Numbering {
                    boot: Bytes(b"boot"),
                    device: 5,
                    namespace: 6,
                },
                file,
                token: Bytes(b"token"),
            },
            Attach::Shared {
                cookie: 7,
                token: Bytes(b"token"),
            },
        ] {
            assert_eq!(from_bytes(&to_bytes(&attach)), Ok(attach));
        }
        let restarted = Restarted {
            restarts: 3,
            why: "killed".to_owned(),
        };
        assert_eq!(from_bytes(&to_bytes(&restarted)), Ok(restarted));
        let error = Error::new(Status::WindowFull, "no room");
        let reply: Reply<u64> =
            from_bytes(&to_bytes(&Reply::<u64>::from(Err(error.clone())))).unwrap();
        assert_eq!(Error::from(reply.0.unwrap_err()), error);
        assert_eq!(from_bytes::<Attach<'_>>(&[9]), Err(Malformed::Choice(9)));
    }
}
