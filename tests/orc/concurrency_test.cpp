// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Calls from inside completions, many threads, many live graphs.

#include "kit.h"

#include <atomic>
#include <random>
#include <thread>

using namespace llvm;
using namespace llvm::jitlink;
using FinalizedAlloc = JITLinkMemoryManager::FinalizedAlloc;

namespace {

class Reentrancy : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Reentrancy, everyKind(), kindName);
class Threads : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, Threads, everyKind(), kindName);
class ManyGraphs : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, ManyGraphs, jitmemKinds(), kindName);

// Waits for completions that may come on another thread.
template <typename T> class Slot {
public:
  void set(T Value) { P.set_value(std::move(Value)); }
  T get() { return F.get(); }

private:
  std::promise<T> P;
  std::future<T> F = P.get_future();
};

std::unique_ptr<LinkGraph> dataGraph() {
  auto G = compat::makeGraph("data");
  addContent(*G, addSection(*G, "data", RW), std::string(100, 'd'));
  return G;
}

TEST_P(Reentrancy, AllocateInsideOnAllocated) {
  // Depth 20: a lock held across the completion would show at once.
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  for (int I = 0; I != 20; ++I)
    Graphs.push_back(dataGraph());
  std::vector<InFlight> Allocs;
  std::vector<std::string> Errors;
  Slot<bool> Done;
  std::function<void(size_t)> Next = [&](size_t I) {
    if (I == Graphs.size())
      return Done.set(true);
    MM->allocate(nullptr, *Graphs[I], [&, I](JITLinkMemoryManager::AllocResult Result) {
      if (Result)
        Allocs.push_back(std::move(*Result));
      else
        Errors.push_back(toString(Result.takeError()));
      Next(I + 1);
    });
  };
  Next(0);
  ASSERT_TRUE(Done.get());
  EXPECT_EQ(Errors, std::vector<std::string>());
  for (InFlight &A : Allocs)
    must(abandon(std::move(A)));
}

TEST_P(Reentrancy, AllocateAndFinalizeInsideOnFinalized) {
  auto Outer = dataGraph(), Inner = dataGraph();
  InFlight Alloc = allocate(*Outer);
  Slot<Expected<FinalizedAlloc>> OuterDone, InnerDone;
  Alloc->finalize([&](Expected<FinalizedAlloc> Result) {
    MM->allocate(nullptr, *Inner, [&](JITLinkMemoryManager::AllocResult Nested) {
      if (!Nested)
        return InnerDone.set(Nested.takeError());
      auto *Raw = Nested->get();
      Raw->finalize([&, Own = std::move(*Nested)](Expected<FinalizedAlloc> FA) {
        InnerDone.set(std::move(FA));
      });
    });
    OuterDone.set(std::move(Result));
  });
  Placed A(*MM, must(OuterDone.get())), B(*MM, must(InnerDone.get()));
}

TEST_P(Reentrancy, InFlightAllocMayDieInItsOwnCompletion) {
  // JITLink's link state owns it, and is gone when the completion returns.
  auto ToFinalize = dataGraph(), ToAbandon = dataGraph();
  InFlight Alloc = allocate(*ToFinalize);
  Slot<Expected<FinalizedAlloc>> Finalized;
  auto *Raw = Alloc.get();
  Raw->finalize([&, Own = std::move(Alloc)](Expected<FinalizedAlloc> Result) mutable {
    Own.reset();
    Finalized.set(std::move(Result));
  });
  Placed P(*MM, must(Finalized.get()));
  Alloc = allocate(*ToAbandon);
  Slot<std::string> Abandoned;
  Raw = Alloc.get();
  Raw->abandon([&, Own = std::move(Alloc)](Error Err) mutable {
    Own.reset();
    Abandoned.set(toString(std::move(Err)));
  });
  EXPECT_EQ(Abandoned.get(), "");
}

