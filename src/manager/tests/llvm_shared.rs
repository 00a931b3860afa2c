// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's shared-memory service in this process, which can be told to lie.

use super::*;
use crate::executor::llvm::{PublishedSymbol, Services};
use crate::mapper::LlvmSharedMapper;
use crate::sys::WrapperResult;
use crate::sys::testing::call_wrapper;
use crate::transport::Transport;
use crate::wire::frame::SetupLayout;
use crate::wire::sps::{ExecutorAddr, Expected, from_bytes, to_bytes};

/// Says that each window but the first is where the first one is, or so many bytes behind its start.
struct Liar {
    services: Services,
    beyond: u64,
    first: Mutex<Option<u64>>,
}

impl Transport for Liar {
    fn call(&self, function: u64, args: Vec<u8>, done: Completion<Vec<u8>>) {
        let WrapperResult::Bytes(mut answer) = call_wrapper(function, &args) else {
            panic!("malformed arguments");
        };
        let reserve = self.symbol("__llvm_orc_ExecutorSharedMemoryMapperService_Reserve");
        if Some(function) == reserve {
            type Reserved = Expected<(ExecutorAddr, String)>;
            let Expected(window) = from_bytes::<Reserved>(&answer).unwrap();
            let (base, name) = window.unwrap();
            let mut first = self.first.lock();
            let said = first.map_or(base.0, |first| first + self.beyond);
            first.get_or_insert(base.0);
            answer = to_bytes(&Expected(Ok((ExecutorAddr(said), name))));
        }
        done.complete(Ok(answer));
    }

    fn symbol(&self, name: &str) -> Option<u64> {
        let symbols = self.services.symbols(SetupLayout::MapAndSymbols);
        let (_, symbol) = symbols.into_iter().find(|(known, _)| *known == name)?;
        Some(match symbol {
            PublishedSymbol::Function(function) => function.address,
            PublishedSymbol::Instance(number) => number,
        })
    }
}

#[test]
fn windows_that_overlap_are_refused() {
    let page = sys::page_size().bytes();
    for beyond in [0, page] {
        let executor = Arc::new(Liar {
            services: Services::new(false),
            beyond,
            first: Mutex::default(),
        });
        let mapper = Mapper::new(LlvmSharedMapper::new(executor).unwrap());
        let options = Options {
            window_size: 16 * page,
            growth: GrowthPolicy::AnotherWindow,
            ..Options::default()
        };
        let manager = Manager::new(&mapper, options).unwrap();
        let first = allocate(&manager, &small_graph()).unwrap();
        let large = [segment(14 * page, 0, 16, Protection::READ)];
        let error = allocate(&manager, &large).unwrap_err();
        assert_eq!(error.status(), Status::MapperFailed, "{error}");
        assert!(error.message().contains("overlaps the window"), "{error}");
        // What is in the first one is written as before.
        manager.core.write(first.handle, 0, 0, &[7; 256]).unwrap();
        finalize(&manager, first.handle).unwrap();
    }
}
