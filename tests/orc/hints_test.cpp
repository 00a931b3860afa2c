// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Code that runs often lies together.

#include "jit.h"

#if LLVM_VERSION_MAJOR >= 22
#include <llvm/ExecutionEngine/Orc/JITLinkRedirectableSymbolManager.h>
#endif

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;

namespace {

constexpr uint64_t Page = 4 * KiB;

// What the layout says that the code at an address is for, or -1 where no code is.
int hintAt(JITLinkMemoryManager &MM, ExecutorAddr Addr) {
  struct Search {
    uint64_t Address;
    int Found = -1;
  } S{Addr.getValue()};
  auto Visit = [](void *Ctx, const jitmem_layout_item *Item) {
    auto &S = *static_cast<Search *>(Ctx);
    if (Item->kind == JITMEM_LAYOUT_RANGE && (Item->protection & JITMEM_PROT_EXEC) &&
        S.Address - Item->address < Item->size)
      S.Found = static_cast<int>(Item->code_hint);
  };
  auto &Manager = static_cast<jitmem::orc::MemoryManager &>(MM);
  EXPECT_EQ(jitmem_manager_layout(Manager.handle(), Visit, &S, nullptr), JITMEM_OK);
  return S.Found;
}

class Hints : public ManagerTest {
protected:
  struct Graph {
    Placed Alloc;
    std::vector<ExecutorAddr> Code;
  };

  // Places a graph with a page of code in each of the sections.
  Graph place(std::initializer_list<const char *> Sections) {
    auto G = compat::makeGraph("code");
    std::vector<Block *> Blocks;
    // Compilers leave this one empty where all code is in others.
    addContent(*G, addSection(*G, ".text", RX), "");
    for (const char *Name : Sections) {
      Section *S = G->findSectionByName(Name);
      Blocks.push_back(
          &addContent(*G, S ? *S : addSection(*G, Name, RX), std::string(Page, '\xc3')));
    }
    addContent(*G, addSection(*G, ".data", RW), "data");
    Graph Placed{ManagerTest::place(*G), {}};
    for (Block *B : Blocks)
      Placed.Code.push_back(B->getAddress());
    return Placed;
  }

