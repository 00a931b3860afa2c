// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Where blocks land: alignment, order, zero-fill, protection.

#include "kit.h"

using namespace llvm;
using namespace llvm::jitlink;

namespace {

class Layout : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Layout, everyKind(), kindName);

class JitmemLayout : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, JitmemLayout, jitmemKinds(), kindName);

TEST_P(Layout, AlignmentUpToAPage) {
  std::vector<Placed> All;
  for (uint64_t Alignment = 1; Alignment <= 4 * KiB; Alignment *= 2)
    for (MemProt Prot : {RX, R, RW}) {
      Piece P = piece(Prot, Alignment / 2 + 1, Alignment);
      EXPECT_EQ(P.Addr.getValue() % Alignment, 0u) << "alignment " << Alignment;
      All.push_back(std::move(P.Alloc));
    }
}

TEST_P(JitmemLayout, AlignmentAboveAPage) {
  // LLVM's manager refuses these.
  std::vector<Placed> All;
  for (uint64_t Alignment : {8 * KiB, 64 * KiB, 1 * MiB, 2 * MiB})
    for (MemProt Prot : {RX, R, RW}) {
      auto G = compat::makeGraph("aligned");
      Section &S = addSection(*G, "section", Prot);
      Block &Content = addContent(*G, S, std::string(100, 'a'), {Alignment});
      Block &Zero = addZeroFill(*G, S, 100, {Alignment});
      All.push_back(place(*G));
      EXPECT_EQ(Content.getAddress().getValue() % Alignment, 0u) << "alignment " << Alignment;
      EXPECT_EQ(Zero.getAddress().getValue() % Alignment, 0u) << "alignment " << Alignment;
      EXPECT_TRUE(allBytesAre(Content.getAddress(), 100, 'a'));
      EXPECT_TRUE(allBytesAre(Zero.getAddress(), 100, 0));
    }
}

TEST_P(JitmemLayout, LargeAlignmentReturnsWhatItSkipped) {
  // Were the bytes in front of an aligned block lost, a thousand rounds would fill the window.
  for (int Round = 0; Round != 1000; ++Round) {
    Piece Odd = piece(RW, 1 + 100 * Round % 4096);
    Piece Aligned = piece(RW, 100, 1 * MiB);
    EXPECT_EQ(Aligned.Addr.getValue() % MiB, 0u);
  }
  jitmem_stats S = statsOf(*MM);
  EXPECT_LT(S.committed, 32 * MiB);
}

TEST_P(Layout, AlignmentOffsets) {
  auto G = compat::makeGraph("offsets");
  Section &S = addSection(*G, "data", RW);
  struct {
    uint64_t Align, Offset;
  } Places[] = {{16, 8}, {64, 60}, {1, 0}, {4096, 4090}, {32, 0}, {256, 1}};
  std::vector<Block *> Blocks;
  char Fill = 'a';
  for (auto [Alignment, Offset] : Places)
    Blocks.push_back(&addContent(*G, S, std::string(50, Fill++), {Alignment, Offset}));
  for (auto [Alignment, Offset] : Places)
    Blocks.push_back(&addZeroFill(*G, S, 50, {Alignment, Offset}));
  Placed P = place(*G);
  for (size_t I = 0; I != Blocks.size(); ++I) {
    auto [Alignment, Offset] = Places[I % std::size(Places)];
    EXPECT_EQ(Blocks[I]->getAddress().getValue() % Alignment, Offset) << "block " << I;
    char Expected = I < std::size(Places) ? char('a' + I) : 0;
    EXPECT_TRUE(allBytesAre(Blocks[I]->getAddress(), 50, Expected)) << "block " << I;
  }
}

TEST_P(Layout, BlocksKeepTheOrderOfSectionsAndAddresses) {
  auto G = compat::makeGraph("order");
  Section &First = addSection(*G, "z_first", R);
  Section &Second = addSection(*G, "a_second", R);
  // Created in an order that is not the one of their addresses.
  Block &D = addContent(*G, Second, "d", {1, 0, 0x10});
  Block &B = addContent(*G, First, "b", {1, 0, 0x5000});
  Block &E = addContent(*G, Second, "e", {1, 0, 0x20});
  Block &A = addContent(*G, First, "a", {1, 0, 0x1000});
  Block &C = addContent(*G, First, "c", {1, 0, 0x9000});
  Placed P = place(*G);
  std::vector<ExecutorAddr> Order{A.getAddress(), B.getAddress(), C.getAddress(), D.getAddress(),
                                  E.getAddress()};
  EXPECT_TRUE(std::is_sorted(Order.begin(), Order.end()));
  // Nothing lies between them, as eh-frame records and the like need it.
  EXPECT_EQ(StringRef(bytesAt(A.getAddress()), 5), "abcde");
}

