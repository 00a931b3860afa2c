// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// More than one window: a JITDylib's graphs stay together.

#include "kit.h"

using namespace llvm;
using namespace llvm::jitlink;

namespace {

constexpr uint64_t WindowSize = 8 * MiB;

jitmem::orc::Options smallWindows() {
  jitmem::orc::Options O;
  O.WindowSize = WindowSize;
  O.AnotherWindow = true;
  return O;
}

class Windows : public ManagerTest {
protected:
  Windows() : ManagerTest(smallWindows()) {}

  struct Range {
    uint64_t Start, End;
  };

  static void collect(void *Ctx, const jitmem_layout_item *Item) {
    if (Item->kind == JITMEM_LAYOUT_WINDOW)
      static_cast<std::vector<Range> *>(Ctx)->push_back(
          {Item->address, Item->address + Item->size});
  }

  std::vector<Range> windows() {
    std::vector<Range> All;
    auto &Manager = static_cast<jitmem::orc::MemoryManager &>(*MM);
    EXPECT_EQ(jitmem_manager_layout(Manager.handle(), &collect, &All, nullptr), 0);
    return All;
  }

  // The number of the window that Addr is in.
  size_t windowOf(ExecutorAddr Addr) {
    std::vector<Range> All = windows();
    for (size_t I = 0; I != All.size(); ++I)
      if (All[I].Start <= Addr.getValue() && Addr.getValue() < All[I].End)
        return I;
    throw std::runtime_error("an address outside every window was handed out");
  }

  // Gives JD all that its window has left, in pieces of Size; returns the refusal's message.
  std::string fill(const JITLinkDylib &JD, uint64_t Size, std::vector<Piece> &All) {
    for (uint64_t Total = 0; Total <= 4 * WindowSize; Total += Size) {
      auto P = tryPiece(RW, Size, 1, &JD);
      if (!P)
        return toString(P.takeError());
      All.push_back(std::move(*P));
    }
    return "";
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Windows, jitmemKinds(), kindName);

TEST_P(Windows, JITDylibStaysInOneWindow) {
  JITLinkDylib A("A"), B("B"), C("C");
  std::vector<Piece> OfA, OfB;
  EXPECT_TRUE(mentions(fill(A, 1 * MiB, OfA), {"allocate", "window", "full"}));
  EXPECT_GE(OfA.size(), 5u);
  EXPECT_EQ(statsOf(*MM).windows, 1u) << "A must not get a second window";

  // No megabyte is left in the first window, so B's have to go elsewhere.
  EXPECT_TRUE(mentions(fill(B, 1 * MiB, OfB), {"window"}));
  EXPECT_GE(OfB.size(), 5u);
  EXPECT_EQ(statsOf(*MM).windows, 2u);
  for (Piece &P : OfA)
    EXPECT_EQ(windowOf(P.Addr), windowOf(OfA[0].Addr));
  for (Piece &P : OfB)
    EXPECT_EQ(windowOf(P.Addr), windowOf(OfB[0].Addr));
  EXPECT_NE(windowOf(OfA[0].Addr), windowOf(OfB[0].Addr));

  // A third JITDylib goes on, and A goes on in its own window once it has room.
  Piece OfC = piece(RW, 1 * MiB, 1, &C);
  EXPECT_NE(windowOf(OfC.Addr), windowOf(OfA[0].Addr));
  EXPECT_NE(windowOf(OfC.Addr), windowOf(OfB[0].Addr));
  must(OfA.back().Alloc.free());
  Piece Again = piece(RW, 1 * MiB, 1, &A);
  EXPECT_EQ(windowOf(Again.Addr), windowOf(OfA[0].Addr));
}

TEST_P(Windows, SegmentsOfAGraphStayTogether) {
  JITLinkDylib A("A"), B("B");
  std::vector<Piece> OfA, OfB;
  fill(A, 1 * MiB, OfA);
  auto G = compat::makeGraph("graph");
  Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(3), {16});
  Block &Const = addContent(*G, addSection(*G, "rodata", R), "c");
  Block &Small = addContent(*G, addSection(*G, "data", RW), "d");
  Block &Large = addZeroFill(*G, addSection(*G, "bss", RW), 1 * MiB);
  // Its small segments would fit where A is, the large one does not.
  Placed P = place(*G, &B);
  EXPECT_EQ(windowOf(Text.getAddress()), windowOf(Large.getAddress()));
  EXPECT_EQ(windowOf(Const.getAddress()), windowOf(Large.getAddress()));
  EXPECT_EQ(windowOf(Small.getAddress()), windowOf(Large.getAddress()));
  EXPECT_EQ(call(Text.getAddress()), 3);
}

TEST_P(Windows, EachWindowKeepsItsSize) {
  JITLinkDylib A("A"), B("B");
  std::vector<Piece> OfA, OfB;
  fill(A, 1 * MiB, OfA);
  fill(B, 1 * MiB, OfB);
  auto All = windows();
  ASSERT_EQ(All.size(), 2u);
  for (Range W : All)
    EXPECT_LE(W.End - W.Start, WindowSize);
  EXPECT_GE(statsOf(*MM).reserved, 2 * WindowSize);
}

TEST_P(Windows, SmallJITDylibsShareAWindow) {
  std::vector<std::unique_ptr<JITLinkDylib>> JDs;
  std::vector<Piece> All;
  for (int I = 0; I != 50; ++I) {
    JDs.push_back(std::make_unique<JITLinkDylib>("JD" + std::to_string(I)));
    All.push_back(piece(RX, 256, 16, JDs.back().get()));
    All.push_back(piece(RW, 256, 16, JDs.back().get()));
  }
  EXPECT_EQ(statsOf(*MM).windows, 1u);
}

TEST_P(Windows, RequestLargerThanAWindowIsRefused) {
  EXPECT_TRUE(mentions(messageOf(tryPiece(RW, 2 * WindowSize)), {"allocate", "window"}));
  EXPECT_LE(statsOf(*MM).windows, 1u);
  Piece P = piece(RW, 100);
}

TEST_P(Windows, EmptyWindowIsUsedAgain) {
  JITLinkDylib A("A"), B("B");
  std::vector<Piece> OfA, OfB;
  fill(A, 1 * MiB, OfA);
  uint64_t Reserved = statsOf(*MM).reserved;
  for (int Round = 0; Round != 20; ++Round) {
    fill(B, 1 * MiB, OfB);
    OfB.clear();
  }
  EXPECT_LE(statsOf(*MM).reserved, Reserved + WindowSize);
}

} // namespace
