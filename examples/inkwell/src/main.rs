// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! inkwell builds functions and compiles them to objects; LLVM's LLJIT links these over jitmem, in this process and in
//! a jitmem-executor that this program starts.
//! usage: jitmem-inkwell-example PATH-OF-JITMEM-EXECUTOR

mod jitmem_c;

use inkwell::OptimizationLevel;
use inkwell::context::Context;
use inkwell::llvm_sys::error::{LLVMDisposeErrorMessage, LLVMErrorRef, LLVMGetErrorMessage};
use inkwell::llvm_sys::orc2::lljit::*;
use inkwell::llvm_sys::orc2::{LLVMOrcExecutionSessionRef, LLVMOrcObjectLayerRef};
use inkwell::memory_buffer::MemoryBuffer;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine,
};
use jitmem_c::*;
use std::error::Error;
use std::ffi::{CStr, c_char, c_void};
use std::mem::ManuallyDrop;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::process::{Command, Stdio};
use std::ptr;

type Answer<T> = Result<T, Box<dyn Error>>;

/// An object with the function `name`, which adds 40 to its first argument. It has two: `int main(int, char **)` too.
fn compile(name: &str) -> Answer<MemoryBuffer<'static>> {
    let context = Context::create();
    let module = context.create_module(name);
    let int = context.i32_type();
    let strings = context.ptr_type(Default::default());
    let function = module.add_function(
        name,
        int.fn_type(&[int.into(), strings.into()], false),
        None,
    );
    let builder = context.create_builder();
    builder.position_at_end(context.append_basic_block(function, "entry"));
    let first = function
        .get_first_param()
        .ok_or("no parameter")?
        .into_int_value();
    let sum = builder.build_int_add(first, int.const_int(40, false), "sum")?;
    builder.build_return(Some(&sum))?;

    let triple = TargetMachine::get_default_triple();
    let machine = Target::from_triple(&triple)?
        .create_target_machine(
            &triple,
            "generic",
            "",
            OptimizationLevel::Default,
            RelocMode::PIC,
            CodeModel::Default,
        )
        .ok_or("no target machine")?;
    Ok(machine.write_to_memory_buffer(&module, FileType::Object)?)
}

/// What an `LLVMErrorRef` says.
fn check(error: LLVMErrorRef) -> Answer<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: LLVM has just answered it; it is taken once, and so is its message.
    unsafe {
        let message = LLVMGetErrorMessage(error);
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        LLVMDisposeErrorMessage(message);
        Err(text.into())
    }
}

/// An LLJIT, until it is dropped.
struct Jit(LLVMOrcLLJITRef);

impl Jit {
    /// # Safety
    /// `builder` is LLVM's and used no more.
    unsafe fn create(builder: LLVMOrcLLJITBuilderRef) -> Answer<Jit> {
        let mut jit = ptr::null_mut();
        // SAFETY: as the caller says.
        check(unsafe { LLVMOrcCreateLLJIT(&mut jit, builder) })?;
        Ok(Jit(jit))
    }

    /// Links an object and answers where one of its functions is.
    fn link(&self, object: MemoryBuffer<'static>, name: &CStr) -> Answer<u64> {
        // LLVM takes it over, on failure too.
        let object = ManuallyDrop::new(object);
        let mut address = 0;
        // SAFETY: `self` has an LLJIT, and `name` ends with a zero.
        unsafe {
            let library = LLVMOrcLLJITGetMainJITDylib(self.0);
            check(LLVMOrcLLJITAddObjectFile(
                self.0,
                library,
                object.as_mut_ptr(),
            ))?;
            check(LLVMOrcLLJITLookup(self.0, &mut address, name.as_ptr()))?;
        }
        Ok(address)
    }
}

impl Drop for Jit {
    fn drop(&mut self) {
        // SAFETY: it is used no more.
        if let Err(error) = check(unsafe { LLVMOrcDisposeLLJIT(self.0) }) {
            eprintln!("inkwell: {error}");
        }
    }
}

