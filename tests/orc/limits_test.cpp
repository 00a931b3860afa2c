// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Requests that can't be granted, and limits that the host sets: an error that says why, nothing
// lost, and the manager goes on working.

#include "kit.h"

#include <gnu/libc-version.h>
#include <sys/mman.h>

using namespace llvm;
using namespace llvm::jitlink;

namespace {

class Limits : public ManagerTest {
protected:
  void expectStillWorking() {
    auto G = compat::makeGraph("after");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(99), {16});
    Block &Bss = addZeroFill(*G, addSection(*G, "bss", RW), 10000);
    Placed P = place(*G);
    EXPECT_EQ(call(Text.getAddress()), 99);
    EXPECT_TRUE(allBytesAre(Bss.getAddress(), 10000, 0));
  }

  // A graph that must be refused, with nothing taken.
  void expectRefused(LinkGraph &G, std::initializer_list<const char *> Words) {
    jitmem_stats Before = statsOf(*MM);
    EXPECT_TRUE(mentions(messageOf(MM->allocate(nullptr, G)), Words));
    jitmem_stats After = statsOf(*MM);
    EXPECT_EQ(After.live, Before.live);
    EXPECT_EQ(After.in_flight, Before.in_flight);
    EXPECT_EQ(After.failures, Before.failures + 1);
    expectStillWorking();
  }

  void restart(jitmem::orc::Options O) { MM = must(createManager(GetParam(), O)); }
};
INSTANTIATE_TEST_SUITE_P(Managers, Limits, jitmemKinds(), kindName);

TEST_P(Limits, WritableAndExecutableIsRefused) {
  auto G = compat::makeGraph("wx");
  addContent(*G, addSection(*G, "wx", RWX), "code");
  addContent(*G, addSection(*G, "data", RW), "data");
  expectRefused(*G, {"allocate", "writ", "exec"});
}

TEST_P(Limits, ZeroFillLargerThanAnyWindow) {
  for (uint64_t Size :
       {3 * GiB, uint64_t(1) << 47, uint64_t(1) << 63, ~uint64_t(0) - 4095, ~uint64_t(0)}) {
    auto G = compat::makeGraph("huge");
    addZeroFill(*G, addSection(*G, "bss", RW), Size);
    expectRefused(*G, {"allocate"});
  }
}

TEST_P(Limits, SizesWhoseSumOverflows) {
  // Two blocks, then two segments, that come to 2^64 and so to nothing.
  auto Blocks = compat::makeGraph("blocks");
  Section &Bss = addSection(*Blocks, "bss", RW);
  addZeroFill(*Blocks, Bss, uint64_t(1) << 63, {1, 0, 0});
  addZeroFill(*Blocks, Bss, uint64_t(1) << 63, {1, 0, 0x1000});
  expectRefused(*Blocks, {"allocate"});

  auto Segments = compat::makeGraph("segments");
  addZeroFill(*Segments, addSection(*Segments, "bss", RW), uint64_t(1) << 63);
  addZeroFill(*Segments, addSection(*Segments, "rodata", R), uint64_t(1) << 63);
  expectRefused(*Segments, {"allocate"});

  auto Aligned = compat::makeGraph("aligned");
  Section &S = addSection(*Aligned, "bss", RW);
  addZeroFill(*Aligned, S, ~uint64_t(0) - 100, {1, 0, 0});
  addZeroFill(*Aligned, S, 1, {1 * MiB, 0, 0x100000});
  expectRefused(*Aligned, {"allocate"});
}

TEST_P(Limits, ContentThatCannotBeReal) {
  // The content pointer leads nowhere: it must not be followed before the size was judged.
  static char Byte;
  auto G = compat::makeGraph("content");
  Section &S = addSection(*G, "rodata", R);
  for (uint64_t Address : {0, 0x1000})
    G->createContentBlock(S, ArrayRef<char>(&Byte, size_t(1) << 63), ExecutorAddr(Address), 1, 0);
  expectRefused(*G, {"allocate"});
}

