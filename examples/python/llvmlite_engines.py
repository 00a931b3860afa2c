#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""llvmlite's own engines, MCJIT and LLJIT: functions that answer 42. To be run with and without a preloaded jitmem."""

import ctypes
import sys

import llvmlite.binding as llvm

SOURCE = "define i32 @answer() { ret i32 42 }"


def by_mcjit() -> int:
    module = llvm.parse_assembly(SOURCE)
    machine = llvm.Target.from_default_triple().create_target_machine()
    with llvm.create_mcjit_compiler(module, machine) as engine:
        engine.finalize_object()
        return ctypes.CFUNCTYPE(ctypes.c_int)(engine.get_function_address("answer"))()


def by_lljit() -> int:
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True, codemodel="jitdefault")
    jit = llvm.create_lljit_compiler(machine)
    library = llvm.JITLibraryBuilder().add_ir(SOURCE).export_symbol("answer").link(jit, "library")
    return ctypes.CFUNCTYPE(ctypes.c_int)(library["answer"])()


def main() -> int:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    answers = [by_mcjit(), by_lljit()]
    print(f"answers by MCJIT and LLJIT of llvmlite: {answers}")
    return 0 if answers == [42, 42] else 1


if __name__ == "__main__":
    sys.exit(main())
