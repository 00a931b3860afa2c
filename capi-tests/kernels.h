// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What older kernels lack, kept from a process by a filter: system calls, and flags of calls.

#ifndef KERNELS_H
#define KERNELS_H

#include "limits.h"

#include <fcntl.h>

struct kernel {
  // The first system call, advice of madvise, and option of prctl that it does not know.
  unsigned call, advice, option;
  // Flags of memfd_create and seals that it does not know.
  unsigned memfd_flags, seals;
};

#define JUMP(kind, value, yes, no) BPF_JUMP(BPF_JMP | (kind) | BPF_K, (unsigned)(value), yes, no)
#define LOAD_ARGUMENT(place)                                                                       \
  BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (unsigned)(offsetof(struct seccomp_data, args) + 8 * (place)))
#define FAIL(error) ANSWER(SECCOMP_RET_ERRNO | (error))
#define ALLOW ANSWER(SECCOMP_RET_ALLOW)

// From now on this process sees no more than an older kernel has.
static inline void pretend(struct kernel kernel) {
  struct sock_filter code[] = {
      LOAD(arch),
      EQUAL(THIS_PROCESSOR, 1, 0),
      ALLOW,
      LOAD(nr),
      JUMP(BPF_JGE, kernel.call, 0, 1),
      FAIL(ENOSYS),
      EQUAL(SYS_madvise, 0, 4),
      LOAD_ARGUMENT(2),
      JUMP(BPF_JGE, kernel.advice, 0, 1),
      FAIL(EINVAL),
      ALLOW,
      EQUAL(SYS_memfd_create, 0, 4),
      LOAD_ARGUMENT(1),
      JUMP(BPF_JSET, kernel.memfd_flags, 0, 1),
      FAIL(EINVAL),
      ALLOW,
      EQUAL(SYS_fcntl, 0, 6),
      LOAD_ARGUMENT(1),
      EQUAL(F_ADD_SEALS, 0, 3),
      LOAD_ARGUMENT(2),
      JUMP(BPF_JSET, kernel.seals, 0, 1),
      FAIL(EINVAL),
      ALLOW,
      EQUAL(SYS_prctl, 0, 3),
      LOAD_ARGUMENT(0),
      JUMP(BPF_JGE, kernel.option, 0, 1),
      FAIL(EINVAL),
      ALLOW,
  };
  install_filter(code, COUNT(code));
}

// RHEL 8 has 4.18 with additions, Debian 10 has 4.19, Debian 11 has 5.10.
static inline void pretend_4_19(void) {
  // Up to rseq, whose number differs; MADV_KEEPONFORK; PR_GET_SPECULATION_CTRL and its kin.
  pretend((struct kernel){.call = SYS_rseq + 1,
                          .advice = 20,
                          .option = 54,
                          .memfd_flags = ~7u & 0xff,
                          .seals = ~15u & 0xff});
}

static inline void pretend_5_10(void) {
  // Up to process_madvise; MADV_PAGEOUT; PR_GET_IO_FLUSHER.
  pretend((struct kernel){
      .call = 441, .advice = 22, .option = 59, .memfd_flags = ~7u & 0xff, .seals = ~31u & 0xff});
}

#endif
