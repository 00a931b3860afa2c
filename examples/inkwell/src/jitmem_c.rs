// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What this program needs of jitmem.h and jitmem/llvm_c.h. The crate contains the former, build.rs compiles the latter.

use inkwell::llvm_sys::error::LLVMErrorRef;
use inkwell::llvm_sys::orc2::lljit::LLVMOrcLLJITBuilderRef;
use inkwell::llvm_sys::orc2::{
    LLVMOrcExecutionSessionRef, LLVMOrcExecutorAddress, LLVMOrcObjectLayerRef,
};
use std::ffi::{c_char, c_int, c_void};

use jitmem as _;

/// `jitmem_mapper`, `jitmem_manager` and `jitmem_error`.
pub enum Mapper {}
pub enum Manager {}
pub enum Error {}

pub const IN_PROCESS_AUTO: c_int = 0;

unsafe extern "C" {
    pub fn jitmem_error_message(error: *const Error) -> *const c_char;
    pub fn jitmem_mapper_in_process(
        kind: c_int,
        mapper: *mut *mut Mapper,
        error: *mut *mut Error,
    ) -> c_int;
    pub fn jitmem_mapper_free(mapper: *mut Mapper);
    pub fn jitmem_manager_create(
        mapper: *const Mapper,
        options: *const c_void,
        manager: *mut *mut Manager,
        error: *mut *mut Error,
    ) -> c_int;
    pub fn jitmem_manager_free(manager: *mut Manager);

    pub fn jitmem_llvm_object_layer(
        manager: *mut c_void,
        session: LLVMOrcExecutionSessionRef,
        triple: *const c_char,
    ) -> LLVMOrcObjectLayerRef;
    pub fn jitmem_llvm_connect(
        builder: LLVMOrcLLJITBuilderRef,
        r#in: c_int,
        out: c_int,
        options: *const c_void,
        manager: *mut *mut Manager,
    ) -> LLVMErrorRef;
    pub fn jitmem_llvm_run_as_main(
        session: LLVMOrcExecutionSessionRef,
        address: LLVMOrcExecutorAddress,
        argc: c_int,
        argv: *const *const c_char,
        result: *mut i32,
    ) -> LLVMErrorRef;
}
