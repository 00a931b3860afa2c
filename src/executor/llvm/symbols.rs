// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The services of one session under the names that controllers know them by.
//!
//! All generations' names are published at once: a controller takes those that it knows. Only one
//! function differs between them under the same name.

use super::dylib::{self, DylibManager};
use super::shared::{self, SharedMapper};
use super::simple::{self, MemoryManager};
use super::{gdb, memory_access as memory, run};
use crate::error::Result;
use crate::mapper::actions::join;
use crate::sys::{self, Answer, wrapper_address};
use crate::unwind::registration as eh_frames;
use crate::wire::frame::SetupLayout;
use std::sync::Arc;

/// What is behind a published wrapper function.
#[derive(Clone, Copy)]
pub(crate) struct PublishedFunction {
    /// Its address, for calls from anywhere.
    pub(crate) address: u64,
    /// The same, for calls from the server itself.
    pub(crate) body: FunctionBody,
    /// Which thread may run it.
    pub(crate) class: CallClass,
}

/// How the server calls a function.
#[derive(Clone, Copy)]
pub(crate) enum FunctionBody {
    /// It is one of ours.
    Ours(fn(&[u8]) -> Answer),
    /// Its address is all that is known.
    AtAddress,
    /// The session answers: [`dylib::lookup_published`] among what it has published.
    LookUpPublished,
}

/// The thread that runs a function: by how long it may take, and by what it may leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CallClass {
    /// The thread that reads: the function waits for no other thread and runs no linked code.
    Inline,
    /// A thread of the pool: the function may run linked code, but only such as ends soon, which is
    /// actions and constructors of libraries.
    Pooled,
    /// A thread of its own: the function runs a program, which may leave thread-locals behind that
    /// end with the thread.
    OwnThread,
}

/// A value that is published under a name: a function, or the number of an instance.
pub(crate) enum PublishedSymbol {
    Function(PublishedFunction),
    Instance(u64),
}

fn function<F: Fn(&[u8]) -> Answer + Copy>(
    class: CallClass,
    body: F,
    answer: fn(&[u8]) -> Answer,
) -> PublishedSymbol {
    PublishedSymbol::Function(PublishedFunction {
        address: wrapper_address(body),
        body: FunctionBody::Ours(answer),
        class,
    })
}

/// A list of names and functions.
macro_rules! functions {
    ($($class:ident $name:literal $function:path;)*) => {
        [$(($name, function(CallClass::$class, $function, $function))),*]
    };
}

/// What controllers and linked code ask the process for by name, as if it exported them. They are
/// answered here and not exported: libLLVM exports the same names, and a host may have both.
pub(super) fn found_by_lookup(name: &[u8]) -> Option<u64> {
    match name {
        b"llvm_orc_registerEHFrameSectionWrapper"
        | b"llvm_orc_registerEHFrameSectionAllocAction" => {
            Some(wrapper_address(eh_frames::register))
        }
        b"llvm_orc_deregisterEHFrameSectionWrapper"
        | b"llvm_orc_deregisterEHFrameSectionAllocAction" => {
            Some(wrapper_address(eh_frames::deregister))
        }
        b"llvm_orc_registerJITLoaderGDBWrapper" | b"llvm_orc_registerJITLoaderGDBAllocAction" => {
            Some(wrapper_address(gdb::register))
        }
        b"__jit_debug_descriptor" | b"__jit_debug_register_code" => sys::debug_symbols()
            .into_iter()
            .find(|(known, _)| known.as_bytes() == name)
            .map(|(_, address)| address),
        _ => None,
    }
}

/// The services of one session. Shut down when dropped, at the latest.
pub(crate) struct Services {
    mapper: (Arc<SharedMapper>, u64),
    memory: (Arc<MemoryManager>, u64),
    dylibs: (Arc<DylibManager>, u64),
}

impl Services {
    /// New services; `runtime`: whether what programs in C++ need is loaded when a symbol is
    /// missing.
    pub(crate) fn new(runtime: bool) -> Services {
        Services {
            mapper: SharedMapper::publish(),
            memory: MemoryManager::publish(),
            dylibs: DylibManager::publish(runtime),
        }
    }

