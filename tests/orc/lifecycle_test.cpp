// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The life of an allocation: allocate, finalize or abandon, deallocate.

#include "kit.h"

using namespace llvm;
using namespace llvm::jitlink;

namespace {

class Lifecycle : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Lifecycle, everyKind(), kindName);

class JitmemLifecycle : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, JitmemLifecycle, jitmemKinds(), kindName);

TEST_P(Lifecycle, FinalizedCodeRuns) {
  auto G = compat::makeGraph("code");
  Block &B = addContent(*G, addSection(*G, "text", RX), codeReturning(42), {16});
  Placed P = place(*G);
  EXPECT_EQ(call(B.getAddress()), 42);
  must(P.free());
}

TEST_P(Lifecycle, BytesWrittenBeforeFinalizeAreInTheExecutor) {
  auto G = compat::makeGraph("data");
  Block &B = addContent(*G, addSection(*G, "rodata", R), "0123456789");
  InFlight Alloc = allocate(*G);
  // The linker's fixups go into the block's content, which now is working memory.
  MutableArrayRef<char> Working = B.getAlreadyMutableContent();
  EXPECT_EQ(StringRef(Working.data(), Working.size()), "0123456789");
  Working[3] = 'x';
  Placed P = finalize(std::move(Alloc));
  EXPECT_EQ(StringRef(bytesAt(B.getAddress()), 10), "012x456789");
}

TEST_P(Lifecycle, DataIsWritableAndSharedWithCode) {
  auto G = compat::makeGraph("counter");
  Block &Counter = addContent(*G, addSection(*G, "data", RW), StringRef("\x28\0\0\0", 4), {4});
  // add $2, (%rdi); mov (%rdi), %eax; ret
  Block &Code =
      addContent(*G, addSection(*G, "text", RX), StringRef("\x83\x07\x02\x8b\x07\xc3", 6), {16});
  Placed P = place(*G);
  auto Add = Code.getAddress().toPtr<int (*)(int *)>();
  int *Value = Counter.getAddress().toPtr<int *>();
  EXPECT_EQ(Add(Value), 42);
  *Value = 100;
  EXPECT_EQ(Add(Value), 102);
}

TEST_P(Lifecycle, SimpleSegmentsOfEveryProtection) {
  std::string Code = codeReturning(7);
  auto Segments = must(compat::createSimpleSegments(
      *MM, nullptr, {{RX, {Code.size(), Align(16)}}, {R, {64, Align(8)}}, {RW, {64, Align(8)}}}));
  auto Text = Segments.getSegInfo(RX), Const = Segments.getSegInfo(R),
       Data = Segments.getSegInfo(RW);
  ASSERT_EQ(Text.WorkingMem.size(), Code.size());
  ASSERT_EQ(Const.WorkingMem.size(), 64u);
  ASSERT_EQ(Data.WorkingMem.size(), 64u);
  memcpy(Text.WorkingMem.data(), Code.data(), Code.size());
  memset(Const.WorkingMem.data(), 'c', 64);
  memset(Data.WorkingMem.data(), 'd', 64);
  Placed P(*MM, must(Segments.finalize()));
  EXPECT_EQ(call(Text.Addr), 7);
  EXPECT_TRUE(allBytesAre(Const.Addr, 64, 'c'));
  EXPECT_TRUE(allBytesAre(Data.Addr, 64, 'd'));
  EXPECT_EQ(mappingAt(Text.Addr).Perms.substr(0, 3), "r-x");
  EXPECT_EQ(mappingAt(Const.Addr).Perms.substr(0, 3), "r--");
  EXPECT_EQ(mappingAt(Data.Addr).Perms.substr(0, 3), "rw-");
}

TEST_P(Lifecycle, AbandonedAllocationLeavesTheRestAlone) {
  Piece Before = piece(RW, 100);
  memset(bytesAt(Before.Addr), 'b', 100);
  for (int Round = 0; Round != 50; ++Round) {
    auto G = compat::makeGraph("abandoned");
    for (auto [Name, Prot] : {std::pair("text", RX), std::pair("rodata", R), std::pair("data", RW)})
      addContent(*G, addSection(*G, Name, Prot), std::string(300, 'a'));
    must(abandon(allocate(*G)));
  }
  Piece After = piece(RW, 100);
  memset(bytesAt(After.Addr), 'a', 100);
  EXPECT_TRUE(allBytesAre(Before.Addr, 100, 'b'));
}

