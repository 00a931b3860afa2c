// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "segments.hpp"
#include "system_error.hpp"
#include "workload.hpp"

#include <cerrno>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned LiveGraphs = 10000;
static constexpr unsigned Forks = 3;

/// Forks, and waits for the end of the child, which runs InChild.
static Error forkOnce(function_ref<bool()> InChild) {
  pid_t Child = fork();
  if (Child < 0)
    return systemError(errno, "fork");
  if (Child == 0)
    _exit(InChild() ? 0 : 1);
  int Status = 0;
  while (waitpid(Child, &Status, 0) < 0)
    if (errno != EINTR)
      return systemError(errno, "waitpid");
  if (Status)
    return createStringError("a forked child could not link: its status is %d", Status);
  return Error::success();
}

static Error forkOften(function_ref<bool()> InChild) {
  for (unsigned I = 0; I != Forks; ++I)
    if (Error Err = forkOnce(InChild))
      return Err;
  return Error::success();
}

static Error runForks(SmallGraphs &Graphs, Probe &P,
                      std::vector<SmallGraphs::FinalizedAlloc> &Live) {
  for (unsigned I = 0; I != LiveGraphs; ++I) {
    auto Alloc = Graphs.add(I);
    if (!Alloc)
      return Alloc.takeError();
    Live.push_back(std::move(*Alloc));
  }
  if (Error Err = P.measure("fork, and the child exits", Forks,
                            [&] { return forkOften([] { return true; }); }))
    return Err;
  auto Link = [&] {
    auto Alloc = Graphs.add(LiveGraphs);
    if (!Alloc) {
      consumeError(Alloc.takeError());
      return false;
    }
    Alloc->release(); // the child's end gives it back
    return true;
  };
  return P.measure("fork, and the child makes its first graph", Forks,
                   [&] { return forkOften(Link); });
}

Workload forks(const Settings &S) {
  Workload W;
  W.Key = "g";
  W.Title = "Forks of a process that has " + std::to_string(LiveGraphs) +
            " graphs like those of (a); the time that passes until the child has ended";
  W.Operation = "fork";
  W.Rounds = S.rounds(5);
  W.CountSystemCalls = false;
  W.InChildren = true;
  W.Run = [](const Host &, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &) {
    SmallGraphs Graphs(ES);
    std::vector<SmallGraphs::FinalizedAlloc> Live;
    Error Err = runForks(Graphs, P, Live);
    if (Live.empty())
      return Err;
    return joinErrors(std::move(Err), Graphs.removeAll(std::move(Live)));
  };
  return W;
}

} // namespace bench
