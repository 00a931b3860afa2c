// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Links every object of four static libraries through jitmem, for another process and for this one,
// uses the libraries there, and shows what that cost, beside LLVM's own memory managers.
#include "layout.hpp"
#include "managers.hpp"
#include "report.hpp"
#include "text.hpp"

#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"

#include <csignal>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace demo {
namespace {

cl::OptionCategory Options("jitmem-demo");
cl::opt<unsigned> Rounds("rounds", cl::desc("How often to link everything with each manager"),
                         cl::init(5), cl::cat(Options));
cl::opt<bool> InProcess("in-process", cl::desc("Start no other process; link for this one only"),
                        cl::cat(Options));
cl::opt<std::string> ExecutorPath("executor",
                                  cl::desc("Program that runs the linked code, by default "
                                           "jitmem-executor"),
                                  cl::value_desc("file"), cl::init(DEMO_EXECUTOR),
                                  cl::cat(Options));
cl::opt<bool> StockExecutor("stock-executor",
                            cl::desc("Have LLVM's own llvm-jitlink-executor run the linked code"),
                            cl::cat(Options));
cl::opt<jitmem_in_process_kind> Mapper(
    "mapper", cl::desc("How jitmem gets memory of this process"), cl::init(JITMEM_IN_PROCESS_AUTO),
    cl::values(clEnumValN(JITMEM_IN_PROCESS_AUTO, "auto", "two views where the system allows them"),
               clEnumValN(JITMEM_IN_PROCESS_TWO_VIEWS, "two-views",
                          "two views of the same pages, neither writable and executable"),
               clEnumValN(JITMEM_IN_PROCESS_MPROTECT, "mprotect",
                          "pages whose protection changes")),
    cl::cat(Options));
cl::opt<unsigned> LargeHeap("large-heap",
                            cl::desc("Reserve this much address space first, as a host with a "
                                     "large heap does; 3 is enough to push what the kernel places "
                                     "out of reach of the C library"),
                            cl::value_desc("GiB"), cl::cat(Options));
cl::opt<std::string> LayoutPath("layout", cl::desc("Where to write the picture of the layout"),
                                cl::value_desc("file.svg"), cl::init("layout.svg"),
                                cl::cat(Options));
cl::opt<std::string> DriverPath("driver",
                                cl::desc("Object file with the work to do in linked code"),
                                cl::value_desc("file.o"), cl::init(DEMO_DRIVER), cl::cat(Options));

const Library Libraries[] = {
    {"lua", DEMO_LUA, "liblua5.4-dev", "demo_lua"},
    {"sqlite", DEMO_SQLITE, "libsqlite3-dev", "demo_sqlite"},
    {"zlib", DEMO_ZLIB, "zlib1g-dev", "demo_zlib"},
    {"zstd", DEMO_ZSTD, "libzstd-dev", "demo_zstd"},
};

/// Links all libraries and, if that worked, uses them. Inspect sees the session while all is in
/// memory.
Error linkAndUse(Contender &C, Session &S, bool Quiet, function_ref<Error(Session &)> Inspect) {
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
  if (auto E = S.linkDriver(DriverPath))
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
Error runSession(Contender &C, std::unique_ptr<ExecutorProcessControl> EPC, const Executor *Other,
                 bool Quiet, function_ref<Error(Session &)> Inspect) {
  std::unique_ptr<Session> S;
  if (auto E = Session::Create(std::move(EPC), Other, C.Create).moveInto(S))
    return E;
  if (!Quiet) {
    printMapper(S->jitmem()->stats());
    outs() << "Linked through jitmem:\n";
  }
  if (auto E = linkAndUse(C, *S, Quiet, Inspect))
    return E;
  // What failed is told already, and so is why.
  if (auto E = S->end(); E && !C.failure())
    return E;
  else
    consumeError(std::move(E));
  return Error::success();
}

Error runOnce(Contender &C, bool Quiet, function_ref<Error(Session &)> Inspect) {
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
    return runSession(C, std::move(EPC), nullptr, Quiet, Inspect);
  }
  std::unique_ptr<Executor> Other;
  if (auto E = Executor::Start(ExecutorPath).moveInto(Other))
    return E;
  if (!Quiet)
    outs() << "process " << Other->pid() << " runs the linked code: " << ExecutorPath << '\n';
  if (auto E = Other->connect(std::move(Dispatcher)).moveInto(EPC))
    return E;
  auto Failure = runSession(C, std::move(EPC), Other.get(), Quiet, Inspect);
  C.Lookups = Other->lookups();
  return joinErrors(std::move(Failure), Other->waitForEnd());
}

/// Takes address space where the kernel would place what is mapped next. It has no memory behind it
/// and is kept until the process ends.
Error reserveLargeHeap() {
  uint64_t Size = uint64_t(LargeHeap) << 30;
  if (mmap(nullptr, Size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) ==
      MAP_FAILED)
    return createStringError(errnoAsErrorCode(),
                             "cannot reserve %u GiB of address space: %s; choose a smaller heap",
                             unsigned(LargeHeap), errnoAsErrorCode().message().c_str());
  outs() << "Reserved " << bytes(Size) << " of address space first, as a large heap does.\n";
  return Error::success();
}

Error runDemo() {
  if (LargeHeap)
    if (auto E = reserveLargeHeap())
      return E;
  if (StockExecutor)
    ExecutorPath = DEMO_STOCK_EXECUTOR;
  std::vector<Contender> Contenders;
  if (!InProcess)
    Contenders = managersAcross();
  append_range(Contenders, managersInProcess(Mapper));
  Contender &Shown = Contenders.front();
  auto DoNothing = [](Session &) { return Error::success(); };

  if (auto E = runOnce(Shown, /*Quiet=*/false, DoNothing))
    return E;
  // That first run also paid for what happens only once in a process, so it does not count.
  Shown.Libraries.clear();
  Shown.All = {};

  jitmem_stats Stats{};
  for (unsigned Round = 0; Round < Rounds; ++Round)
    for (Contender &C : Contenders) {
      auto Inspect = [&](Session &S) -> Error {
        if (&C != &Shown || Round + 1 < Rounds)
          return Error::success();
        Stats = S.jitmem()->stats();
        return drawLayout(S.jitmem()->handle(), LayoutPath);
      };
      if (!C.failure())
        if (auto E = runOnce(C, /*Quiet=*/true, Inspect))
          return createStringError(C.Name + ": " + toString(std::move(E)));
    }
  printTable(Libraries, Contenders, Rounds);
  printStats(Stats);
  SmallString<128> Place(LayoutPath);
  sys::fs::make_absolute(Place);
  outs() << "\nPicture of the memory: " << Place << '\n';
  printSummary(Contenders);
  if (waitpid(-1, nullptr, WNOHANG) != -1 || errno != ECHILD)
    return createStringError("a process that was started is left over");
  return Error::success();
}

} // namespace
} // namespace demo

int main(int argc, char **argv) {
  demo::keepMallocInHeap();
  // An executor that is gone shall be an error of the call that finds out.
  signal(SIGPIPE, SIG_IGN);
  cl::HideUnrelatedOptions(demo::Options);
  cl::ParseCommandLineOptions(argc, argv,
                              "links real libraries in memory, uses them, and shows the cost\n");
  if (demo::Rounds == 0) {
    errs() << "jitmem-demo: --rounds must be at least 1\n";
    return 2;
  }
  if (auto E = demo::runDemo()) {
    outs().flush();
    errs() << "jitmem-demo: " << toString(std::move(E)) << '\n';
    return 1;
  }
  return 0;
}
