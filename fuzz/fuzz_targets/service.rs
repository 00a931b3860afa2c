// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The messages of our own executor service, both ways.

#![no_main]

use jitmem::wire::service::*;
use jitmem_fuzz::reread;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    reread!(bytes =>
        Open,
        OpenWithWish,
        Reply<Opened>,
        Reply<OpenedWithFrames>,
        Reply<OpenedWithData>,
        (u64, Attach<'_>),
        Reply<()>,
        Reply<ListenerName>,
        (u64, Reserve),
        Reply<ReservedAt>,
        (u64, Change),
        Vec<Reply<()>>,
        (u64, Vec<Item<'_>>),
        Vec<Reply<u64>>,
    );
});
