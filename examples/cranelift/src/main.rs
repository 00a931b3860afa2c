// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Cranelift's JITModule over memory of jitmem: functions, constants and data of all modules lie in one
//! window, in reach of each other, so no module reserves an arena of its own. Prints what it calculated.

use cranelift_codegen::ir::{AbiParam, InstBuilder, MemFlagsData, types::I32};
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{BranchProtection, JITBuilder, JITMemoryKind, JITMemoryProvider, JITModule};
use cranelift_module::{
    DataDescription, Linkage, Module, ModuleError, ModuleResult, default_libcall_names,
};
use jitmem::{
    Alignment, Dylib, InProcessKind, Manager, Mapper, Options, SectionGroup, SectionKind,
};
use std::error::Error;
use std::io;
use std::mem::ManuallyDrop;

/// What cranelift asks for memory. Dropping it frees nothing: cranelift promises that finalized functions stay until
/// `free_memory`, which is unsafe, since none of them may run any more.
struct Memory(ManuallyDrop<SectionGroup>);

impl JITMemoryProvider for Memory {
    fn allocate(&mut self, size: usize, align: u64, kind: JITMemoryKind) -> io::Result<*mut u8> {
        let kind = match kind {
            JITMemoryKind::Executable => SectionKind::Code,
            JITMemoryKind::ReadOnly => SectionKind::Constants,
            JITMemoryKind::Writable => SectionKind::Data,
        };
        let alignment = Alignment::try_from(align.max(1)).map_err(io::Error::other)?;
        self.0
            .allocate(kind, size as u64, alignment)
            .map_err(io::Error::other)
    }

    fn finalize(&mut self, _: BranchProtection) -> ModuleResult<()> {
        let finalized = self.0.finalize().map_err(io::Error::other);
        finalized.map_err(|err| ModuleError::Allocation { err })
    }

    unsafe fn free_memory(&mut self) {
        // What the system refuses to take back now, the manager keeps for later.
        let _ = self.0.free();
    }
}

/// A module with `add(number)`, which adds `summand`, a constant in memory.
fn module(
    manager: &Manager,
    summand: i32,
) -> Result<(JITModule, extern "C" fn(i32) -> i32), Box<dyn Error>> {
    let mut flags = settings::builder();
    flags.set("use_colocated_libcalls", "false")?;
    // Data is referred to by 32-bit distances, which one window has.
    flags.set("is_pic", "false")?;
    let isa = cranelift_native::builder()?.finish(settings::Flags::new(flags))?;
    let mut builder = JITBuilder::with_isa(isa, default_libcall_names());
    builder.memory_provider(Box::new(Memory(ManuallyDrop::new(SectionGroup::new(
        manager,
        Dylib::NONE,
    )?))));
    let mut module = JITModule::new(builder);

    let constant = module.declare_data("summand", Linkage::Local, false, false)?;
    let mut description = DataDescription::new();
    description.define(Box::new(summand.to_ne_bytes()));
    description.set_align(4);
    module.define_data(constant, &description)?;

    let mut context = module.make_context();
    context.func.signature.params.push(AbiParam::new(I32));
    context.func.signature.returns.push(AbiParam::new(I32));
    let add = module.declare_function("add", Linkage::Export, &context.func.signature)?;
    let mut functions = FunctionBuilderContext::new();
    let mut body = FunctionBuilder::new(&mut context.func, &mut functions);
    let block = body.create_block();
    body.append_block_params_for_function_params(block);
    body.switch_to_block(block);
    body.seal_block(block);
    let number = body.block_params(block)[0];
    let constant = module.declare_data_in_func(constant, body.func);
    let pointer = module.target_config().pointer_type();
    let address = body.ins().symbol_value(pointer, constant);
    let summand = body.ins().load(I32, MemFlagsData::trusted(), address, 0);
    let sum = body.ins().iadd(number, summand);
    body.ins().return_(&[sum]);
    body.finalize(module.target_config());
    module.define_function(add, &mut context)?;
    module.finalize_definitions()?;
    let add = module.get_finalized_function(add);
    // SAFETY: a function of this type was just made there.
    Ok((module, unsafe {
        std::mem::transmute::<*const u8, extern "C" fn(i32) -> i32>(add)
    }))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mapper = Mapper::in_process(InProcessKind::InPlace)?;
    let manager = Manager::new(&mapper, Options::default())?;
    let mut modules = Vec::new();
    for summand in 0..1000 {
        let (module, add) = module(&manager, summand)?;
        assert_eq!(add(40), 40 + summand);
        modules.push((module, add));
    }
    let stats = manager.stats();
    println!(
        "{} modules in {} window: 40 + 2 = {}",
        modules.len(),
        stats.windows,
        modules[2].1(40)
    );
    for (module, _) in modules {
        // SAFETY: its function is not called any more.
        unsafe { module.free_memory() };
    }
    assert_eq!(manager.stats().live, 0);
    Ok(())
}
