// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "managers.h"

using namespace llvm;
using namespace llvm::jitlink;

Expected<std::unique_ptr<JITLinkMemoryManager>> createManager(Kind K, jitmem::orc::Options O) {
  if (K == Kind::LlvmInProcess)
    return InProcessMemoryManager::Create();
  O.Mapper = K == Kind::JitmemMprotect ? JITMEM_IN_PROCESS_MPROTECT : JITMEM_IN_PROCESS_TWO_VIEWS;
  return jitmem::orc::MemoryManager::CreateInProcess(O);
}

jitmem_stats statsOf(const JITLinkMemoryManager &MM) {
  return static_cast<const jitmem::orc::MemoryManager &>(MM).stats();
}

void expectNothingLeft(Kind K, const JITLinkMemoryManager &MM) {
  if (!isJitmem(K))
    return;
  jitmem_stats S = statsOf(MM);
  EXPECT_EQ(S.live, 0u) << "bytes are still handed out";
  EXPECT_EQ(S.in_flight, 0u) << "allocations are still in flight";
  EXPECT_EQ(S.finalized, 0u) << "finalized allocations were not freed";
  EXPECT_EQ(S.span, 0u) << "something is still handed out";
}
