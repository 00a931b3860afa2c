// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "../peers/trace.hpp"
#include "session.hpp"
#include "workload.hpp"

#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"

#include <algorithm>
#include <cstring>
#include <exception>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned GraphsOfStream = 10000;

using Traces = std::vector<peers::Trace>;

namespace {

/// Plays traces on a manager.
class Player {
public:
  Player(ExecutionSession &ES, const std::string &Name)
      : ES(ES), Manager(ES.getExecutorProcessControl().getMemMgr()),
        JD(ES.createBareJITDylib(Name)) {}

  Error play(const peers::Trace &T) {
    for (const peers::Step &S : T.Steps) {
      if (!S.Adds) {
        if (Error Err = remove(S.Number))
          return Err;
        continue;
      }
      Expected<Alloc> Added = add(S.Size);
      if (!Added)
        return Added.takeError();
      Live.push_back(std::move(*Added));
    }
    return Error::success();
  }

  Error removeAll() {
    Error Err = Error::success();
    for (size_t I = 0; I != Live.size(); ++I)
      if (Live[I])
        Err = joinErrors(std::move(Err), remove(I));
    Live.clear();
    return Err;
  }

private:
  using Alloc = JITLinkMemoryManager::FinalizedAlloc;

  Expected<Alloc> add(const peers::Plan &P) {
    const std::pair<AllocGroup, uint32_t> Parts[] = {{MemProt::Read | MemProt::Exec, P.Code},
                                                     {MemProt::Read, P.Constants},
                                                     {MemProt::Read | MemProt::Write, P.Data}};
    SimpleSegmentAlloc::SegmentMap Segments;
    for (auto [Group, Bytes] : Parts)
      if (Bytes)
        Segments[Group] = {Bytes, Align(16)};
    Completion<Expected<SimpleSegmentAlloc>> Created;
    SimpleSegmentAlloc::Create(Manager, ES.getSymbolStringPool(), ES.getTargetTriple(), &JD,
                               std::move(Segments), Created.callback());
    Expected<SimpleSegmentAlloc> Graph = Created.wait();
    if (!Graph)
      return Graph.takeError();
    for (auto [Group, Bytes] : Parts)
      if (Bytes)
        memset(Graph->getSegInfo(Group).WorkingMem.data(), 0xcc, Bytes);
    Completion<Expected<Alloc>> Finalized;
    Graph->finalize(Finalized.callback());
    return Finalized.wait();
  }

  Error remove(size_t Number) {
    Completion<Error> Done;
    Manager.deallocate(std::move(Live[Number]), Done.callback());
    return Done.wait();
  }

  ExecutionSession &ES;
  JITLinkMemoryManager &Manager;
  JITDylib &JD;
  std::vector<Alloc> Live;
};

} // namespace

static Expected<std::shared_ptr<Traces>> readTraces() {
  try {
    return std::make_shared<Traces>(peers::allTraces(JITMEM_BENCH_TRACES, GraphsOfStream));
  } catch (const std::exception &E) {
    return createStringError(E.what());
  }
}

Expected<Workload> traces(const Settings &S) {
  auto All = readTraces();
  if (!All)
    return All.takeError();
  Workload W;
  W.Key = "t";
  W.Title = "Recorded programs: the graphs' sizes, and the order in which they come and go";
  W.Operation = "graph";
  W.Rounds = S.rounds(5);
  W.CountSystemCalls = false;
  W.Run = [All = *All](const Host &, ExecutionSession &ES, Probe &P,
                       std::shared_ptr<void> &) -> Error {
    for (const peers::Trace &T : *All) {
      Player Played(ES, T.Name);
      auto Graphs = std::count_if(T.Steps.begin(), T.Steps.end(),
                                  [](const peers::Step &Step) { return Step.Adds; });
      Error Err = P.measure(T.Name, uint64_t(Graphs), [&] { return Played.play(T); });
      if ((Err = joinErrors(std::move(Err), Played.removeAll())))
        return Err;
    }
    return Error::success();
  };
  return W;
}

} // namespace bench