TEST_P(Lifecycle, AbandonRunsNoAction) {
  Journal J;
  auto G = compat::makeGraph("abandoned");
  addContent(*G, addSection(*G, "data", RW), "x");
  G->allocActions().push_back({J.note(1), J.note(2)});
  must(abandon(allocate(*G)));
  EXPECT_EQ(J.ids(), std::vector<int>());
}

TEST_P(JitmemLifecycle, AbandonGivesBackWhatAllocateTook) {
  Piece Other = piece(RX, 256);
  jitmem_stats Before = statsOf(*MM);
  auto G = compat::makeGraph("abandoned");
  addContent(*G, addSection(*G, "text", RX), std::string(300, 'a'), {64});
  addZeroFill(*G, addSection(*G, "bss", RW), 70000);
  addContent(*G, addSection(*G, "init", {R, MemLifetime::Finalize}), std::string(300, 'a'));
  InFlight Alloc = allocate(*G);
  jitmem_stats During = statsOf(*MM);
  EXPECT_EQ(During.in_flight, Before.in_flight + 1);
  EXPECT_GE(During.live, Before.live + 300 + 70000 + 300);
  must(abandon(std::move(Alloc)));
  jitmem_stats After = statsOf(*MM);
  EXPECT_EQ(After.in_flight, Before.in_flight);
  EXPECT_EQ(After.live, Before.live);
  EXPECT_EQ(After.finalized, 1u);
  EXPECT_EQ(After.abandon_calls, Before.abandon_calls + 1);
}

TEST_P(Lifecycle, GraphWithoutMemory) {
  auto G = compat::makeGraph("empty");
  Placed P = place(*G);
  EXPECT_TRUE(bool(P)) << "the caller has to get something to deallocate";
  must(P.free());
}

TEST_P(Lifecycle, GraphWithoutMemoryAbandoned) {
  auto G = compat::makeGraph("empty");
  must(abandon(allocate(*G)));
}

TEST_P(Lifecycle, ActionsOfAGraphWithoutMemory) {
  Journal J;
  auto G = compat::makeGraph("empty");
  G->allocActions().push_back({J.note(1), J.note(-1)});
  G->allocActions().push_back({J.note(2), J.note(-2)});
  Placed P = place(*G);
  EXPECT_EQ(J.ids(), (std::vector<int>{1, 2}));
  must(P.free());
  EXPECT_EQ(J.ids(), (std::vector<int>{1, 2, -2, -1}));
}

TEST_P(Lifecycle, SectionsWithoutBlocksAndBlocksWithoutBytes) {
  auto G = compat::makeGraph("hollow");
  addSection(*G, "text", RX);
  Block &Empty = addContent(*G, addSection(*G, "data", RW), "", {8});
  Section &Bss = addSection(*G, "bss", RW);
  Block &Nothing = addZeroFill(*G, Bss, 0, {16});
  Block &Byte = addZeroFill(*G, Bss, 1, {16});
  Placed P = place(*G);
  EXPECT_EQ(Empty.getAddress().getValue() % 8, 0u);
  EXPECT_EQ(Nothing.getAddress().getValue() % 16, 0u);
  EXPECT_EQ(*bytesAt(Byte.getAddress()), 0);
}

TEST_P(Lifecycle, FinalizedAllocationsHaveDifferentAddresses) {
  // ORC keeps them apart by nothing else.
  std::vector<Placed> All;
  std::vector<uint64_t> Ids;
  for (int I = 0; I != 20; ++I) {
    auto G = compat::makeGraph("graph");
    if (I % 2)
      addContent(*G, addSection(*G, "data", RW), "x");
    auto FA = must(allocate(*G)->finalize());
    Ids.push_back(FA.getAddress().getValue());
    All.emplace_back(*MM, std::move(FA));
  }
  std::sort(Ids.begin(), Ids.end());
  EXPECT_EQ(std::unique(Ids.begin(), Ids.end()), Ids.end());
}

TEST_P(Lifecycle, FreedMemoryIsUsedAgain) {
  // In all, more than any window holds.
  for (int Round = 0; Round != 130; ++Round) {
    auto G = compat::makeGraph("large");
    Block &B = addZeroFill(*G, addSection(*G, "bss", RW), 16 * MiB);
    Placed P = place(*G);
    *bytesAt(B.getAddress()) = 1;
    *bytesAt(B.getAddress() + (16 * MiB - 1)) = 1;
  }
}

