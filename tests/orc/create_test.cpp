// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// How hosts get jitmem's manager.

#include "compat_orc.h"
#include "kit.h"

#include <jitmem/orc_lljit.hpp>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/Support/TargetSelect.h>

using namespace llvm;
using namespace llvm::orc;
using jitmem::orc::MemoryManager;

namespace {

TEST(Create, InProcessForTheProcessItself) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  auto MM = must(MemoryManager::Create(*EPC));
  jitmem_stats S = MM->stats();
  EXPECT_TRUE(mentions(S.mapper_name, {"in-process"}));
  // Under valgrind, which does not know how to map memory again, two views are of memfds.
  if (S.fallbacks) {
    EXPECT_TRUE(mentions(S.fallback_reason, {"mremap to the writer view", "Invalid argument"}))
        << S.fallback_reason;
  }
  auto G = compat::makeGraph("code");
  jitlink::Block &B = addContent(*G, addSection(*G, "text", RX), codeReturning(42), {16});
  Placed P(*MM, must(must(MM->allocate(nullptr, *G))->finalize()));
  EXPECT_EQ(call(B.getAddress()), 42);
}

TEST(Create, StatsNameTheChosenMapper) {
  for (Kind K : {Kind::JitmemTwoViews, Kind::JitmemMprotect}) {
    auto MM = must(createManager(K));
    bool SaysMprotect = StringRef(statsOf(*MM).mapper_name).contains("mprotect");
    EXPECT_EQ(SaysMprotect, K == Kind::JitmemMprotect) << statsOf(*MM).mapper_name;
  }
}

TEST(Create, DefaultIsTwoViews) {
  auto Default = must(MemoryManager::CreateInProcess());
  auto TwoViews = must(createManager(Kind::JitmemTwoViews));
  EXPECT_EQ(Default->stats().mapper, statsOf(*TwoViews).mapper);
  EXPECT_STREQ(Default->stats().mapper_name, statsOf(*TwoViews).mapper_name);
}

TEST(Create, WithoutAServiceTheErrorSaysWhatWasTried) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  jitmem::orc::Options O;
  O.ExecutorLibrary = "/nowhere/libjitmem.so";
  for (auto *Create : {MemoryManager::CreateShared, MemoryManager::CreateRemote}) {
    EXPECT_TRUE(mentions(messageOf(Create(*EPC, O)),
                         {"jitmem_service_open", "/nowhere/libjitmem.so", "ExecutorLibrary"}));
    jitmem::orc::Options Forbidden;
    Forbidden.LoadExecutorLibrary = false;
    EXPECT_TRUE(mentions(messageOf(Create(*EPC, Forbidden)),
                         {"jitmem_service_open", "LoadExecutorLibrary", "ExecutorService"}));
  }
}

TEST(Create, HandleGivesTheCInterface) {
  auto MM = must(MemoryManager::CreateInProcess());
  ASSERT_NE(MM->handle(), nullptr);
  jitmem_stats S = {};
  S.struct_size = sizeof(S);
  EXPECT_EQ(jitmem_manager_stats(MM->handle(), &S, nullptr), 0);
  EXPECT_EQ(S.windows, MM->stats().windows);
}

TEST(Create, SwappedIntoLLJITByOneLine) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto EPC = must(
      SelfExecutorProcessControl::Create(nullptr, nullptr, must(MemoryManager::CreateInProcess())));
  auto &MM = static_cast<MemoryManager &>(EPC->getMemMgr());
  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(std::move(EPC));
  compat::useJITLink(Builder);
  auto J = must(Builder.create());
  auto G = compat::makeGraph("code", J->getExecutionSession().getSymbolStringPool());
  jitlink::Block &B = addContent(*G, addSection(*G, ".text", RX), codeReturning(42), {16});
  G->addDefinedSymbol(B, 0, "entry", B.getSize(), jitlink::Linkage::Strong, jitlink::Scope::Default,
                      true, true);
  auto &Layer = static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer());
  must(Layer.add(J->getMainJITDylib(), std::move(G)));
  EXPECT_EQ(call(must(compat::lookup(*J, "entry"))), 42);
  EXPECT_GT(MM.stats().finalized, 0u);
}

TEST(Create, ALayerThatLeavesTheManagerUnusedIsRefused) {
  LLJITBuilder Builder;
  compat::setLinkingLayer(Builder, [](ExecutionSession &ES) {
    return std::make_unique<RTDyldObjectLinkingLayer>(
        ES, [](auto &&...) { return std::make_unique<SectionMemoryManager>(); });
  });
  must(jitmem::orc::useInProcess(Builder));
  EXPECT_TRUE(mentions(messageOf(Builder.create()),
                       {"RTDyldObjectLinkingLayer", "setObjectLinkingLayerCreator"}));
}

TEST(Create, ABuilderThatHasAnExecutorIsRefused) {
  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(must(SelfExecutorProcessControl::Create()));
  EXPECT_TRUE(mentions(messageOf(jitmem::orc::useInProcess(Builder)),
                       {"ExecutorProcessControl", "MemoryManager"}));
}

TEST(Create, ManagersAreIndependent) {
  auto A = must(MemoryManager::CreateInProcess()), B = must(MemoryManager::CreateInProcess());
  auto G = compat::makeGraph("data");
  jitlink::Block &Data = addContent(*G, addSection(*G, "data", RW), "kept");
  Placed P(*A, must(must(A->allocate(nullptr, *G))->finalize()));
  EXPECT_EQ(B->stats().live, 0u);
  B.reset();
  EXPECT_EQ(StringRef(bytesAt(Data.getAddress()), 4), "kept");
}

} // namespace
