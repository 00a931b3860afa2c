// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "executor.hpp"
#include "session.hpp"
#include "workload.hpp"

#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned Kept = 500;
static constexpr unsigned Peak = 5000;
static constexpr unsigned Steps = 20000;

namespace {

/// Graphs of a query engine's sizes, which differ by orders of magnitude: code of log-normal size
/// with a median of 10 KB, constants a quarter of it, data an eighth.
class Plans {
public:
  explicit Plans(ExecutionSession &ES)
      : ES(ES), Manager(ES.getExecutorProcessControl().getMemMgr()),
        JD(ES.createBareJITDylib("plans")) {}

  /// Makes a plan in the place of what is there.
  Error replace(size_t At) {
    if (At == Live.size())
      Live.emplace_back();
    if (Error Err = removeOne(Live[At]))
      return Err;
    auto CodeSize = size_t(std::clamp(Size(Random), 64.0, 8e6));
    return add(CodeSize, CodeSize / 4 + 16, CodeSize / 8 + 8, Live[At]);
  }

  /// All but Count of them, chosen at random.
  Error removeAllBut(size_t Count) {
    std::shuffle(Live.begin(), Live.end(), Random);
    for (; Live.size() > Count; Live.pop_back())
      if (Error Err = removeOne(Live.back()))
        return Err;
    return Error::success();
  }

  size_t count() const { return Live.size(); }
  uint64_t content() const { return Content; }
  size_t anyOne() { return std::uniform_int_distribution<size_t>(0, Live.size() - 1)(Random); }

private:
  struct Plan {
    JITLinkMemoryManager::FinalizedAlloc Alloc;
    uint64_t Size = 0;
  };

  Error add(size_t Code, size_t Constants, size_t Data, Plan &P) {
    const std::pair<AllocGroup, size_t> Parts[] = {{MemProt::Read | MemProt::Exec, Code},
                                                   {MemProt::Read, Constants},
                                                   {MemProt::Read | MemProt::Write, Data}};
    SimpleSegmentAlloc::SegmentMap Segments;
    for (auto [Group, Bytes] : Parts)
      Segments[Group] = {Bytes, Align(16)};
    Completion<Expected<SimpleSegmentAlloc>> Created;
    SimpleSegmentAlloc::Create(Manager, ES.getSymbolStringPool(), ES.getTargetTriple(), &JD,
                               std::move(Segments), Created.callback());
    Expected<SimpleSegmentAlloc> Graph = Created.wait();
    if (!Graph)
      return Graph.takeError();
    for (auto [Group, Bytes] : Parts)
      memset(Graph->getSegInfo(Group).WorkingMem.data(), 0xcc, Bytes);
    Completion<Expected<JITLinkMemoryManager::FinalizedAlloc>> Finalized;
    Graph->finalize(Finalized.callback());
    auto Alloc = Finalized.wait();
    if (!Alloc)
      return Alloc.takeError();
    P = {std::move(*Alloc), Code + Constants + Data};
    Content += P.Size;
    return Error::success();
  }

  Error removeOne(Plan &P) {
    if (!P.Alloc)
      return Error::success();
    Content -= P.Size;
    Completion<Error> Done;
    Manager.deallocate(std::move(P.Alloc), Done.callback());
    return Done.wait();
  }

  ExecutionSession &ES;
  JITLinkMemoryManager &Manager;
  JITDylib &JD;
  std::vector<Plan> Live;
  uint64_t Content = 0;
  std::mt19937 Random{4};
  std::lognormal_distribution<> Size{9.2, 1.3};
};

} // namespace

static Error runPlans(const Host &H, Plans &All, Probe &P) {
  auto Hold = [&](StringRef Phase) { P.hold(Phase, All.count(), "", All.content()); };
  while (All.count() != Kept)
    if (Error Err = All.replace(All.count()))
      return Err;
  for (unsigned I = 0; I != Steps; ++I)
    if (Error Err = All.replace(All.anyOne()))
      return Err;
  Hold("after steady churn");

  while (All.count() != Peak)
    if (Error Err = All.replace(All.count()))
      return Err;
  if (Error Err = All.removeAllBut(Kept))
    return Err;
  Hold("after a peak");
  if (H.Jitmem) {
    if (Error Err = H.Jitmem->trim().takeError())
      return Err;
    Hold("after a peak, and a call of trim");
  }
  return Error::success();
}

Workload memory() {
  Workload W;
  W.Key = "f";
  W.Title = "Memory that stays in use: plans of a query engine, code of log-normal size, " +
            std::to_string(Kept) + " live through " + std::to_string(Steps) +
            " steps, each of which replaces one; then a peak of " + std::to_string(Peak) +
            ", of which " + std::to_string(Kept) + " stay. The floor, which frees nothing, fails";
  W.Operation = "plan";
  W.CountSystemCalls = false;
  W.Run = [](const Host &H, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    Plans All(ES);
    Error Err = runPlans(H, All, P);
    return joinErrors(std::move(Err), All.removeAllBut(0));
  };
  return W;
}

} // namespace bench