TEST_P(Limits, AlignmentLargerThanTheWindow) {
  // The largest that a block can have.
  auto G = compat::makeGraph("aligned");
  addContent(*G, addSection(*G, "data", RW), "x", {uint64_t(1) << 31});
  expectRefused(*G, {"allocate", "align"});
}

TEST_P(Limits, DeallocatingWhatIsNotOurs) {
  Piece Mine = piece(RW, 16);
  int OnTheStack;
  for (ExecutorAddr Addr : {ExecutorAddr(0), ExecutorAddr(0x1234),
                            ExecutorAddr::fromPtr(&OnTheStack), ExecutorAddr(~uint64_t(0) - 1)})
    EXPECT_NE(messageOf(MM->deallocate(JITLinkMemoryManager::FinalizedAlloc(Addr))), "");
  EXPECT_EQ(statsOf(*MM).finalized, 1u);
  *bytesAt(Mine.Addr) = 1;
  expectStillWorking();
}

TEST_P(Limits, DeallocatingTwice) {
  Journal J;
  auto G = compat::makeGraph("twice");
  addContent(*G, addSection(*G, "data", RW), "x");
  G->allocActions().push_back({J.none(), J.note(1)});
  auto First = must(allocate(*G)->finalize());
  JITLinkMemoryManager::FinalizedAlloc Second(First.getAddress());
  must(MM->deallocate(std::move(First)));
  EXPECT_NE(messageOf(MM->deallocate(std::move(Second))), "");
  EXPECT_EQ(J.ids(), std::vector<int>{1}) << "the action ran again";
  expectStillWorking();
}

TEST_P(Limits, DeallocatingTheSameTwiceInOneBatch) {
  Journal J;
  auto G = compat::makeGraph("twice");
  addContent(*G, addSection(*G, "data", RW), "x");
  G->allocActions().push_back({J.none(), J.note(1)});
  std::vector<JITLinkMemoryManager::FinalizedAlloc> Batch;
  Batch.push_back(must(allocate(*G)->finalize()));
  ExecutorAddr Addr = Batch[0].getAddress();
  Batch.emplace_back(Addr);
  EXPECT_NE(messageOf(MM->deallocate(std::move(Batch))), "");
  // Refused as a whole, or freed once: never freed twice.
  if (statsOf(*MM).finalized == 1) {
    EXPECT_EQ(J.ids(), std::vector<int>());
    must(MM->deallocate(JITLinkMemoryManager::FinalizedAlloc(Addr)));
  }
  EXPECT_EQ(J.ids(), std::vector<int>{1});
  expectStillWorking();
}

TEST_P(Limits, FullWindowIsNamed) {
  jitmem::orc::Options O;
  O.WindowSize = 8 * MiB;
  restart(O);
  std::vector<Piece> All;
  std::string Message;
  while (All.size() < 100) {
    auto P = tryPiece(RW, 512 * KiB);
    if (!P) {
      Message = toString(P.takeError());
      break;
    }
    All.push_back(std::move(*P));
  }
  EXPECT_TRUE(mentions(Message, {"allocate", "window", "full"}));
  EXPECT_GE(All.size(), 12u) << "three quarters of a window should be usable";
  EXPECT_LE(All.size(), 16u) << "more than the window holds";
  EXPECT_EQ(statsOf(*MM).windows, 1u);
  EXPECT_EQ(statsOf(*MM).in_flight, 0u);
  // What is live is unharmed, and what was freed can be had again.
  memset(bytesAt(All[3].Addr), 3, 512 * KiB);
  must(All[5].Alloc.free());
  Piece Again = piece(RW, 512 * KiB);
  memset(bytesAt(Again.Addr), 5, 512 * KiB);
  EXPECT_TRUE(allBytesAre(All[3].Addr, 512 * KiB, 3));
}

