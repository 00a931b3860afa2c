// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "segments.hpp"
#include "workload.hpp"

#include <algorithm>
#include <random>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

std::string callPhase(unsigned Functions) {
  return "call " + std::to_string(Functions) + " functions in random order";
}

static constexpr unsigned Passes = 30;

using Function = int (*)(int);

static Error callAll(const std::vector<Function> &Functions, unsigned Times) {
  uint32_t Sum = 0;
  for (unsigned Pass = 0; Pass != Times; ++Pass)
    for (Function F : Functions)
      Sum += uint32_t(F(int(Pass)));
  // Function number i gives i + Pass.
  uint64_t N = Functions.size();
  uint32_t Expected = uint32_t(Times * (N * (N - 1) / 2) + N * (uint64_t(Times) * (Times - 1) / 2));
  if (Sum != Expected)
    return createStringError("linked code is wrong: the sum of all calls is %u, not %u", Sum,
                             Expected);
  return Error::success();
}

static Error runCalls(SmallGraphs &Graphs, Probe &P, unsigned Count,
                      std::vector<SmallGraphs::FinalizedAlloc> &Live) {
  std::vector<Function> Functions;
  for (unsigned I = 0; I != Count; ++I) {
    ExecutorAddr Code;
    auto Alloc = Graphs.add(I, &Code);
    if (!Alloc)
      return Alloc.takeError();
    Live.push_back(std::move(*Alloc));
    Functions.push_back(Code.toPtr<Function>());
  }
  std::shuffle(Functions.begin(), Functions.end(), std::mt19937(3));
  if (Error Err = callAll(Functions, 1))
    return Err;
  std::string Phase = callPhase(Count);
  if (Error Err =
          P.measure(Phase, uint64_t(Count) * Passes, [&] { return callAll(Functions, Passes); }))
    return Err;
  P.hold(Phase, Count);
  return Error::success();
}

Expected<Workload> calls(const Settings &S, unsigned Functions) {
#ifndef __x86_64__
  return createStringError("workload d: the functions are x86-64 machine code");
#endif
  Workload W;
  W.Key = "d";
  W.Title = "Running linked code: " + std::to_string(Functions) +
            " tiny functions, each in a graph of its own like those of (a)";
  W.Operation = "call";
  W.Rounds = S.rounds(7);
  W.CountSystemCalls = false;
  W.Run = [Functions](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    std::vector<SmallGraphs::FinalizedAlloc> Live;
    Error Err = runCalls(Graphs, P, Functions, Live);
    if (Live.empty())
      return Err;
    return joinErrors(std::move(Err), Graphs.removeAll(std::move(Live)));
  };
  return W;
}

} // namespace bench
