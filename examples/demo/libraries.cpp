// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "libraries.hpp"
#include "layout.hpp"
#include "managers.hpp"
#include "report.hpp"
#include "text.hpp"

#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"

#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace demo {

namespace {

const Library Libraries[] = {
    {"lua", DEMO_LUA, "liblua5.4-dev", "demo_lua"},
    {"sqlite", DEMO_SQLITE, "libsqlite3-dev", "demo_sqlite"},
    {"zlib", DEMO_ZLIB, "zlib1g-dev", "demo_zlib"},
    {"zstd", DEMO_ZSTD, "libzstd-dev", "demo_zstd"},
};

/// Links all libraries and, if that worked, uses them. Inspect sees the session while all is in
/// memory.
Error linkAndUse(const Options &O, Contender &C, Session &S, bool Quiet,
                 function_ref<Error(Session &)> Inspect) {
  for (auto [Lib, Result] : zip(Libraries, C.Libraries)) {
    Result.record(S.link(Lib));
    if (!Quiet && Result.Failure.empty())
      outs() << format("  %-8s%4zu objects of ", Lib.Name.c_str(), Result.Runs.back().Objects)
             << Lib.Archive << '\n';
  }
  if (!C.failure())
    C.All.record(S.total());
  if (const std::string *Failure = C.failure()) {
    C.All.Runs.clear();
    return S.jitmem() ? createStringError(*Failure) : Error::success();
  }
  if (auto E = S.linkDriver(O.DriverPath))
    return E;
  if (!Quiet)
    outs() << "\nUsed in the linked code, answers checked:\n";
  for (const Library &Lib : Libraries) {
    // The driver writes to the same place through a stream of its own.
    outs().flush();
    if (auto E = S.run(Lib, Quiet))
      return E;
  }
  return Inspect(S);
}

/// One session, from the making of the manager to its end.
Error runSession(const Options &O, Contender &C, std::unique_ptr<ExecutorProcessControl> EPC,
                 const Executor *Other, bool Quiet, function_ref<Error(Session &)> Inspect) {
  std::unique_ptr<Session> S;
  if (auto E = Session::Create(std::move(EPC), Other, C.Create).moveInto(S))
    return E;
  if (!Quiet) {
    printMapper(S->jitmem()->stats());
    outs() << "Linked through jitmem:\n";
  }
  if (auto E = linkAndUse(O, C, *S, Quiet, Inspect))
    return E;
  // What failed is told already, and so is why.
  if (auto E = S->end(); E && !C.failure())
    return E;
  else
    consumeError(std::move(E));
  return Error::success();
}

Error runOnce(const Options &O, Contender &C, bool Quiet, function_ref<Error(Session &)> Inspect) {
  C.Libraries.resize(std::size(Libraries));
  if (!Quiet)
    outs() << "Process " << getpid() << " links, and ";
  // In place, so that all managers run under the same, simplest dispatcher.
  auto Dispatcher = std::make_unique<InPlaceTaskDispatcher>();
  std::unique_ptr<ExecutorProcessControl> EPC;
  if (!C.IsAcross) {
    if (!Quiet)
      outs() << "runs the linked code itself\n";
    if (auto E = SelfExecutorProcessControl::Create(nullptr, std::move(Dispatcher)).moveInto(EPC))
      return E;
    return runSession(O, C, std::move(EPC), nullptr, Quiet, Inspect);
  }
  std::unique_ptr<Executor> Other;
  if (auto E = Executor::Start(O.ExecutorPath).moveInto(Other))
    return E;
  if (!Quiet)
    outs() << "process " << Other->pid() << " runs the linked code: " << O.ExecutorPath << '\n';
  if (auto E = Other->connect(std::move(Dispatcher)).moveInto(EPC))
    return E;
  auto Failure = runSession(O, C, std::move(EPC), Other.get(), Quiet, Inspect);
  C.Lookups = Other->lookups();
  return joinErrors(std::move(Failure), Other->waitForEnd());
}

} // namespace

Error linkLibraries(const Options &O) {
  std::vector<Contender> Contenders;
  if (!O.InProcess)
    Contenders = managersAcross();
  append_range(Contenders, managersInProcess(O.Mapper));
  Contender &Shown = Contenders.front();
  auto DoNothing = [](Session &) { return Error::success(); };

  if (auto E = runOnce(O, Shown, /*Quiet=*/false, DoNothing))
    return E;
  // That first run also paid for what happens only once in a process, so it does not count.
  Shown.Libraries.clear();
  Shown.All = {};

  jitmem_stats Stats{};
  for (unsigned Round = 0; Round < O.Rounds; ++Round)
    for (Contender &C : Contenders) {
      auto Inspect = [&](Session &S) -> Error {
        if (&C != &Shown || Round + 1 < O.Rounds)
          return Error::success();
        Stats = S.jitmem()->stats();
        return drawLayout(S.jitmem()->handle(), O.LayoutPath);
      };
      if (!C.failure())
        if (auto E = runOnce(O, C, /*Quiet=*/true, Inspect))
          return createStringError(C.Name + ": " + toString(std::move(E)));
    }
  printTable(Libraries, Contenders, O.Rounds);
  printStats(Stats);
  SmallString<128> Place(O.LayoutPath);
  sys::fs::make_absolute(Place);
  outs() << "\nPicture of the memory: " << Place << '\n';
  printSummary(Contenders);
  return Error::success();
}

} // namespace demo