TEST_P(Limits, PartOfAGraphThatDoesNotFitIsGivenBack) {
  jitmem::orc::Options O;
  O.WindowSize = 8 * MiB;
  restart(O);
  for (int Round = 0; Round != 20; ++Round) {
    auto G = compat::makeGraph("partly");
    addContent(*G, addSection(*G, "text", RX), std::string(1 * MiB, 't'));
    addZeroFill(*G, addSection(*G, "rodata", R), 1 * MiB);
    addZeroFill(*G, addSection(*G, "bss", RW), 7 * MiB);
    expectRefused(*G, {"window"});
  }
}

TEST_P(Limits, WindowOfGivenSizeHoldsEverything) {
  jitmem::orc::Options O;
  O.WindowSize = 64 * MiB;
  restart(O);
  Piece A = piece(RX, 100), B = piece(RW, 20 * MiB), C = piece(R, 100);
  ExecutorAddr Lowest = std::min({A.Addr, B.Addr, C.Addr}),
               Highest = std::max({A.Addr, B.Addr, C.Addr});
  EXPECT_LE(Highest - Lowest, 64 * MiB);
  EXPECT_EQ(statsOf(*MM).windows, 1u);
}

TEST_P(Limits, QuotaIsNamed) {
  jitmem::orc::Options O;
  O.Quota = 4 * MiB;
  restart(O);
  std::vector<Piece> All;
  std::string Message;
  while (All.size() < 100) {
    auto P = tryPiece(RW, 256 * KiB);
    if (!P) {
      Message = toString(P.takeError());
      break;
    }
    All.push_back(std::move(*P));
  }
  EXPECT_TRUE(mentions(Message, {"allocate", "quota"}));
  EXPECT_GE(All.size(), 8u);
  EXPECT_LE(All.size(), 16u);
  All.resize(All.size() / 2);
  Piece Again = piece(RW, 256 * KiB);
  auto G = compat::makeGraph("large");
  addZeroFill(*G, addSection(*G, "bss", RW), 5 * MiB);
  EXPECT_TRUE(mentions(messageOf(MM->allocate(nullptr, *G)), {"quota"}));
  auto &Jitmem = static_cast<jitmem::orc::MemoryManager &>(*MM);
  must(Jitmem.setQuota(64 * MiB));
  Piece Large = piece(RW, 5 * MiB);
  must(Jitmem.setQuota(MiB));
  EXPECT_TRUE(mentions(messageOf(tryPiece(RW, 256 * KiB)), {"jitmem_manager_set_quota"}));
}