TEST_P(Lifecycle, FinalizeLifetimeIsThereForTheActions) {
  auto G = compat::makeGraph("init");
  // xor %eax,%eax; mov $1,%edx; ret: a result of one byte, zero, which is the SPS form of success
  Block &Init = addContent(*G, addSection(*G, "init", {RX, MemLifetime::Finalize}),
                           StringRef("\x31\xc0\xba\x01\0\0\0\xc3", 8), {16});
  Journal J;
  InFlight Alloc = allocate(*G);
  G->allocActions().push_back({{Init.getAddress(), {}}, {}});
  G->allocActions().push_back({J.note(1), {}});
  Placed P = finalize(std::move(Alloc));
  EXPECT_EQ(J.ids(), std::vector<int>{1});
}

TEST_P(JitmemLifecycle, FinalizeLifetimeIsFreedByFinalize) {
  Piece Other = piece(RW, 64);
  jitmem_stats Before = statsOf(*MM);
  auto G = compat::makeGraph("init");
  addContent(*G, addSection(*G, "init", {RX, MemLifetime::Finalize}), std::string(20000, '\xc3'));
  addContent(*G, addSection(*G, "tables", {R, MemLifetime::Finalize}), std::string(20000, 't'));
  addZeroFill(*G, addSection(*G, "scratch", {RW, MemLifetime::Finalize}), 20000);
  Block &Keep = addContent(*G, addSection(*G, "data", RW), std::string(100, 'k'));
  InFlight Alloc = allocate(*G);
  EXPECT_GE(statsOf(*MM).live, Before.live + 60100);
  Placed P = finalize(std::move(Alloc));
  jitmem_stats After = statsOf(*MM);
  EXPECT_GE(After.live, Before.live + 100);
  EXPECT_LT(After.live, Before.live + 100 + 4 * KiB);
  EXPECT_TRUE(allBytesAre(Keep.getAddress(), 100, 'k'));
  must(P.free());
  EXPECT_EQ(statsOf(*MM).live, Before.live);
}

TEST_P(Lifecycle, GraphOfFinalizeLifetimeOnly) {
  Journal J;
  auto G = compat::makeGraph("init");
  addContent(*G, addSection(*G, "tables", {R, MemLifetime::Finalize}), std::string(5000, 't'));
  G->allocActions().push_back({J.note(1), J.note(-1)});
  Placed P = place(*G);
  EXPECT_TRUE(bool(P));
  must(P.free());
  EXPECT_EQ(J.ids(), (std::vector<int>{1, -1}));
}

#if LLVM_VERSION_MAJOR >= 19 // earlier, every section takes memory
TEST_P(Lifecycle, NoAllocSectionsAreLeftAlone) {
  auto G = compat::makeGraph("metadata");
  std::string Note(3 * MiB, 'n');
  Block &Meta =
      G->createContentBlock(addSection(*G, "note", {R, MemLifetime::NoAlloc}),
                            ArrayRef<char>(Note.data(), Note.size()), ExecutorAddr(0x1234), 1, 0);
  Block &Data = addContent(*G, addSection(*G, "data", RW), "kept");
  Placed P = place(*G);
  EXPECT_EQ(Meta.getAddress(), ExecutorAddr(0x1234));
  EXPECT_EQ(Meta.getContent().data(), Note.data());
  EXPECT_EQ(StringRef(bytesAt(Data.getAddress()), 4), "kept");
  if (isJitmem(GetParam())) {
    EXPECT_LT(statsOf(*MM).live, 1 * MiB);
  }
}
#endif

TEST_P(Lifecycle, DeallocateNothing) {
  must(MM->deallocate(std::vector<JITLinkMemoryManager::FinalizedAlloc>()));
}

TEST_P(JitmemLifecycle, StatsCountCallsAndFailures) {
  jitmem_stats Before = statsOf(*MM);
  {
    Piece A = piece(RW, 10), B = piece(RX, 10);
    jitmem_stats During = statsOf(*MM);
    EXPECT_EQ(During.finalized, 2u);
    EXPECT_EQ(During.in_flight, 0u);
    EXPECT_GE(During.live, 20u);
    EXPECT_GE(During.committed, During.live);
    EXPECT_GE(During.reserved, During.committed);
    EXPECT_GE(During.span, std::max(A.Addr, B.Addr) - std::min(A.Addr, B.Addr));
  }
  jitmem_stats After = statsOf(*MM);
  EXPECT_EQ(After.allocate_calls, Before.allocate_calls + 2);
  EXPECT_EQ(After.finalize_calls, Before.finalize_calls + 2);
  EXPECT_GT(After.deallocate_calls, Before.deallocate_calls);
  EXPECT_EQ(After.failures, Before.failures);
  EXPECT_FALSE(bool(tryPiece(RWX, 10)));
  EXPECT_EQ(statsOf(*MM).failures, Before.failures + 1);
}

} // namespace
