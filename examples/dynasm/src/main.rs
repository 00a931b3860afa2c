// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! dynasm-rs assembles a function that counts its calls, into memory of jitmem: code and its counter are one graph,
//! so the code reaches the counter by a 32-bit reference. It takes the place of dynasm-rs's own executable buffers.

use dynasmrt::{DynasmApi, VecAssembler, dynasm, x64::X64Relocation};
use jitmem::{Dylib, InProcessKind, Manager, Mapper, Options, Protection, Segment};
use std::error::Error;

/// `extern "C" fn add(a: i32, b: i32) -> i32`, which increments `counter`, as machine code that lies at `address`.
fn assemble(address: u64, counter: u64) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut assembler = VecAssembler::<X64Relocation>::new(usize::try_from(address)?);
    // From the end of the instruction, which has 6 bytes.
    let distance = i32::try_from(counter as i64 - (address as i64 + 6))?;
    dynasm!(assembler
        ; .arch x64
        ; inc DWORD [rip + distance]
        ; lea eax, [rdi + rsi]
        ; ret
    );
    Ok(assembler.finalize()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mapper = Mapper::in_process(InProcessKind::Auto)?;
    let manager = Manager::new(&mapper, Options::default())?;

    // The size of the code does not depend on where it lies.
    let size = assemble(0, 0)?.len();
    let code = Segment::new(Protection::READ_EXEC, size as u64);
    let counter = Segment::new(Protection::READ_WRITE, 0).zero_fill(4);
    let mut graph = manager.allocate([code, counter], Dylib::NONE)?;
    let (address, counter) = (graph.address(0), graph.address(1));
    graph.write(0, 0, &assemble(address, counter)?)?;
    let allocation = graph.finalize([])?;

    // SAFETY: it has been assembled for this address with this type, and is deallocated after the calls.
    let add: extern "C" fn(i32, i32) -> i32 = unsafe { std::mem::transmute(address as usize) };
    let sum = add(40, 2) + add(-1, 1);
    // SAFETY: four bytes of the allocation, which the calls above have written in this thread.
    let calls = unsafe { std::ptr::with_exposed_provenance::<i32>(counter as usize).read() };
    println!("{}: 40 + 2 = {sum}, counted {calls} calls", mapper.name());
    assert_eq!((sum, calls), (42, 2));

    manager.deallocate([allocation])?;
    assert_eq!(manager.stats().finalized, 0);
    Ok(())
}