TEST_P(Layout, GapsBetweenBlocksAreZero) {
  for (int Round = 0; Round != 3; ++Round) {
    auto G = compat::makeGraph("gaps");
    Section &S = addSection(*G, "data", RW);
    Block &First = addContent(*G, S, "x");
    Block &Second = addContent(*G, S, "y", {512});
    Placed P = place(*G);
    EXPECT_TRUE(
        allBytesAre(First.getAddress() + 1, Second.getAddress() - First.getAddress() - 1, 0));
    memset(bytesAt(First.getAddress()), 0xee, 513);
  }
}

TEST_P(Layout, ZeroFillOnly) {
  auto G = compat::makeGraph("bss");
  Block &B = addZeroFill(*G, addSection(*G, "bss", RW), 100000, {64});
  Placed P = place(*G);
  EXPECT_EQ(B.getAddress().getValue() % 64, 0u);
  EXPECT_TRUE(allBytesAre(B.getAddress(), 100000, 0));
  memset(bytesAt(B.getAddress()), 0xff, 100000);
  EXPECT_TRUE(allBytesAre(B.getAddress(), 100000, char(0xff)));
}

TEST_P(Layout, ZeroFillOfReadOnlyAndExecutableSegments) {
  // Reused memory: code that was freed holds traps, not zeros.
  for (int Round = 0; Round != 20; ++Round)
    for (MemProt Prot : {R, RX}) {
      auto G = compat::makeGraph("zeros");
      Section &S = addSection(*G, "section", Prot);
      Block &Content = addContent(*G, S, std::string(3000, char(0xcc)));
      Block &Zero = addZeroFill(*G, S, 3000);
      Placed P = place(*G);
      EXPECT_TRUE(allBytesAre(Content.getAddress(), 3000, char(0xcc)));
      EXPECT_TRUE(allBytesAre(Zero.getAddress(), 3000, 0));
    }
}

TEST_P(Layout, ZeroFillFollowsContentInItsSegment) {
  auto G = compat::makeGraph("data");
  Section &Bss = addSection(*G, "bss", RW);
  Section &Data = addSection(*G, "data", RW);
  Block &Zero = addZeroFill(*G, Bss, 1000, {8});
  Block &Content = addContent(*G, Data, std::string(1001, 'c'));
  Placed P = place(*G);
  EXPECT_LT(Content.getAddress(), Zero.getAddress());
  EXPECT_LT(Zero.getAddress() - Content.getAddress(), 4 * KiB);
  EXPECT_TRUE(allBytesAre(Content.getAddress(), 1001, 'c'));
  EXPECT_TRUE(allBytesAre(Zero.getAddress(), 1000, 0));
}

TEST_P(Layout, ZeroFillIsZeroInReusedMemory) {
  auto PlaceDirty = [&](unsigned Content, unsigned Zeros) {
    auto G = compat::makeGraph("dirty");
    Section &S = addSection(*G, "data", RW);
    if (Content)
      addContent(*G, S, std::string(Content, 'c'));
    Block &B = addZeroFill(*G, S, Zeros, {16});
    Placed P = place(*G);
    EXPECT_TRUE(allBytesAre(B.getAddress(), Zeros, 0)) << Content << " + " << Zeros;
    memset(bytesAt(B.getAddress()), 0xee, Zeros);
    return P;
  };
  std::vector<Placed> All;
  for (int Round = 0; Round != 8; ++Round) {
    for (unsigned I = 0; I != 64; ++I)
      All.push_back(PlaceDirty((I * 37 + Round * 11) % 200, 1 + (I * 91 + Round * 997) % 9000));
    // Every other one first, so that what comes next fits into holes as well as at the end.
    for (size_t I = 0; I < All.size(); I += 2)
      must(All[I].free());
    for (unsigned I = 0; I != 16; ++I)
      All.push_back(PlaceDirty(I, 1 + I * 517));
    All.clear();
  }
}