/// A manager of this process, as LLVM's C API takes it.
fn manager() -> Answer<*mut Manager> {
    let (mut mapper, mut manager, mut error) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: all are places for a pointer; the manager keeps what it needs of the mapper.
    unsafe {
        if jitmem_mapper_in_process(IN_PROCESS_AUTO, &mut mapper, &mut error) == 0 {
            jitmem_manager_create(mapper, ptr::null(), &mut manager, &mut error);
            jitmem_mapper_free(mapper);
        }
        if !error.is_null() {
            return Err(CStr::from_ptr(jitmem_error_message(error))
                .to_string_lossy()
                .into());
        }
    }
    Ok(manager)
}

extern "C" fn object_layer(
    manager: *mut c_void,
    session: LLVMOrcExecutionSessionRef,
    triple: *const c_char,
) -> LLVMOrcObjectLayerRef {
    // SAFETY: LLVM passes its session, and the context that `here` has given it.
    unsafe { jitmem_llvm_object_layer(manager, session, triple) }
}

fn here() -> Answer<()> {
    let manager = manager()?;
    // SAFETY: the manager stays until the JIT is gone.
    let jit = unsafe {
        let builder = LLVMOrcCreateLLJITBuilder();
        LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, object_layer, manager.cast());
        Jit::create(builder)?
    };
    let address = jit.link(compile("add_forty")?, c"add_forty")?;
    // SAFETY: it was compiled with this type, and stays until the JIT is gone.
    let add: extern "C" fn(i32, *const *const c_char) -> i32 =
        unsafe { std::mem::transmute(address as usize) };
    let sum = add(2, ptr::null());
    // The crate's own functions know what the C API manages.
    let location = jitmem::lookup(address).ok_or("the function is not in jitmem's memory")?;
    println!(
        "2 + 40 = {sum}, by code at {:?}, which is jitmem's",
        location.segment()
    );
    drop(jit);
    // SAFETY: nothing uses it any more.
    unsafe { jitmem_manager_free(manager) };
    if sum == 42 {
        Ok(())
    } else {
        Err("2 + 40 is 42".into())
    }
}

fn there(path: &str) -> Answer<()> {
    let mut executor = Command::new(path)
        .arg("filedescs=0,1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(out), Some(r#in)) = (executor.stdin.take(), executor.stdout.take()) else {
        return Err("the executor has no pipes".into());
    };
    let (r#in, out) = (OwnedFd::from(r#in), OwnedFd::from(out));
    // SAFETY: LLVM takes both descriptors over, on failure too; NULL stands for the defaults, and for a manager that
    // is not asked for.
    let jit = unsafe {
        let builder = LLVMOrcCreateLLJITBuilder();
        check(jitmem_llvm_connect(
            builder,
            r#in.into_raw_fd(),
            out.into_raw_fd(),
            ptr::null(),
            ptr::null_mut(),
        ))?;
        Jit::create(builder)?
    };
    let address = jit.link(compile("main")?, c"main")?;
    let (strings, mut result) = ([c"example".as_ptr(), c"argument".as_ptr()], 0);
    // SAFETY: there is a `main` at this address, and two strings.
    check(unsafe {
        let session = LLVMOrcLLJITGetExecutionSession(jit.0);
        jitmem_llvm_run_as_main(session, address, 2, strings.as_ptr(), &mut result)
    })?;
    println!(
        "main of 2 arguments returned {result} in process {}",
        executor.id()
    );
    drop(jit);
    let status = executor.wait()?;
    if result == 42 && status.success() {
        Ok(())
    } else {
        Err(format!("executor: {status}").into())
    }
}

fn main() -> Answer<()> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: jitmem-inkwell-example PATH-OF-JITMEM-EXECUTOR")?;
    Target::initialize_native(&InitializationConfig::default())?;
    here()?;
    there(&path)
}
