// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "managers.h"
#include "compat_orc.h"
#include "tasks.h"

#include <jitmem/orc_executor.hpp>
#include <llvm/Support/Process.h>

#include <chrono>
#include <thread>

using namespace llvm;
using namespace llvm::jitlink;
using jitmem::orc::MemoryManager;

namespace {

// Ends with each test what linked to its executor, as an executor does when its controller is gone.
class OnePerTest : public ::testing::EmptyTestEventListener {
public:
  static OnePerTest &instance() {
    static auto *Listener = [] {
      auto *New = new OnePerTest;
      ::testing::UnitTest::GetInstance()->listeners().Append(New); // which owns it now
      return New;
    }();
    return *Listener;
  }

  jitmem::orc::ExecutorService &service() {
    if (!Service)
      Service = cantFail(jitmem::orc::ExecutorService::Create());
    return *Service;
  }

  orc::ExecutorProcessControl &connection() {
    if (!Connection)
      Connection = createLoopback();
    return *Connection;
  }

private:
  void OnTestEnd(const ::testing::TestInfo &) override {
    if (Connection)
      cantFail(Connection->disconnect());
    Connection.reset();
    Service.reset();
  }

  std::unique_ptr<jitmem::orc::ExecutorService> Service;
  std::unique_ptr<orc::ExecutorProcessControl> Connection;
};

// Its answers come in other threads, as those of another process do.
class Loopback : public orc::SelfExecutorProcessControl {
public:
  Loopback()
      : SelfExecutorProcessControl(
            std::make_shared<orc::SymbolStringPool>(), std::make_unique<ThreadPerTask>(),
            Triple(sys::getProcessTriple()), cantFail(sys::Process::getPageSize()),
            cantFail(InProcessMemoryManager::Create())) {
    OnePerTest::instance().service().addBootstrapSymbols(BootstrapSymbols);
  }
};

} // namespace

std::unique_ptr<orc::ExecutorProcessControl> createLoopback() {
  return std::make_unique<Loopback>();
}

Expected<std::unique_ptr<JITLinkMemoryManager>> createManager(Kind K, jitmem::orc::Options O) {
  switch (K) {
  case Kind::LlvmInProcess:
    return InProcessMemoryManager::Create();
  case Kind::JitmemTwoViews:
    O.Mapper = JITMEM_IN_PROCESS_TWO_VIEWS;
    return MemoryManager::CreateInProcess(O);
  case Kind::JitmemMprotect:
    O.Mapper = JITMEM_IN_PROCESS_MPROTECT;
    return MemoryManager::CreateInProcess(O);
  default:
    return createManager(K, OnePerTest::instance().connection(), O);
  }
}

Expected<std::unique_ptr<JITLinkMemoryManager>>
createManager(Kind K, orc::ExecutorProcessControl &EPC, jitmem::orc::Options O) {
  if (K == Kind::JitmemShared)
    return MemoryManager::CreateShared(EPC, O);
  return MemoryManager::CreateRemote(EPC, O);
}

jitmem_stats statsOf(const JITLinkMemoryManager &MM) {
  return static_cast<const jitmem::orc::MemoryManager &>(MM).stats();
}

void expectNothingLeft(Kind K, const JITLinkMemoryManager &MM) {
  if (!isJitmem(K))
    return;
  jitmem_stats S = statsOf(MM);
  // Memory that is being given back counts until the executor has answered.
  auto End = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  for (; S.span != 0 && std::chrono::steady_clock::now() < End; S = statsOf(MM))
    std::this_thread::yield();
  EXPECT_EQ(S.live, 0u) << "bytes are still handed out";
  EXPECT_EQ(S.in_flight, 0u) << "allocations are still in flight";
  EXPECT_EQ(S.finalized, 0u) << "finalized allocations were not freed";
  EXPECT_EQ(S.span, 0u) << "something is still handed out";
}
