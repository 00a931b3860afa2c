// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Prints the answer of a plugin that it opens as Python opens extensions: its symbols, and those of
// what it is linked to, are seen by it alone.
#include <dlfcn.h>
#include <stdio.h>

#ifdef HOST_HAS_LLVM
#include <llvm-c/LLJIT.h>
#endif

int main(int count, char **arguments) {
#ifdef HOST_HAS_LLVM
  LLVMOrcDisposeLLJITBuilder(LLVMOrcCreateLLJITBuilder());
#endif
  void *plugin = count == 2 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL;
  if (!plugin) {
    fprintf(stderr, "plugin_host: %s\n", count == 2 ? dlerror() : "usage: plugin_host PLUGIN");
    return 1;
  }
  void *jit = NULL, *builder = ((void *(*)(void))dlsym(plugin, "begin"))();
  if (((void *(*)(void **, void *))dlsym(plugin, "make"))(&jit, builder))
    return 1;
  printf("%d\n", ((int (*)(void *))dlsym(plugin, "answer"))(jit));
  return 0;
}