TEST_P(Layout, EveryProtectionAndLifetimeInOneGraph) {
  auto G = compat::makeGraph("all");
  std::string Code = codeReturning(11);
  Block &Text = addContent(*G, addSection(*G, "text", RX), Code, {16});
  Block &Const = addContent(*G, addSection(*G, "rodata", R), std::string(5000, 'c'));
  Block &Data = addContent(*G, addSection(*G, "data", RW), std::string(5000, 'd'));
  Block &Bss = addZeroFill(*G, addSection(*G, "bss", RW), 50000);
  addContent(*G, addSection(*G, "init.text", {RX, MemLifetime::Finalize}), Code, {16});
  addContent(*G, addSection(*G, "init.rodata", {R, MemLifetime::Finalize}), "once");
  addContent(*G, addSection(*G, "init.data", {RW, MemLifetime::Finalize}), "once");
  Placed P = place(*G);
  EXPECT_EQ(call(Text.getAddress()), 11);
  EXPECT_TRUE(allBytesAre(Const.getAddress(), 5000, 'c'));
  EXPECT_TRUE(allBytesAre(Data.getAddress(), 5000, 'd'));
  EXPECT_TRUE(allBytesAre(Bss.getAddress(), 50000, 0));
  EXPECT_EQ(mappingAt(Text.getAddress()).Perms.substr(0, 3), "r-x");
  EXPECT_EQ(mappingAt(Const.getAddress()).Perms.substr(0, 3), "r--");
  EXPECT_EQ(mappingAt(Data.getAddress()).Perms.substr(0, 3), "rw-");
  EXPECT_EQ(mappingAt(Bss.getAddress() + 49999).Perms.substr(0, 3), "rw-");
}

TEST_P(Layout, LargeContent) {
  std::string Bytes(24 * MiB, 0);
  for (size_t I = 0; I != Bytes.size(); ++I)
    Bytes[I] = char(I * 2654435761u >> 13);
  auto G = compat::makeGraph("large");
  Block &Const = addContent(*G, addSection(*G, "rodata", R), Bytes);
  Block &Data = addContent(*G, addSection(*G, "data", RW), Bytes);
  Placed P = place(*G);
  EXPECT_EQ(memcmp(bytesAt(Const.getAddress()), Bytes.data(), Bytes.size()), 0);
  EXPECT_EQ(memcmp(bytesAt(Data.getAddress()), Bytes.data(), Bytes.size()), 0);
}

TEST_P(JitmemLayout, EverythingIsInReachOfEverything) {
  std::vector<Placed> All;
  uint64_t Lowest = ~uint64_t(0), Highest = 0;
  auto Add = [&](MemProt Prot, uint64_t Size) {
    auto G = compat::makeGraph("graph");
    Block &B = addZeroFill(*G, addSection(*G, "section", Prot), Size);
    All.push_back(place(*G));
    Lowest = std::min(Lowest, B.getAddress().getValue());
    Highest = std::max(Highest, B.getAddress().getValue() + Size);
  };
  // Small ones, large ones, and again small ones after space was freed in between.
  for (int I = 0; I != 300; ++I)
    Add(std::array{RX, R, RW}[I % 3], 1 + I * 131 % 20000);
  for (MemProt Prot : {RX, R, RW})
    Add(Prot, 100 * MiB);
  for (size_t I = 0; I < All.size(); I += 2)
    must(All[I].free());
  for (int I = 0; I != 300; ++I)
    Add(std::array{RX, R, RW}[I % 3], 1 + I * 137 % 20000);
  EXPECT_LT(Highest - Lowest, MaxSpan);
  EXPECT_EQ(statsOf(*MM).windows, 1u);
  EXPECT_LT(statsOf(*MM).span, MaxSpan);
}

TEST_P(JitmemLayout, NeighboursInAPageDoNotTouchEachOther) {
  if (GetParam() == Kind::JitmemTwoViews) {
    Piece A = piece(R, 64), B = piece(R, 64);
    EXPECT_EQ(A.Addr.getValue() / (4 * KiB), B.Addr.getValue() / (4 * KiB))
        << "small segments should share a page";
  }
  struct Range {
    ExecutorAddr Addr;
    uint64_t Size;
    char Fill;
    Placed Alloc;
  };
  std::vector<Range> All;
  auto Add = [&](int I) {
    auto G = compat::makeGraph("small");
    uint64_t Size = 1 + I * 53 % 700;
    char Fill = char(1 + I % 120);
    Block &B = addContent(*G, addSection(*G, "rodata", I % 2 ? R : RX), std::string(Size, Fill));
    Placed P = place(*G);
    All.push_back({B.getAddress(), Size, Fill, std::move(P)});
  };
  for (int I = 0; I != 500; ++I)
    Add(I);
  for (int I = 0; I < 500; I += 3) {
    must(All[I].Alloc.free());
    All[I].Size = 0;
  }
  for (int I = 500; I != 800; ++I)
    Add(I);
  for (const Range &Rg : All)
    EXPECT_TRUE(allBytesAre(Rg.Addr, Rg.Size, Rg.Fill));
}

} // namespace
