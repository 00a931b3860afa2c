// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLJIT by LLVM's C API, its code in jitmem's memory.
#include "module.h"

#include <jitmem/llvm_c.h>
#include <llvm-c/Target.h>

int main(void) {
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();

  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error) ||
      jitmem_manager_create(mapper, NULL, &manager, &error)) {
    fprintf(stderr, "llvm-c: %s\n", jitmem_error_message(error));
    return 1;
  }
  LLVMOrcLLJITBuilderRef builder = LLVMOrcCreateLLJITBuilder();
  LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, jitmem_llvm_object_layer, manager);

  LLVMOrcLLJITRef jit;
  LLVMOrcExecutorAddress address;
  or_exit(LLVMOrcCreateLLJIT(&jit, builder));
  add_module(jit, "define i32 @add(i32 %a, i32 %b) { %c = add i32 %a, %b  ret i32 %c }");
  or_exit(LLVMOrcLLJITLookup(jit, &address, "add"));
  int sum = ((int (*)(int, int))(uintptr_t)address)(40, 2);

  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_manager_stats(manager, &stats, NULL);
  printf("40 + 2 = %d, from %llu allocations over %s\n", sum,
         (unsigned long long)stats.finalize_calls, stats.mapper_name);

  int failed = sum != 42 || stats.finalize_calls == 0;
  or_exit(LLVMOrcDisposeLLJIT(jit));
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return failed;
}
