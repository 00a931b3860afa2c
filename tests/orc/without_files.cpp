// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// `without-files PROGRAM ARGUMENT...` runs a program to which every file system is full.

#include "sandbox.h"

#include <cerrno>
#include <cstdio>
#include <linux/seccomp.h>
#include <unistd.h>

int main(int Argc, char *Argv[]) {
  if (Argc < 2)
    return 2;
  onMakingFiles(SECCOMP_RET_ERRNO | ENOSPC);
  execv(Argv[1], Argv + 1);
  std::perror(Argv[1]);
  return 127;
}
