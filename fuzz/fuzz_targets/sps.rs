// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Argument lists and results of ORC's services.

#![no_main]

use jitmem::wire::sps::*;
use jitmem_fuzz::reread;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

/// A segment whose content travels, and one whose content is shared.
type Segment<'a> = (RemoteAllocGroup, ExecutorAddr, u64, Bytes<'a>);
type SharedSegment = (RemoteAllocGroup, ExecutorAddr, u64);

fuzz_target!(|bytes: &[u8]| {
    reread!(bytes =>
        (Vec<Segment<'_>>, Vec<ActionPair<'_>>),
        (ExecutorAddr, ExecutorAddr, Vec<SharedSegment>, Vec<ActionPair<'_>>),
        (ExecutorAddr, Vec<ExecutorAddr>),
        (ExecutorAddr, Vec<String>),
        (ExecutorAddr, &str, u64),
        (ExecutorAddr, ExecutorAddr, Vec<(String, bool)>),
        (AddrRange, bool),
        Vec<(ExecutorAddr, u16)>,
        Vec<(ExecutorAddr, Bytes<'_>)>,
        Vec<AddrRange>,
        Vec<Vec<u8>>,
        BTreeMap<String, Bytes<'_>>,
        BTreeMap<&str, ExecutorAddr>,
        Outcome,
        Expected<ExecutorAddr>,
        Expected<(ExecutorAddr, String)>,
        Expected<Vec<SymbolDef>>,
        Expected<Vec<Option<SymbolDef>>>,
        Option<(i8, i16, i32, i64)>,
        (),
    );
});