  int hintOf(std::initializer_list<const char *> Sections) {
    Graph G = place(Sections);
    return hintAt(*MM, G.Code.front());
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Hints, jitmemKinds(), kindName);

TEST_P(Hints, SectionsOfOneHintLieTogether) {
  Graph G = place({".text.unlikely.a", ".text.b", ".text.hot.c", ".text.split.d", ".text",
                   ".text.hot.", "$__STUBS", ".text.hotter.e"});
  auto At = [&](size_t I) { return (G.Code[I] - G.Code[2]) / Page; };
  std::vector<uint64_t> Order{At(2), At(5), At(4), At(1), At(6), At(7), At(0), At(3)};
  EXPECT_EQ(Order, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST_P(Hints, GraphsHaveThatOfTheirSections) {
  EXPECT_EQ(hintOf({".text"}), JITMEM_CODE_NORMAL);
  EXPECT_EQ(hintOf({".text.function"}), JITMEM_CODE_NORMAL);
  EXPECT_EQ(hintOf({".text.split"}), JITMEM_CODE_NORMAL);
  EXPECT_EQ(hintOf({".text.hot."}), JITMEM_CODE_HOT);
  EXPECT_EQ(hintOf({".text.hot.f", "$__STUBS"}), JITMEM_CODE_HOT);
  EXPECT_EQ(hintOf({".text.unlikely.f", ".text.hot.f", ".text"}), JITMEM_CODE_HOT);
  EXPECT_EQ(hintOf({".text.unlikely.f", ".text.startup", "$__STUBS"}), JITMEM_CODE_COLD);
  EXPECT_EQ(hintOf({".text.unlikely.f", ".text"}), JITMEM_CODE_NORMAL);
  EXPECT_EQ(hintOf({"__orc_stubs"}), JITMEM_CODE_STUB);
}

TEST_P(Hints, GraphsOfOneHintLieTogether) {
  constexpr const char *Sections[] = {".text.hot.", ".text", ".text.unlikely.", "__orc_stubs"};
  std::vector<Graph> All;
  uint64_t Lowest[4], Highest[4];
  constexpr uint64_t Rounds = 20;
  for (uint64_t I = 0; I != Rounds * 4; ++I) {
    All.push_back(place({Sections[I % 4]}));
    uint64_t Addr = All.back().Code.front().getValue();
    Lowest[I % 4] = I < 4 ? Addr : std::min(Lowest[I % 4], Addr);
    Highest[I % 4] = I < 4 ? Addr : std::max(Highest[I % 4], Addr);
  }
  for (int I = 0; I != 4; ++I)
    EXPECT_EQ(Highest[I] - Lowest[I], (Rounds - 1) * Page) << Sections[I];
}

class HintFunction : public ManagerTest {
protected:
  static jitmem::orc::Options options() {
    jitmem::orc::Options O;
    O.Hint = [](const JITLinkDylib *JD, const LinkGraph &G) {
      return JD && JD->getName() == "library" && G.getName() == "loop" ? JITMEM_CODE_HOT
                                                                       : JITMEM_CODE_COLD;
    };
    return O;
  }

  HintFunction() : ManagerTest(options()) {}

  int hintOf(const char *Name, const JITLinkDylib *JD) {
    auto G = compat::makeGraph(Name);
    Block &B = addContent(*G, addSection(*G, ".text.hot.", RX), "\xc3");
    Placed P = place(*G, JD);
    return hintAt(*MM, B.getAddress());
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, HintFunction, jitmemKinds(), kindName);

TEST_P(HintFunction, SaysMoreThanSections) {
  JITLinkDylib Library("library"), Other("other");
  EXPECT_EQ(hintOf("loop", &Library), JITMEM_CODE_HOT);
  EXPECT_EQ(hintOf("loop", &Other), JITMEM_CODE_COLD);
  EXPECT_EQ(hintOf("loop", nullptr), JITMEM_CODE_COLD);
  EXPECT_EQ(hintOf("error", &Library), JITMEM_CODE_COLD);
}

class HintsInSession : public JITTest {};
INSTANTIATE_TEST_SUITE_P(Managers, HintsInSession, jitmemSessionKinds(), kindName);

TEST_P(HintsInSession, FunctionsThatTheCompilerKnows) {
  start();
  add("temperatures.c");
  auto Often = must(compat::lookup(*J, "often")), Sometimes = must(compat::lookup(*J, "sometimes")),
       Rarely = must(compat::lookup(*J, "rarely"));
  EXPECT_LT(Often, Sometimes);
  EXPECT_LT(Sometimes, Rarely);
  EXPECT_EQ(hintAt(*MM, Often), JITMEM_CODE_HOT);
  EXPECT_EQ(hintAt(*MM, Rarely), JITMEM_CODE_HOT);
  EXPECT_EQ(Often.toPtr<int (*)(int)>()(7), 7);
  EXPECT_EQ(Sometimes.toPtr<int (*)(int)>()(7), 9);
  EXPECT_EQ(Rarely.toPtr<int (*)(int)>()(7), 4);
}

#if LLVM_VERSION_MAJOR >= 22
TEST_P(HintsInSession, RedirectableSymbolsAreStubs) {
  start();
  auto Manager = must(JITLinkRedirectableSymbolManager::Create(*Layer));
  must(J->addIRModule(functionReturning("five", 5)));
  auto Flags = JITSymbolFlags(JITSymbolFlags::Exported) | JITSymbolFlags::Callable;
  must(Manager->createRedirectableSymbol(main().getDefaultResourceTracker(),
                                         J->mangleAndIntern("entry"),
                                         {must(J->lookup("five")), Flags}));
  ExecutorAddr Entry = must(J->lookup("entry"));
  EXPECT_EQ(call(Entry), 5);
  EXPECT_EQ(hintAt(*MM, Entry), JITMEM_CODE_STUB);
  EXPECT_EQ(hintAt(*MM, must(J->lookup("five"))), JITMEM_CODE_NORMAL);
}
#endif

} // namespace
