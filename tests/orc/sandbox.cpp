// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "sandbox.h"

#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <system_error>
#include <utility>
#include <vector>

namespace {

// A filter in the making.
class Filter {
public:
  void load(size_t Offset) { Code.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, uint32_t(Offset))); }
  void loadCall() { load(offsetof(seccomp_data, nr)); }
  void loadArgument(int N) { load(offsetof(seccomp_data, args) + 8 * size_t(N)); }
  void mask(uint32_t Bits) { Code.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, Bits)); }
  void answer(uint32_t What) { Code.push_back(BPF_STMT(BPF_RET | BPF_K, What)); }
  void skipUnless(uint16_t Test, uint32_t Value, uint8_t Count) {
    Code.push_back(BPF_JUMP(uint16_t(BPF_JMP | Test | BPF_K), Value, 0, Count));
  }

  void install() {
    sock_fprog Program = {static_cast<unsigned short>(Code.size()), Code.data()};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &Program) != 0)
      throw std::system_error(errno, std::generic_category(), "seccomp");
  }

private:
  std::vector<sock_filter> Code;
};

} // namespace

void onMakingFiles(uint32_t Action) {
  // Only flags can be looked at, not paths: so no file may be made anywhere.
  Filter F;
  F.loadCall();
  for (uint32_t Call :
       {SYS_creat, SYS_mknod, SYS_mknodat, SYS_mkdir, SYS_mkdirat, SYS_link, SYS_linkat,
        SYS_symlink, SYS_symlinkat, SYS_rename, SYS_renameat, SYS_renameat2, SYS_openat2}) {
    F.skipUnless(BPF_JEQ, Call, 1);
    F.answer(Action);
  }
  for (auto [Call, Flags] : {std::pair<uint32_t, int>(SYS_open, 1), {SYS_openat, 2}}) {
    F.loadCall();
    F.skipUnless(BPF_JEQ, Call, 3);
    F.loadArgument(Flags);
    F.skipUnless(BPF_JSET, O_CREAT | (O_TMPFILE & ~O_DIRECTORY), 1);
    F.answer(Action);
  }
  F.answer(SECCOMP_RET_ALLOW);
  F.install();
}

void likeSystemd() {
  // systemd 253 and later ask the kernel besides, where that is 6.3 or later.
  constexpr int SetMdwe = 65, RefuseExecGain = 1;
  if (prctl(SetMdwe, RefuseExecGain, 0, 0, 0) != 0 && errno != EINVAL)
    throw std::system_error(errno, std::generic_category(), "PR_SET_MDWE");

  Filter F;
  const uint32_t Refused = SECCOMP_RET_ERRNO | EPERM;
  auto RefuseWhere = [&](uint32_t Call, int Argument, uint32_t Bits) {
    F.loadCall();
    F.skipUnless(BPF_JEQ, Call, 4);
    F.loadArgument(Argument);
    F.mask(Bits);
    F.skipUnless(BPF_JEQ, Bits, 1);
    F.answer(Refused);
  };
  RefuseWhere(SYS_mmap, 2, PROT_WRITE | PROT_EXEC);
  RefuseWhere(SYS_mprotect, 2, PROT_EXEC);
  F.loadCall();
  for (uint32_t Call : {SYS_access,
                        SYS_arch_prctl,
                        SYS_brk,
                        SYS_clock_gettime,
                        SYS_clone,
                        SYS_clone3,
                        SYS_close,
                        SYS_exit,
                        SYS_exit_group,
                        SYS_fallocate,
                        SYS_fcntl,
                        SYS_fstat,
                        SYS_ftruncate,
                        SYS_futex,
                        SYS_getcwd,
                        SYS_getpid,
                        SYS_getrandom,
                        SYS_gettid,
                        SYS_getuid,
                        SYS_ioctl,
                        SYS_lseek,
                        SYS_madvise,
                        SYS_membarrier,
                        SYS_memfd_create,
                        SYS_mmap,
                        SYS_mprotect,
                        SYS_mremap,
                        SYS_munmap,
                        SYS_newfstatat,
                        SYS_openat,
                        SYS_prctl,
                        SYS_pread64,
                        SYS_prlimit64,
                        SYS_read,
                        SYS_readlink,
                        SYS_rseq,
                        SYS_rt_sigaction,
                        SYS_rt_sigreturn,
                        SYS_rt_sigprocmask,
                        SYS_sched_getaffinity,
                        SYS_set_robust_list,
                        SYS_sigaltstack,
                        SYS_statx,
                        SYS_tgkill,
                        SYS_uname,
                        SYS_write,
                        SYS_writev}) {
    F.skipUnless(BPF_JEQ, Call, 1);
    F.answer(SECCOMP_RET_ALLOW);
  }
  F.answer(SECCOMP_RET_KILL_PROCESS);
  F.install();
}
