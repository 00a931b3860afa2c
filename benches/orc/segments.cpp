// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "segments.hpp"
#include "session.hpp"
#include "workload.hpp"

#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"

#include <algorithm>
#include <cstring>
#include <random>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;

namespace bench {

using Allocs = std::vector<SmallGraphs::FinalizedAlloc>;

// LLVM's managers can't hold more than about 21,800.
static constexpr unsigned GraphsPerRound = 10000;
static constexpr unsigned GraphsAcross = 3000;
static constexpr unsigned ChurnLive = 500;
static constexpr unsigned ChurnSteps = 10000;
static constexpr unsigned CapacityLimit = 100000;

static const AllocGroup CodeGroup(MemProt::Read | MemProt::Exec);
static const AllocGroup ConstantGroup(MemProt::Read);
static const AllocGroup DataGroup(MemProt::Read | MemProt::Write);

SmallGraphs::SmallGraphs(ExecutionSession &ES)
    : ES(ES), Manager(ES.getExecutorProcessControl().getMemMgr()),
      JD(ES.createBareJITDylib("graphs")), Target(ES.getTargetTriple()),
      Segments({{CodeGroup, {CodeSize, Align(16)}},
                {ConstantGroup, {OtherSize, Align(16)}},
                {DataGroup, {OtherSize, Align(16)}}}) {
  Code.fill(char(0xcc));
  // lea eax, [rdi + Number]; ret. Number is filled in for each graph.
  Code[0] = char(0x8d);
  Code[1] = char(0x87);
  Code[6] = char(0xc3);
  Other.fill(char(0x5a));
}

Expected<SmallGraphs::FinalizedAlloc> SmallGraphs::add(uint32_t Number, ExecutorAddr *CodeAddr) {
  Completion<Expected<SimpleSegmentAlloc>> Created;
  SimpleSegmentAlloc::Create(Manager, ES.getSymbolStringPool(), Target, &JD, Segments,
                             Created.callback());
  Expected<SimpleSegmentAlloc> Graph = Created.wait();
  if (!Graph)
    return Graph.takeError();

  auto CodeSegment = Graph->getSegInfo(CodeGroup);
  memcpy(CodeSegment.WorkingMem.data(), Code.data(), Code.size());
  memcpy(CodeSegment.WorkingMem.data() + 2, &Number, sizeof Number);
  memcpy(Graph->getSegInfo(ConstantGroup).WorkingMem.data(), Other.data(), Other.size());
  memcpy(Graph->getSegInfo(DataGroup).WorkingMem.data(), Other.data(), Other.size());
  if (CodeAddr)
    *CodeAddr = CodeSegment.Addr;

  Completion<Expected<FinalizedAlloc>> Finalized;
  Graph->finalize(Finalized.callback());
  return Finalized.wait();
}

Error SmallGraphs::remove(FinalizedAlloc Alloc) {
  Completion<Error> Done;
  Manager.deallocate(std::move(Alloc), Done.callback());
  return Done.wait();
}

Error SmallGraphs::removeAll(Allocs All) {
  Completion<Error> Done;
  Manager.deallocate(std::move(All), Done.callback());
  return Done.wait();
}

/// Last is set to where the code of the last graph is.
static Error addMany(SmallGraphs &Graphs, unsigned Count, Allocs &Live,
                     ExecutorAddr *Last = nullptr) {
  Live.reserve(Live.size() + Count);
  for (unsigned I = 0; I != Count; ++I) {
    auto Alloc = Graphs.add(I, Last);
    if (!Alloc)
      return Alloc.takeError();
    Live.push_back(std::move(*Alloc));
  }
  return Error::success();
}

static Error removeOneByOne(SmallGraphs &Graphs, Allocs &Live) {
  for (auto &Alloc : Live)
    if (Error Err = Graphs.remove(std::move(Alloc)))
      return Err;
  return Error::success();
}

/// Whatever happened, what is live goes back: the next manager starts from an empty process.
static Error giveBack(SmallGraphs &Graphs, Allocs Live, Error Err) {
  Live.erase(std::remove_if(Live.begin(), Live.end(), [](auto &A) { return !A; }), Live.end());
  if (Live.empty())
    return Err;
  return joinErrors(std::move(Err), Graphs.removeAll(std::move(Live)));
}

static Error runSegments(SmallGraphs &Graphs, Probe &P, Allocs &Live) {
  auto Fill = [&] { return addMany(Graphs, GraphsPerRound, Live); };
  auto Empty = [&] { return removeOneByOne(Graphs, Live); };
  if (Error Err = P.measure(AllocatePhase, GraphsPerRound, Fill))
    return Err;
  P.hold(AllocatePhase, GraphsPerRound);
  if (Error Err = P.measure(DeallocateOldestPhase, GraphsPerRound, Empty))
    return Err;
  Live.clear();

  if (Error Err = Fill())
    return Err;
  std::shuffle(Live.begin(), Live.end(), std::mt19937(1));
  if (Error Err = P.measure(DeallocateRandomPhase, GraphsPerRound, Empty))
    return Err;
  Live.clear();
  return Error::success();
}

Workload segments(const Settings &S) {
  Workload W;
  W.Key = "a";
  W.Title = "The manager alone: SimpleSegmentAlloc, R-X 256 B, R-- 64 B, RW- 64 B, " +
            std::to_string(GraphsPerRound) + " graphs a round";
  W.Operation = "graph";
  W.Rounds = S.rounds(9);
  W.Run = [](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    Allocs Live;
    Error Err = runSegments(Graphs, P, Live);
    return giveBack(Graphs, std::move(Live), std::move(Err));
  };
  return W;
}

static Error runAcross(ExecutionSession &ES, SmallGraphs &Graphs, Probe &P, Allocs &Live) {
  ExecutorAddr Last;
  auto Fill = [&] { return addMany(Graphs, GraphsAcross, Live, &Last); };
  if (Error Err = P.measure(AllocatePhase, GraphsAcross, Fill))
    return Err;
  P.hold(AllocatePhase, GraphsAcross);
#ifdef __x86_64__
  if (Error Err = expectCall(ES, Last, "the last graph", 1, GraphsAcross))
    return Err;
#endif
  auto Empty = [&] { return removeOneByOne(Graphs, Live); };
  if (Error Err = P.measure(DeallocateOldestPhase, GraphsAcross, Empty))
    return Err;
  Live.clear();
  return Error::success();
}

Workload segmentsAcross() {
  Workload W;
  W.Key = "a";
  W.Title = "The manager alone: SimpleSegmentAlloc, R-X 256 B, R-- 64 B, RW- 64 B, no actions, " +
            std::to_string(GraphsAcross) + " graphs a round, one after the other";
  W.Operation = "graph";
  W.Run = [](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    Allocs Live;
    Error Err = runAcross(ES, Graphs, P, Live);
    return giveBack(Graphs, std::move(Live), std::move(Err));
  };
  return W;
}

static Error runChurn(SmallGraphs &Graphs, Probe &P, Allocs &Live) {
  if (Error Err = addMany(Graphs, ChurnLive, Live))
    return Err;
  std::mt19937 Random(2);
  std::uniform_int_distribution<unsigned> Victim(0, ChurnLive - 1);
  auto Step = [&](unsigned Steps) -> Error {
    for (unsigned I = 0; I != Steps; ++I) {
      auto &Slot = Live[Victim(Random)];
      if (Error Err = Graphs.remove(std::move(Slot)))
        return Err;
      auto Alloc = Graphs.add(I);
      if (!Alloc)
        return Alloc.takeError();
      Slot = std::move(*Alloc);
    }
    return Error::success();
  };
  // Steady churn: what only the first steps do is not its cost.
  if (Error Err = Step(ChurnSteps / 10))
    return Err;
  if (Error Err = P.measure(ChurnPhase, ChurnSteps, [&] { return Step(ChurnSteps); }))
    return Err;
  P.hold(ChurnPhase, ChurnLive);
  return Error::success();
}

Workload churn(const Settings &S) {
  Workload W;
  W.Key = "a";
  W.Title = "The manager alone: steady churn, each step deallocates one graph of " +
            std::to_string(ChurnLive) + " chosen at random and allocates and finalizes another";
  W.Operation = "step";
  W.Rounds = S.rounds(9);
  W.Run = [](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    Allocs Live;
    Error Err = runChurn(Graphs, P, Live);
    return giveBack(Graphs, std::move(Live), std::move(Err));
  };
  return W;
}

Workload capacity() {
  Workload W;
  W.Key = "e";
  W.Title = "How many small graphs can be live, up to " + std::to_string(CapacityLimit);
  W.Operation = "graph";
  W.CountSystemCalls = false;
  W.Run = [](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    Allocs Live;
    std::string End = "reached";
    if (Error Err = addMany(Graphs, CapacityLimit, Live))
      End = toString(std::move(Err));
    P.hold(CapacityPhase, Live.size(), End);
    // One by one: at the kernel's limit of mappings there is no memory for a long list either.
    return removeOneByOne(Graphs, Live);
  };
  return W;
}

} // namespace bench
