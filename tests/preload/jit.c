// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// usage: jit jitlink|rtdyld STEP...    an unchanged program with two JITs, a and b
//
// a1000 links a module with 1,000 bytes of data in a, calls it and prints what it answers; chdir
// goes to the root folder; rawfork has a child, made by the system call, link and call a module of
// its own, and the parent then does the same. prepare and child have the JITs end in a fork handler
// which is registered before they are made, and fork ends the steps.
#include "../../examples/llvm-c/module.h"

#include <llvm-c/OrcEE.h>
#include <llvm-c/Target.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static LLVMOrcLLJITRef jits[2];
static const char *kind;

static LLVMOrcObjectLayerRef rtdyld(void *ctx, LLVMOrcExecutionSessionRef session,
                                    const char *triple) {
  (void)ctx;
  (void)triple;
  return LLVMOrcCreateRTDyldObjectLinkingLayerWithSectionMemoryManager(session);
}

static LLVMOrcLLJITRef make(void) {
  LLVMOrcLLJITBuilderRef builder = LLVMOrcCreateLLJITBuilder();
  if (strcmp(kind, "rtdyld") == 0)
    LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, rtdyld, NULL);
  LLVMOrcLLJITRef jit;
  or_exit(LLVMOrcCreateLLJIT(&jit, builder));
  return jit;
}

static void dispose(void) {
  for (int i = 0; i < 2; ++i) {
    if (jits[i])
      or_exit(LLVMOrcDisposeLLJIT(jits[i]));
    jits[i] = NULL;
  }
}

/// Links a module with so much data, whose last byte its function writes and reads.
static void link_data(LLVMOrcLLJITRef jit, unsigned long size) {
  static int modules;
  char source[600], name[20];
  snprintf(name, sizeof name, "f%d", ++modules);
  snprintf(source, sizeof source,
           "@data%s = internal global [%lu x i8] zeroinitializer\n"
           "define i32 @%s() {\n"
           "  %%p = getelementptr [%lu x i8], ptr @data%s, i64 0, i64 %lu\n"
           "  store volatile i8 42, ptr %%p\n"
           "  %%v = load volatile i8, ptr %%p\n"
           "  %%r = zext i8 %%v to i32\n"
           "  ret i32 %%r\n"
           "}\n",
           name, size, name, size, name, size - 1);
  add_module(jit, source);
  LLVMOrcExecutorAddress address;
  or_exit(LLVMOrcLLJITLookup(jit, &address, name));
  printf("%d\n", ((int (*)(void))(uintptr_t)address)());
  fflush(stdout);
}

static void link_in_new(void) {
  LLVMOrcLLJITRef jit = make();
  link_data(jit, 1);
  or_exit(LLVMOrcDisposeLLJIT(jit));
}

static void wait_for(long child) {
  int status;
  if (waitpid((pid_t)child, &status, 0) != child || status != 0) {
    fprintf(stderr, "jit: the child ended with status %#x\n", status);
    exit(1);
  }
}

int main(int count, char **arguments) {
  kind = arguments[1];
  if (count > 2 && strcmp(arguments[2], "prepare") == 0)
    pthread_atfork(dispose, NULL, NULL);
  if (count > 2 && strcmp(arguments[2], "child") == 0)
    pthread_atfork(NULL, NULL, dispose);
  for (int i = 2; i < count; ++i)
    if (strcmp(arguments[i], "chdir") == 0 && chdir("/") != 0)
      return 1;
  LLVMInitializeNativeTarget();
  LLVMInitializeNativeAsmPrinter();
  for (int i = 0; i < 2; ++i)
    jits[i] = make();
  for (int i = 2; i < count; ++i) {
    const char *step = arguments[i];
    if (strcmp(step, "rawfork") == 0) {
      long child = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
      if (child == 0) {
        link_in_new();
        _exit(0);
      }
      wait_for(child);
      link_in_new();
    } else if (strcmp(step, "fork") == 0) {
      pid_t child = fork();
      if (child == 0)
        _exit(0);
      wait_for(child);
    } else if ((step[0] == 'a' || step[0] == 'b') && step[1] >= '0' && step[1] <= '9') {
      link_data(jits[step[0] - 'a'], strtoul(step + 1, NULL, 10));
    }
  }
  dispose();
  return 0;
}
