// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLVM's listener for gdb, told of what a layer of jitmem's links and frees.
#include "module.h"

#include <dlfcn.h>
#include <jitmem/llvm_c.h>
#include <llvm-c/ExecutionEngine.h>
#include <llvm-c/Target.h>

/// What gdb reads: the last two members of its descriptor are lists of object files.
struct descriptor {
  uint32_t version, action;
  void *relevant, *first;
};

static LLVMOrcObjectLayerRef layer(void *manager, LLVMOrcExecutionSessionRef session,
                                   const char *triple) {
  LLVMOrcObjectLayerRef made = jitmem_llvm_object_layer(manager, session, triple);
  if (made)
    jitmem_llvm_register_listener(made, LLVMCreateGDBRegistrationListener());
  return made;
}

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
  LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, layer, manager);

  LLVMOrcLLJITRef jit;
  LLVMOrcExecutorAddress address;
  or_exit(LLVMOrcCreateLLJIT(&jit, builder));
  const struct descriptor *told = dlsym(RTLD_DEFAULT, "__jit_debug_descriptor");
  if (!told || told->first) {
    fprintf(stderr, "llvm-c: LLVM has no descriptor for gdb, or one that is in use\n");
    return 1;
  }
  add_module(jit, "define i32 @answer() { ret i32 42 }");
  or_exit(LLVMOrcLLJITLookup(jit, &address, "answer"));
  int linked = told->first != NULL, answer = ((int (*)(void))(uintptr_t)address)();
  or_exit(LLVMOrcDisposeLLJIT(jit));
  int freed = told->first == NULL;
  printf("answer %d; gdb %s, and %s\n", answer, linked ? "was told of it" : "was not told of it",
         freed ? "of its end" : "not of its end");

  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return answer != 42 || !linked || !freed;
}