TEST_P(Reentrancy, DeallocateInsideOnFinalized) {
  auto G = dataGraph();
  InFlight Alloc = allocate(*G);
  Slot<std::string> Done;
  Alloc->finalize([&](Expected<FinalizedAlloc> Result) {
    if (!Result)
      return Done.set(toString(Result.takeError()));
    MM->deallocate(std::move(*Result), [&](Error Err) { Done.set(toString(std::move(Err))); });
  });
  EXPECT_EQ(Done.get(), "");
}

TEST_P(Reentrancy, AllocateInsideOnDeallocatedAndOnAbandoned) {
  auto Held = dataGraph(), Dropped = dataGraph(), Nested = dataGraph();
  Placed P = place(*Held);
  InFlight Alloc = allocate(*Dropped);
  Slot<std::string> Done;
  MM->deallocate(P.release(), [&](Error Err) {
    if (Err)
      return Done.set(toString(std::move(Err)));
    Alloc->abandon([&](Error Err) {
      if (Err)
        return Done.set(toString(std::move(Err)));
      MM->allocate(nullptr, *Nested, [&](JITLinkMemoryManager::AllocResult Result) {
        if (!Result)
          return Done.set(toString(Result.takeError()));
        auto *Raw = Result->get();
        Raw->abandon(
            [&, Own = std::move(*Result)](Error Err) { Done.set(toString(std::move(Err))); });
      });
    });
  });
  EXPECT_EQ(Done.get(), "");
}

TEST_P(Reentrancy, AllocateInsideAnAction) {
  // A static constructor that is run by an action may well link more code.
  static JITLinkMemoryManager *Manager;
  static std::string Outcome;
  Manager = MM.get();
  Outcome = "did not run";
  auto Nested = [](const char *, size_t) -> compat::ActionResult {
    auto G = dataGraph();
    auto Alloc = Manager->allocate(nullptr, *G);
    auto FA = Alloc ? (*Alloc)->finalize() : Expected<FinalizedAlloc>(Alloc.takeError());
    Outcome = FA ? toString(Manager->deallocate(std::move(*FA))) : toString(FA.takeError());
    char Success = 0;
    return compat::ActionBuffer::copyFrom(&Success, 1).release();
  };
  auto G = dataGraph();
  orc::shared::WrapperFunctionCall Call(ExecutorAddr::fromPtr(+Nested), {});
  G->allocActions().push_back({Call, Call});
  Placed P = place(*G);
  EXPECT_EQ(Outcome, "");
  Outcome = "did not run";
  must(P.free());
  EXPECT_EQ(Outcome, "");
}

// One thread's work: graphs of mixed segments, each checked when it is freed.
class Worker {
public:
  Worker(JITLinkMemoryManager &MM, unsigned Seed) : MM(MM), Random(Seed), Fill(char('A' + Seed)) {}

  void run(int Graphs) {
    for (int I = 0; I != Graphs && Error.empty(); ++I) {
      add(I);
      while (Live.size() > 20)
        drop(Random() % Live.size());
    }
  }

  void dropAll() {
    while (!Live.empty())
      drop(Live.size() - 1);
  }

  std::string Error;

private:
  struct Graph {
    ExecutorAddr Text, Const, Bss;
    unsigned Size;
    int Value;
    FinalizedAlloc FA;
  };

  void add(int Value) {
    unsigned Size = 1 + Random() % 2000;
    auto G = compat::makeGraph("worker");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(Value), {16});
    Block &Const = addContent(*G, addSection(*G, "rodata", R), std::string(Size, Fill));
    Block &Bss = addZeroFill(*G, addSection(*G, "bss", RW), Size);
    auto Alloc = MM.allocate(nullptr, *G);
    if (!Alloc)
      return note(toString(Alloc.takeError()));
    if (Random() % 8 == 0) {
      if (auto Err = abandon(std::move(*Alloc)))
        note(toString(std::move(Err)));
      return;
    }
    auto FA = (*Alloc)->finalize();
    if (!FA)
      return note(toString(FA.takeError()));
    if (!allBytesAre(Bss.getAddress(), Size, 0))
      note("zero-fill is not zero");
    memset(bytesAt(Bss.getAddress()), Fill, Size);
    Live.push_back(
        {Text.getAddress(), Const.getAddress(), Bss.getAddress(), Size, Value, std::move(*FA)});
  }

  void drop(size_t I) {
    Graph &G = Live[I];
    if (call(G.Text) != G.Value)
      note("code returned something else");
    if (!allBytesAre(G.Const, G.Size, Fill) || !allBytesAre(G.Bss, G.Size, Fill))
      note("bytes changed");
    if (auto Err = MM.deallocate(std::move(G.FA)))
      note(toString(std::move(Err)));
    if (I + 1 != Live.size())
      Live[I] = std::move(Live.back());
    Live.pop_back();
  }

  void note(std::string Message) {
    if (Error.empty())
      Error = std::move(Message);
  }

  JITLinkMemoryManager &MM;
  std::minstd_rand Random;
  char Fill;
  std::vector<Graph> Live;
};