// An address range that is free now, and that nothing else of this process will take.
struct FreeRange {
  explicit FreeRange(size_t Size) : Size(Size) {
    void *P = mmap(nullptr, Size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (P == MAP_FAILED)
      throw std::runtime_error("mmap failed");
    munmap(P, Size);
    Start = (reinterpret_cast<uint64_t>(P) + 2 * MiB - 1) & ~(2 * MiB - 1);
  }
  uint64_t Start;
  size_t Size;
};

TEST_P(Limits, WindowAtAFixedAddress) {
  FreeRange Range(128 * MiB);
  jitmem::orc::Options O;
  O.WindowSize = 32 * MiB;
  O.Fixed = Range.Start;
  restart(O);
  Piece Code = piece(RX, 100), Data = piece(RW, 100);
  for (ExecutorAddr Addr : {Code.Addr, Data.Addr}) {
    EXPECT_GE(Addr.getValue(), Range.Start);
    EXPECT_LT(Addr.getValue(), Range.Start + 32 * MiB);
  }
}

TEST_P(Limits, FixedWindowDoesNotReplaceWhatIsThere) {
  FreeRange Range(128 * MiB);
  void *Occupied =
      mmap(reinterpret_cast<void *>(Range.Start + 16 * MiB), 4 * KiB, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_NE(Occupied, MAP_FAILED);
  memset(Occupied, 'o', 4 * KiB);
  jitmem::orc::Options O;
  O.WindowSize = 32 * MiB;
  O.Fixed = Range.Start;
  EXPECT_NE(messageOf(createManager(GetParam(), O)), "");
  EXPECT_TRUE(allBytesAre(ExecutorAddr::fromPtr(Occupied), 4 * KiB, 'o'));
  munmap(Occupied, 4 * KiB);
}

TEST_P(Limits, WindowNearAnAddress) {
  static int Here;
  ExecutorAddr Wanted = ExecutorAddr::fromPtr(&Here);
  jitmem::orc::Options O;
  O.Near = Wanted.getValue();
  restart(O);
  Piece Code = piece(RX, 100), Data = piece(RW, 100);
  for (ExecutorAddr Addr : {Code.Addr, Data.Addr}) {
    uint64_t Distance = Addr < Wanted ? Wanted - Addr : Addr - Wanted;
    EXPECT_LT(Distance, 2 * GiB);
  }
}

TEST_P(Limits, WindowNearSeveralAddresses) {
  static int Here;
  uint64_t There = ExecutorAddr::fromPtr(&Here).getValue();
  jitmem::orc::Options O;
  // Valgrind loads programs at low addresses.
  O.NearAll = {There + GiB / 2, There, There - std::min(There, GiB) / 2};
  restart(O);
  Piece Code = piece(RX, 100), Data = piece(RW, 100);
  for (uint64_t Wanted : O.NearAll)
    for (ExecutorAddr Addr : {Code.Addr, Data.Addr})
      EXPECT_LT(std::max(Addr.getValue(), Wanted) - std::min(Addr.getValue(), Wanted), 2 * GiB);
  O.NearAll = {There, There + 2 * GiB};
  auto Created = createManager(GetParam(), O);
  ASSERT_FALSE(bool(Created));
  EXPECT_TRUE(mentions(toString(Created.takeError()), {"near both"}));
}

TEST_P(Limits, DefaultWindowReachesLibc) {
  // A function that no sanitizer puts another one in the place of.
  uint64_t Libc = reinterpret_cast<uint64_t>(&gnu_get_libc_version);
  ASSERT_NE(mappingAt(ExecutorAddr(Libc)).Path.find("libc"), std::string::npos);
  Piece Code = piece(RX, 100), Data = piece(RW, 100);
  for (ExecutorAddr Addr : {Code.Addr, Data.Addr})
    EXPECT_LT(std::max(Addr.getValue(), Libc) - std::min(Addr.getValue(), Libc), MaxSpan);
}

TEST_P(Limits, UnreasonableWindowSizes) {
  // Either refused with a reason, or served by a window that keeps the promise of reach.
  for (uint64_t Size :
       {uint64_t(1), uint64_t(4095), 2 * GiB, 3 * GiB, uint64_t(1) << 60, ~uint64_t(0)}) {
    jitmem::orc::Options O;
    O.WindowSize = Size;
    auto Created = createManager(GetParam(), O);
    if (!Created) {
      EXPECT_TRUE(mentions(toString(Created.takeError()), {"window"})) << Size;
      continue;
    }
    MM = std::move(*Created);
    EXPECT_LT(statsOf(*MM).reserved, MaxSpan) << Size;
    for (MemProt Prot : {RX, R, RW})
      if (auto P = tryPiece(Prot, 100); !P) {
        EXPECT_TRUE(mentions(toString(P.takeError()), {"allocate", "window", "full"})) << Size;
      }
  }
}

TEST_P(Limits, UnknownMapperIsRefused) {
  jitmem::orc::Options O;
  O.Mapper = 12345;
  EXPECT_TRUE(
      mentions(messageOf(jitmem::orc::MemoryManager::CreateInProcess(O)), {"mapper", "12345"}));
}

} // namespace
