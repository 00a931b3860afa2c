// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLJIT by LLVM's C API here, its code in a jitmem-executor that this program starts.
// usage: jitmem-llvm-c-there PATH-OF-JITMEM-EXECUTOR
#include "module.h"

#include <jitmem/llvm_c.h>
#include <llvm-c/Target.h>
#include <sys/wait.h>
#include <unistd.h>

/// Starts an executor; `in` and `out` receive the ends of two pipes to it.
static pid_t start(const char *path, int *in, int *out) {
  int to[2], from[2];
  pid_t child;
  if (pipe(to) != 0 || pipe(from) != 0 || (child = fork()) < 0) {
    perror("llvm-c");
    exit(1);
  }
  if (child == 0) {
    char argument[64];
    snprintf(argument, sizeof argument, "filedescs=%d,%d", to[0], from[1]);
    close(to[1]);
    close(from[0]);
    execl(path, path, argument, (char *)NULL);
    perror(path);
    _exit(1);
  }
  close(to[0]);
  close(from[1]);
  *in = from[0];
  *out = to[1];
  return child;
}

int main(int argc, char *argv[]) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s PATH-OF-JITMEM-EXECUTOR\n", argv[0]);
    return 2;
  }
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();

  int in, out, result = 0, status = 1;
  pid_t executor = start(argv[1], &in, &out);
  jitmem_manager *manager = NULL;
  LLVMOrcLLJITBuilderRef builder = LLVMOrcCreateLLJITBuilder();
  or_exit(jitmem_llvm_connect(builder, in, out, NULL, &manager));

  LLVMOrcLLJITRef jit;
  LLVMOrcExecutorAddress address;
  or_exit(LLVMOrcCreateLLJIT(&jit, builder));
  add_module(jit, "define i32 @main(i32 %count, i64 %strings) {"
                  " %r = add i32 %count, 40  ret i32 %r }");
  or_exit(LLVMOrcLLJITLookup(jit, &address, "main"));
  const char *strings[] = {"example", "argument"};
  or_exit(
      jitmem_llvm_run_as_main(LLVMOrcLLJITGetExecutionSession(jit), address, 2, strings, &result));

  jitmem_stats stats = {.struct_size = sizeof stats};
  jitmem_manager_stats(manager, &stats, NULL);
  printf("main of 2 arguments returned %d in process %d, over %s\n", result, (int)executor,
         stats.mapper_name);

  int failed = result != 42 || stats.finalize_calls == 0;
  or_exit(LLVMOrcDisposeLLJIT(jit));
  waitpid(executor, &status, 0);
  return failed || status != 0;
}