TEST_P(Threads, EightThreadsOf500Graphs) {
  std::vector<Worker> Workers;
  for (unsigned Seed = 1; Seed <= 8; ++Seed)
    Workers.emplace_back(*MM, Seed);
  std::vector<std::thread> Running;
  for (Worker &W : Workers)
    Running.emplace_back([&W] { W.run(rounds(500)); });
  for (std::thread &T : Running)
    T.join();
  // What one thread allocated, another one frees.
  for (Worker &W : Workers) {
    W.dropAll();
    EXPECT_EQ(W.Error, "");
  }
}

TEST_P(Threads, StatsAndFreeingWhileOthersAllocate) {
  if (isJitmem(GetParam())) {
    EXPECT_EQ(statsOf(*MM).live, 0u);
  }
  std::atomic<bool> Stop{false};
  std::vector<Worker> Workers;
  for (unsigned Seed = 1; Seed <= 3; ++Seed)
    Workers.emplace_back(*MM, Seed);
  std::vector<std::thread> Running;
  for (Worker &W : Workers)
    Running.emplace_back([&W] {
      W.run(rounds(200));
      W.dropAll();
    });
  std::thread Observer([&] {
    if (!isJitmem(GetParam()))
      return;
    while (!Stop) {
      jitmem_stats S = statsOf(*MM);
      EXPECT_LE(S.live, S.committed);
      EXPECT_LT(S.span, MaxSpan);
    }
  });
  for (std::thread &T : Running)
    T.join();
  Stop = true;
  Observer.join();
  for (Worker &W : Workers)
    EXPECT_EQ(W.Error, "");
}

TEST_P(ManyGraphs, TwentyThousandLiveNeedFewMappings) {
  // LLVM's manager needs three mappings a graph and ends at the kernel's limit.
  constexpr int N = 20000;
  size_t MappingsBefore = readMappings().size();
  std::vector<Placed> All;
  std::vector<ExecutorAddr> Entries;
  for (int I = 0; I != N; ++I) {
    auto G = compat::makeGraph("small");
    std::string Code = codeReturning(I);
    Code.resize(256, '\xcc');
    Block &Text = addContent(*G, addSection(*G, "text", RX), Code, {16});
    addContent(*G, addSection(*G, "rodata", R), std::string(64, 'r'), {8});
    addContent(*G, addSection(*G, "data", RW), std::string(64, 'd'), {8});
    All.push_back(place(*G));
    Entries.push_back(Text.getAddress());
  }
  // Without two views, pages of different protection alternate until their chunks are full.
  size_t Allowed = GetParam() == Kind::JitmemTwoViews ? 64 : 512;
  EXPECT_LE(readMappings().size(), MappingsBefore + Allowed);
  EXPECT_EQ(statsOf(*MM).finalized, uint64_t(N));
  for (int I = 0; I < N; I += 7)
    ASSERT_EQ(call(Entries[I]), I);
  if (GetParam() == Kind::JitmemTwoViews) {
    EXPECT_LT(statsOf(*MM).committed, 3 * uint64_t(N) * (256 + 64 + 64)) << "they are not packed";
  }
  must(freeAll(*MM, All));
  EXPECT_EQ(statsOf(*MM).live, 0u);
  EXPECT_LT(statsOf(*MM).committed, 8 * MiB) << "empty chunks were not given back";
}

} // namespace
