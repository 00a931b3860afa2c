// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The memory managers that the tests run on. A test of what every JITLinkMemoryManager owes its
// callers is instantiated with everyKind(): LLVM's own manager in that list checks the test. A test
// of what only jitmem promises is instantiated with jitmemKinds().

#ifndef JITMEM_TESTS_ORC_MANAGERS_H
#define JITMEM_TESTS_ORC_MANAGERS_H

#include "compat.h"

#include <gtest/gtest.h>
#include <jitmem/orc.hpp>

#include <memory>
#include <string>

enum class Kind {
  LlvmInProcess,
  JitmemTwoViews,
  JitmemMprotect,
  // Over jitmem's executor service in this very process, so that tests can look at its memory.
  JitmemShared,
  JitmemRemote,
};

inline bool isJitmem(Kind K) { return K != Kind::LlvmInProcess; }
inline bool needsExecutor(Kind K) { return K == Kind::JitmemShared || K == Kind::JitmemRemote; }

inline auto everyKind() {
  return ::testing::Values(Kind::LlvmInProcess, Kind::JitmemTwoViews, Kind::JitmemMprotect,
                           Kind::JitmemShared, Kind::JitmemRemote);
}
inline auto jitmemKinds() {
  return ::testing::Values(Kind::JitmemTwoViews, Kind::JitmemMprotect, Kind::JitmemShared,
                           Kind::JitmemRemote);
}

inline const char *nameOf(Kind K) {
  switch (K) {
  case Kind::LlvmInProcess:
    return "llvm";
  case Kind::JitmemTwoViews:
    return "jitmem";
  case Kind::JitmemMprotect:
    return "jitmem_mprotect";
  case Kind::JitmemShared:
    return "jitmem_shared";
  case Kind::JitmemRemote:
    return "jitmem_remote";
  }
  return "unknown";
}
inline std::string kindName(const ::testing::TestParamInfo<Kind> &Info) {
  return nameOf(Info.param);
}
// Found by GoogleTest, which would print the enum's bytes.
inline void PrintTo(Kind K, std::ostream *OS) { *OS << nameOf(K); }

llvm::Expected<std::unique_ptr<llvm::jitlink::JITLinkMemoryManager>>
createManager(Kind K, jitmem::orc::Options O = {});

// An EPC whose executor is this process and publishes jitmem's service, and managers over it. A
// session must run on its manager's EPC: it is that EPC's tasks that its end waits for.
std::unique_ptr<llvm::orc::ExecutorProcessControl> createLoopback();
llvm::Expected<std::unique_ptr<llvm::jitlink::JITLinkMemoryManager>>
createManager(Kind K, llvm::orc::ExecutorProcessControl &EPC, jitmem::orc::Options O = {});

// The stats of a manager that createManager made with a jitmem kind.
jitmem_stats statsOf(const llvm::jitlink::JITLinkMemoryManager &MM);

// Fails the running test if a jitmem manager still holds anything; LLVM's can't be asked.
void expectNothingLeft(Kind K, const llvm::jitlink::JITLinkMemoryManager &MM);

#endif // JITMEM_TESTS_ORC_MANAGERS_H
