// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Finalized memory that is written, and memory that waits until no thread is inside: the adapter's
// side of both. What they promise is tested through the C API.

#include "kit.h"

#include <jitmem/orc_write.hpp>

#include <future>

using namespace llvm;
using namespace llvm::jitlink;
using jitmem::orc::MemoryManager;
using jitmem::orc::WriteScope;

namespace {

class Writing : public ManagerTest {
protected:
  using FinalizedAlloc = JITLinkMemoryManager::FinalizedAlloc;

  void restart(jitmem::orc::Options O) { MM = must(createManager(GetParam(), O)); }

  // Only of kinds that are jitmem's.
  MemoryManager &manager() { return static_cast<MemoryManager &>(*MM); }

  struct Code {
    FinalizedAlloc Alloc;
    ExecutorAddr Text, Data;
  };

  Code link(int32_t Value) {
    auto G = compat::makeGraph("code");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(Value), {16});
    Block &Data = addContent(*G, addSection(*G, "data", RW), std::string(16, 'd'), {16});
    FinalizedAlloc Alloc = must(must(MM->allocate(nullptr, *G))->finalize());
    return {std::move(Alloc), Text.getAddress(), Data.getAddress()};
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Writing, jitmemKinds(), kindName);

TEST_P(Writing, AScopeIsBegunByAnyAddressOfTheAllocation) {
  Code C = link(1);
  if (GetParam() != Kind::JitmemRemote) {
    WriteScope S = must(WriteScope::begin(manager(), C.Data + 15));
    must(S.store(C.Data, uint32_t(0x63636363)));
    EXPECT_TRUE(allBytesAre(C.Data, 4, 'c'));
    must(S.end());
  }
  auto Beside = WriteScope::begin(manager(), C.Data + 16);
  EXPECT_TRUE(
      mentions(messageOf(Beside.takeError()), {"begin a write scope at 0x", "no finalized"}));
  must(MM->deallocate(std::move(C.Alloc)));
  auto Gone = WriteScope::begin(manager(), C.Data);
  EXPECT_TRUE(mentions(messageOf(Gone.takeError()), {"no finalized allocation"}));
}

TEST_P(Writing, AddressesLeadToAllocations) {
  Code C = link(1);
  auto Found = manager().lookup(C.Text);
  ASSERT_TRUE(Found.has_value());
  EXPECT_EQ(Found->allocation, C.Alloc.getAddress().getValue());
  EXPECT_EQ(Found->address, C.Text.getValue());
  EXPECT_EQ(Found->phase, uint32_t(JITMEM_PHASE_FINALIZED));
  EXPECT_EQ(Found->manager, manager().handle());
  bool Here = GetParam() == Kind::JitmemTwoViews || GetParam() == Kind::JitmemMprotect;
  EXPECT_EQ(MemoryManager::lookupHere(C.Text.toPtr<const void *>()).has_value(), Here);
  unsigned Segments = 0;
  must(manager().walk([&](const jitmem_location &Location) {
    EXPECT_EQ(Location.allocation, Found->allocation);
    ++Segments;
  }));
  EXPECT_EQ(Segments, 2u);
  must(MM->deallocate(std::move(C.Alloc)));
  EXPECT_FALSE(manager().lookup(C.Text).has_value());
}

TEST_P(Writing, StoresAreSeenWhereTheMapperWritesInPlace) {
  Code C = link(1);
  auto Scope = WriteScope::begin(manager(), C.Alloc);
  if (GetParam() == Kind::JitmemRemote) {
    EXPECT_TRUE(mentions(messageOf(Scope.takeError()), {"shared pages"}));
    must(MM->deallocate(std::move(C.Alloc)));
    return;
  }
  WriteScope S = must(std::move(Scope));
  must(S.store(C.Data, uint32_t(0x61616161)));
  must(S.store(C.Data + 8, uint64_t(0x6262626262626262)));
  EXPECT_TRUE(allBytesAre(C.Data, 4, 'a'));
  EXPECT_TRUE(allBytesAre(C.Data + 4, 4, 'd'));
  EXPECT_TRUE(allBytesAre(C.Data + 8, 8, 'b'));
  EXPECT_TRUE(mentions(messageOf(S.store(C.Data + 4, uint64_t(0))), {"multiple of 8"}));
  if (GetParam() == Kind::JitmemMprotect) {
    EXPECT_TRUE(mentions(messageOf(S.pointer(C.Text, 4)), {"two views"}));
  } else {
    std::string Other = codeReturning(2);
    memcpy(must(S.pointer(C.Text, Other.size())), Other.data(), Other.size());
  }
  must(S.end());
  EXPECT_EQ(call(C.Text), GetParam() == Kind::JitmemMprotect ? 1 : 2);
  must(MM->deallocate(std::move(C.Alloc)));
}

TEST_P(Writing, ADeallocationIsAnsweredWhenTheScopeHasEnded) {
  if (GetParam() == Kind::JitmemRemote)
    GTEST_SKIP() << "there are no scopes";
  Code C = link(1);
  std::promise<std::string> Answer;
  auto Answered = Answer.get_future();
  {
    WriteScope S = must(WriteScope::begin(manager(), C.Alloc));
    std::vector<FinalizedAlloc> Allocs;
    Allocs.push_back(std::move(C.Alloc));
    MM->deallocate(std::move(Allocs),
                   [&](Error Err) { Answer.set_value(toString(std::move(Err))); });
    EXPECT_EQ(statsOf(*MM).finalized, 1u);
    must(S.store(C.Data, uint32_t(0)));
  }
  EXPECT_EQ(Answered.get(), "");
  EXPECT_EQ(statsOf(*MM).finalized, 0u);
}

// Under mprotect and with content in messages no mapping of code is written through.
TEST_P(Writing, WriterViewsAreClosedWhileNothingIsInFlight) {
  if (GetParam() != Kind::JitmemTwoViews && GetParam() != Kind::JitmemShared)
    GTEST_SKIP() << "there are no writer views";
  jitmem::orc::Options O;
  O.CloseWriters = true;
  restart(O);
  auto G = compat::makeGraph("code");
  Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(1), {16});
  auto InFlight = must(MM->allocate(nullptr, *G));
  auto Writer = ExecutorAddr::fromPtr(Text.getAlreadyMutableContent().data());
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "rw-");
  FinalizedAlloc Alloc = must(InFlight->finalize());
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "---");
  EXPECT_EQ(call(Text.getAddress()), 1);
  WriteScope S = must(WriteScope::begin(manager(), Alloc));
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "rw-");
  must(S.end());
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "---");
  // As long as one is in flight they are open.
  auto Other = compat::makeGraph("other");
  addContent(*Other, addSection(*Other, "text", RX), codeReturning(2), {16});
  auto OtherInFlight = must(MM->allocate(nullptr, *Other));
  must(MM->deallocate(std::move(Alloc)));
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "rw-");
  std::promise<std::string> Abandoned;
  OtherInFlight->abandon([&](Error Err) { Abandoned.set_value(toString(std::move(Err))); });
  EXPECT_EQ(Abandoned.get_future().get(), "");
  EXPECT_EQ(mappingAt(Writer).Perms.substr(0, 3), "---");
}

TEST_P(Writing, DeallocatedCodeRunsUntilItIsReclaimed) {
  jitmem::orc::Options O;
  O.DeferReclamation = true;
  restart(O);
  Code C = link(7);
  must(MM->deallocate(std::move(C.Alloc)));
  EXPECT_EQ(call(C.Text), 7);
  uint64_t Waiting = statsOf(*MM).waiting;
  EXPECT_GT(Waiting, 0u);
  EXPECT_TRUE(mentions(messageOf(manager().reclaim(1)), {"advance the epoch"}));
  uint64_t Epoch = must(manager().advanceEpoch());
  EXPECT_EQ(call(C.Text), 7);
  EXPECT_EQ(must(manager().reclaim(Epoch)), Waiting);
  EXPECT_EQ(statsOf(*MM).waiting, 0u);
}

} // namespace
