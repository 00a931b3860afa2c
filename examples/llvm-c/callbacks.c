// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLVM's memory manager callbacks: MCJIT, and from LLVM 16 on LLJIT over RuntimeDyld, with their
// memory in jitmem.
#include "module.h"

#include <jitmem.h>
#include <llvm-c/ExecutionEngine.h>
#include <llvm-c/OrcEE.h>
#include <llvm-c/Target.h>

#define ADD "define i32 @add(i32 %a, i32 %b) { %c = add i32 %a, %b  ret i32 %c }"

static int call(uint64_t address) { return ((int (*)(int, int))(uintptr_t)address)(40, 2); }

static int with_mcjit(jitmem_manager *manager) {
  LLVMContextRef context = LLVMContextCreate();
  struct LLVMMCJITCompilerOptions options;
  LLVMInitializeMCJITCompilerOptions(&options, sizeof options);
  options.MCJMM = LLVMCreateSimpleMCJITMemoryManager(
      jitmem_rtdyld_create_context(manager), jitmem_rtdyld_allocate_code_section,
      jitmem_rtdyld_allocate_data_section, jitmem_rtdyld_finalize_memory, jitmem_rtdyld_destroy);
  LLVMExecutionEngineRef engine;
  char *message = NULL;
  if (LLVMCreateMCJITCompilerForModule(&engine, parse(context, ADD), &options, sizeof options,
                                       &message)) {
    fprintf(stderr, "llvm-c: %s\n", message);
    exit(1);
  }
  int sum = call(LLVMGetFunctionAddress(engine, "add"));
  LLVMDisposeExecutionEngine(engine);
  LLVMContextDispose(context);
  return sum;
}

#if LLVM_VERSION_MAJOR >= 16
static LLVMOrcObjectLayerRef layer(void *manager, LLVMOrcExecutionSessionRef session,
                                   const char *triple) {
  (void)triple;
  return LLVMOrcCreateRTDyldObjectLinkingLayerWithMCJITMemoryManagerLikeCallbacks(
      session, manager, jitmem_rtdyld_create_context, jitmem_rtdyld_notify_terminating,
      jitmem_rtdyld_allocate_code_section, jitmem_rtdyld_allocate_data_section,
      jitmem_rtdyld_finalize_memory, jitmem_rtdyld_destroy);
}

static int with_lljit(jitmem_manager *manager) {
  LLVMOrcLLJITBuilderRef builder = LLVMOrcCreateLLJITBuilder();
  LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, layer, manager);
  LLVMOrcLLJITRef jit;
  LLVMOrcExecutorAddress address;
  or_exit(LLVMOrcCreateLLJIT(&jit, builder));
  add_module(jit, ADD);
  or_exit(LLVMOrcLLJITLookup(jit, &address, "add"));
  int sum = call(address);
  or_exit(LLVMOrcDisposeLLJIT(jit));
  return sum;
}
#endif

/// Calls one of the above, whose code must have been in the manager's memory and be gone.
static int show(const char *name, int (*host)(jitmem_manager *), jitmem_manager *manager) {
  jitmem_stats before = {.struct_size = sizeof before}, after = {.struct_size = sizeof after};
  jitmem_manager_stats(manager, &before, NULL);
  int sum = host(manager);
  jitmem_manager_stats(manager, &after, NULL);
  unsigned long long finalized = after.finalize_calls - before.finalize_calls;
  printf("%s: 40 + 2 = %d, from %llu allocations over %s\n", name, sum, finalized,
         after.mapper_name);
  return sum != 42 || finalized == 0 || after.live != 0;
}

int main(void) {
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  LLVMLinkInMCJIT();

  jitmem_mapper *mapper = NULL;
  jitmem_manager *manager = NULL;
  jitmem_error *error = NULL;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_IN_PLACE, &mapper, &error) ||
      jitmem_manager_create(mapper, NULL, &manager, &error)) {
    fprintf(stderr, "llvm-c: %s\n", jitmem_error_message(error));
    return 1;
  }
  int failed = show("MCJIT", with_mcjit, manager);
#if LLVM_VERSION_MAJOR >= 16
  failed |= show("LLJIT", with_lljit, manager);
#endif
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return failed;
}
