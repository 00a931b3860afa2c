// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sandbox.h"

#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <system_error>
#include <utility>
#include <vector>

void onMakingFiles(uint32_t Action) {
  // Only flags can be looked at, not paths: so no file may be made anywhere.
  std::vector<sock_filter> Filter;
  auto Load = [&](size_t Offset) {
    Filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, uint32_t(Offset)));
  };
  auto LoadArgument = [&](int N) { Load(offsetof(seccomp_data, args) + 8 * size_t(N)); };
  auto Return = [&](uint32_t What) { Filter.push_back(BPF_STMT(BPF_RET | BPF_K, What)); };
  auto SkipUnless = [&](uint16_t Test, uint32_t Value, uint8_t Count) {
    Filter.push_back(BPF_JUMP(uint16_t(BPF_JMP | Test | BPF_K), Value, 0, Count));
  };
  Load(offsetof(seccomp_data, nr));
  for (uint32_t Call :
       {SYS_creat, SYS_mknod, SYS_mknodat, SYS_mkdir, SYS_mkdirat, SYS_link, SYS_linkat,
        SYS_symlink, SYS_symlinkat, SYS_rename, SYS_renameat, SYS_renameat2, SYS_openat2}) {
    SkipUnless(BPF_JEQ, Call, 1);
    Return(Action);
  }
  for (auto [Call, Flags] : {std::pair<uint32_t, int>(SYS_open, 1), {SYS_openat, 2}}) {
    Load(offsetof(seccomp_data, nr));
    SkipUnless(BPF_JEQ, Call, 3);
    LoadArgument(Flags);
    SkipUnless(BPF_JSET, O_CREAT | (O_TMPFILE & ~O_DIRECTORY), 1);
    Return(Action);
  }
  Return(SECCOMP_RET_ALLOW);
  sock_fprog Program = {static_cast<unsigned short>(Filter.size()), Filter.data()};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &Program) != 0)
    throw std::system_error(errno, std::generic_category(), "seccomp");
}
