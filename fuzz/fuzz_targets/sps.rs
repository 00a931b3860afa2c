// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Argument lists and results of ORC's services.

#![no_main]

use jitmem::wire::llvm::{FinalizeRequest, SharedMemoryFinalizeRequest};
use jitmem::wire::sps::*;
use jitmem_fuzz::reread;
use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    reread!(bytes =>
        FinalizeRequest<'_>,
        (ExecutorAddr, ExecutorAddr, SharedMemoryFinalizeRequest<'_>),
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
