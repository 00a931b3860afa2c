// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What both programs do with LLVM's C API alone.
#ifndef MODULE_H
#define MODULE_H

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/LLJIT.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void or_exit(LLVMErrorRef error) {
  if (!error)
    return;
  char *message = LLVMGetErrorMessage(error);
  fprintf(stderr, "llvm-c: %s\n", message);
  LLVMDisposeErrorMessage(message);
  exit(1);
}

/// Parses a module in LLVM's assembly language.
static inline LLVMModuleRef parse(LLVMContextRef context, const char *source) {
  LLVMMemoryBufferRef text =
      LLVMCreateMemoryBufferWithMemoryRangeCopy(source, strlen(source), "example");
  LLVMModuleRef module;
  char *message = NULL;
  if (LLVMParseIRInContext(context, text, &module, &message)) {
    fprintf(stderr, "llvm-c: %s\n", message);
    exit(1);
  }
  return module;
}

/// Adds such a module to a JIT.
static inline void add_module(LLVMOrcLLJITRef jit, const char *source) {
#if LLVM_VERSION_MAJOR >= 21
  LLVMContextRef context = LLVMContextCreate();
  LLVMOrcThreadSafeContextRef safe = LLVMOrcCreateNewThreadSafeContextFromLLVMContext(context);
#else
  LLVMOrcThreadSafeContextRef safe = LLVMOrcCreateNewThreadSafeContext();
  LLVMContextRef context = LLVMOrcThreadSafeContextGetContext(safe);
#endif
  LLVMOrcThreadSafeModuleRef unit = LLVMOrcCreateNewThreadSafeModule(parse(context, source), safe);
  LLVMOrcDisposeThreadSafeContext(safe);
  or_exit(LLVMOrcLLJITAddLLVMIRModule(jit, LLVMOrcLLJITGetMainJITDylib(jit), unit));
}

#endif // MODULE_H
