// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Opens the library that its argument names, and calls it.
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
  void *library = dlopen(argv[argc - 1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    puts(dlerror());
    return 1;
  }
  int (*thrice)(int) = (int (*)(int))dlsym(library, "thrice");
  printf("%d\n", thrice(14));
  return dlclose(library) ? 1 : 42;
}
