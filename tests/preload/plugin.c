// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A plugin that uses LLVM, of a host that may use another one. Its call of LLVMOrcCreateLLJIT is
// the last thing that a function does.
#include "../../examples/llvm-c/module.h"

#include <llvm-c/Target.h>
#include <stdint.h>

LLVMOrcLLJITBuilderRef begin(void) {
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  return LLVMOrcCreateLLJITBuilder();
}

LLVMErrorRef make(LLVMOrcLLJITRef *jit, LLVMOrcLLJITBuilderRef builder) {
  return LLVMOrcCreateLLJIT(jit, builder);
}

int answer(LLVMOrcLLJITRef jit) {
  LLVMOrcExecutorAddress address;
  add_module(jit, "define i32 @answer() { ret i32 42 }");
  or_exit(LLVMOrcLLJITLookup(jit, &address, "answer"));
  int found = ((int (*)(void))(uintptr_t)address)();
  or_exit(LLVMOrcDisposeLLJIT(jit));
  return found;
}