    /// Everything that is published. The layout tells the generation.
    pub(crate) fn symbols(&self, layout: SetupLayout) -> Vec<(&'static str, PublishedSymbol)> {
        let mut all: Vec<(&'static str, PublishedSymbol)> = vec![
            (
                "__llvm_orc_ExecutorSharedMemoryMapperService_Instance",
                PublishedSymbol::Instance(self.mapper.1),
            ),
            (
                "__llvm_orc_SimpleExecutorMemoryManager_Instance",
                PublishedSymbol::Instance(self.memory.1),
            ),
            (
                "orc_rt_ci_SimpleNativeMemoryMap_Instance",
                PublishedSymbol::Instance(self.memory.1),
            ),
            (
                "__llvm_orc_SimpleExecutorDylibManager_Instance",
                PublishedSymbol::Instance(self.dylibs.1),
            ),
            (
                "orc_rt_ci_NativeDylibManager_Instance",
                PublishedSymbol::Instance(self.dylibs.1),
            ),
        ];
        all.extend(functions! {
            OwnThread "__llvm_orc_bootstrap_run_as_main_wrapper" run::as_main;
            OwnThread "__llvm_orc_bootstrap_run_as_void_function_wrapper" run::as_void;
            OwnThread "__llvm_orc_bootstrap_run_as_int_function_wrapper" run::as_int;

            Pooled "__llvm_orc_SimpleExecutorDylibManager_open_wrapper" dylib::open;
            Pooled "__llvm_orc_SimpleExecutorDylibManager_resolve_wrapper" dylib::resolve;

            Inline "__llvm_orc_SimpleExecutorMemoryManager_reserve_wrapper" simple::reserve;
            Pooled "__llvm_orc_SimpleExecutorMemoryManager_finalize_wrapper" simple::finalize;
            Pooled "__llvm_orc_SimpleExecutorMemoryManager_deallocate_wrapper" simple::deallocate;
            Pooled "__llvm_orc_SimpleExecutorMemoryManager_initialize_wrapper" simple::initialize;
            Pooled "__llvm_orc_SimpleExecutorMemoryManager_deinitialize_wrapper"
                simple::deinitialize;
            Pooled "__llvm_orc_SimpleExecutorMemoryManager_release_wrapper" simple::release;

            // What controllers after LLVM 22 ask for.
            OwnThread "orc_rt_ci_sps_call_main" run::as_main;
            OwnThread "orc_rt_ci_sps_call_void_void" run::as_nothing;
            OwnThread "orc_rt_ci_sps_call_int32_void" run::as_void;
            OwnThread "orc_rt_ci_sps_call_int32_int32" run::as_int;
            Pooled "orc_rt_ci_sps_NativeDylibManager_load" dylib::open;
            Pooled "orc_rt_ci_sps_NativeDylibManager_lookup" dylib::lookup_optional;
            Inline "orc_rt_ci_sps_SimpleNativeMemoryMap_reserve" simple::reserve;
            Pooled "orc_rt_ci_sps_SimpleNativeMemoryMap_initialize" simple::initialize;
            Pooled "orc_rt_ci_sps_SimpleNativeMemoryMap_deinitializeMultiple"
                simple::deinitialize;
            Pooled "orc_rt_ci_sps_SimpleNativeMemoryMap_releaseMultiple" simple::release;
            Pooled "orc_rt_ci_aa_sps_DWARFEHFrameRegistrar_registerSection" eh_frames::register;
            Pooled "orc_rt_ci_aa_sps_DWARFEHFrameRegistrar_deregisterSection"
                eh_frames::deregister;
            Pooled "orc_rt_ci_aa_sps_GDBJITRegistrar_register" gdb::register;
            Pooled "orc_rt_ci_aa_sps_GDBJITRegistrar_deregister" gdb::deregister;
            Inline "orc_rt_ci_sps_mem_write_uint8s" memory::write_uint8s;
            Inline "orc_rt_ci_sps_mem_write_uint16s" memory::write_uint16s;
            Inline "orc_rt_ci_sps_mem_write_uint32s" memory::write_uint32s;
            Inline "orc_rt_ci_sps_mem_write_uint64s" memory::write_uint64s;
            Inline "orc_rt_ci_sps_mem_write_pointers" memory::write_pointers;
            Inline "orc_rt_ci_sps_mem_write_buffers" memory::write_buffers;
            Inline "orc_rt_ci_sps_mem_read_uint8s" memory::read_uint8s;
            Inline "orc_rt_ci_sps_mem_read_uint16s" memory::read_uint16s;
            Inline "orc_rt_ci_sps_mem_read_uint32s" memory::read_uint32s;
            Inline "orc_rt_ci_sps_mem_read_uint64s" memory::read_uint64s;
            Inline "orc_rt_ci_sps_mem_read_pointers" memory::read_pointers;
            Inline "orc_rt_ci_sps_mem_read_buffers" memory::read_buffers;
            Inline "orc_rt_ci_sps_mem_read_strings" memory::read_strings;

            Inline "__llvm_orc_ExecutorSharedMemoryMapperService_Reserve" shared::reserve;
            Pooled "__llvm_orc_ExecutorSharedMemoryMapperService_Initialize" shared::initialize;
            Pooled "__llvm_orc_ExecutorSharedMemoryMapperService_Deinitialize"
                shared::deinitialize;
            Pooled "__llvm_orc_ExecutorSharedMemoryMapperService_Release" shared::release;

            Pooled "__llvm_orc_bootstrap_register_ehframe_section_wrapper" eh_frames::register;
            Pooled "__llvm_orc_bootstrap_deregister_ehframe_section_wrapper"
                eh_frames::deregister;
            Pooled "llvm_orc_registerEHFrameSectionWrapper" eh_frames::register;
            Pooled "llvm_orc_deregisterEHFrameSectionWrapper" eh_frames::deregister;
            Pooled "llvm_orc_registerEHFrameAllocAction" eh_frames::register;
            Pooled "llvm_orc_deregisterEHFrameAllocAction" eh_frames::deregister;
            Pooled "llvm_orc_registerJITLoaderGDBWrapper" gdb::register;
            Pooled "llvm_orc_registerJITLoaderGDBAllocAction" gdb::register;

            Inline "__llvm_orc_bootstrap_mem_write_uint8s_wrapper" memory::write_uint8s;
            Inline "__llvm_orc_bootstrap_mem_write_uint16s_wrapper" memory::write_uint16s;
            Inline "__llvm_orc_bootstrap_mem_write_uint32s_wrapper" memory::write_uint32s;
            Inline "__llvm_orc_bootstrap_mem_write_uint64s_wrapper" memory::write_uint64s;
            Inline "__llvm_orc_bootstrap_mem_write_pointers_wrapper" memory::write_pointers;
            Inline "__llvm_orc_bootstrap_mem_write_buffers_wrapper" memory::write_buffers;
            Inline "__llvm_orc_bootstrap_mem_read_uint8s_wrapper" memory::read_uint8s;
            Inline "__llvm_orc_bootstrap_mem_read_uint16s_wrapper" memory::read_uint16s;
            Inline "__llvm_orc_bootstrap_mem_read_uint32s_wrapper" memory::read_uint32s;
            Inline "__llvm_orc_bootstrap_mem_read_uint64s_wrapper" memory::read_uint64s;
            Inline "__llvm_orc_bootstrap_mem_read_pointers_wrapper" memory::read_pointers;
            Inline "__llvm_orc_bootstrap_mem_read_buffers_wrapper" memory::read_buffers;
            Inline "__llvm_orc_bootstrap_mem_read_strings_wrapper" memory::read_strings;
        });
        all.push((
            "orc_rt_ci_sps_Session_lookupInstanceSymbols",
            PublishedSymbol::Function(PublishedFunction {
                address: wrapper_address(dylib::without_session),
                body: FunctionBody::LookUpPublished,
                class: CallClass::Inline,
            }),
        ));
        // The one name whose answer changed: addresses first, definitions since LLVM 17.
        all.extend(match layout {
            SetupLayout::Symbols => functions! {
                Pooled "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper"
                    dylib::lookup_addresses;
            },
            SetupLayout::MapAndSymbols => functions! {
                Pooled "__llvm_orc_SimpleExecutorDylibManager_lookup_wrapper"
                    dylib::lookup_definitions;
            },
        });
        if sys::debugging().is_some() {
            // What controllers can't find they don't take: shared pages take no breakpoints.
            all.retain(|(name, _)| {
                !name.starts_with("__llvm_orc_ExecutorSharedMemoryMapperService")
            });
        }
        all
    }
}

impl Services {
    /// Ends the services, the last one published first. What deallocation actions that were left answer
    /// is the result.
    pub(crate) fn shut_down(&self) -> Result<()> {
        let mapper = self.mapper.0.shut_down(self.mapper.1);
        let memory = self.memory.0.shut_down(self.memory.1);
        self.dylibs.0.shut_down(self.dylibs.1);
        join(mapper, memory)
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        // Nothing is left to do if that was done before.
        let _ = self.shut_down();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_stands_twice_and_every_function_has_an_address() {
        let services = Services::new(true);
        for layout in [SetupLayout::Symbols, SetupLayout::MapAndSymbols] {
            let symbols = services.symbols(layout);
            let names: BTreeSet<&str> = symbols.iter().map(|(name, _)| *name).collect();
            assert_eq!(names.len(), symbols.len());
            for (name, symbol) in symbols {
                let value = match symbol {
                    PublishedSymbol::Function(function) => function.address,
                    PublishedSymbol::Instance(number) => number,
                };
                assert_ne!(value, 0, "{name}");
                assert_eq!(
                    name.ends_with("_Instance"),
                    matches!(symbol, PublishedSymbol::Instance(_))
                );
            }
        }
    }
}
