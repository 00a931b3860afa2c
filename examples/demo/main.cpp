// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Shows in three scenes what a program gains that links code through jitmem, beside LLVM's own
// memory managers.
#include "crash.hpp"
#include "report.hpp"
#include "text.hpp"

#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"

#include <csignal>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;

namespace demo {
namespace {

cl::OptionCategory Category("jitmem-demo");
cl::opt<unsigned> Rounds("rounds", cl::desc("How often to link everything with each manager"),
                         cl::init(6), cl::cat(Category));
cl::opt<bool> InProcess("in-process", cl::desc("Start no other process; link for this one only"),
                        cl::cat(Category));
cl::opt<std::string>
    ExecutorPath("executor",
                 cl::desc("Program that the libraries are linked into, by default jitmem-executor"),
                 cl::value_desc("file"), cl::init(DEMO_EXECUTOR), cl::cat(Category));
cl::opt<bool> StockExecutor("stock-executor",
                            cl::desc("Link the libraries into LLVM's own llvm-jitlink-executor"),
                            cl::cat(Category));
cl::opt<jitmem_in_process_kind> Mapper(
    "mapper", cl::desc("How jitmem gets memory of this process"), cl::init(JITMEM_IN_PROCESS_AUTO),
    cl::values(clEnumValN(JITMEM_IN_PROCESS_AUTO, "auto", "two views where the system allows them"),
               clEnumValN(JITMEM_IN_PROCESS_TWO_VIEWS, "two-views",
                          "two views of the same pages, neither writable and executable"),
               clEnumValN(JITMEM_IN_PROCESS_MPROTECT, "mprotect",
                          "pages whose protection changes")),
    cl::cat(Category));
cl::opt<unsigned> LargeHeap("large-heap",
                            cl::desc("Reserve this much address space first, as a host with a "
                                     "large heap does; 3 is enough to push what the kernel places "
                                     "out of reach of the C library"),
                            cl::value_desc("GiB"), cl::cat(Category));
cl::opt<std::string> LayoutPath("layout", cl::desc("Where to write the picture of the layout"),
                                cl::value_desc("file.svg"), cl::init("layout.svg"),
                                cl::cat(Category));
cl::opt<std::string> DriverPath("driver",
                                cl::desc("Object file with the work to do in linked code"),
                                cl::value_desc("file.o"), cl::init(DEMO_DRIVER), cl::cat(Category));

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

Error runScenes(const Options &O) {
  outs() << "With jitmem, code that a program links while it runs takes less memory, is called "
            "faster,\nneeds few of the kernel's mappings, and can crash without taking the program "
            "along.\n";
  auto Linked = runLibraries(O);
  if (!Linked)
    return Linked.takeError();
  auto Queries = runQueries(O);
  if (!Queries)
    return Queries.takeError();
  if (O.InProcess)
    outs() << "\nScene 3 needs a second process: run the demo without --in-process.\n";
  else if (auto E = runCrash(O))
    return E;
  outs()
      << "\nA picture of scene 1 is in " << O.LayoutPath
      << "\nOpen it in a browser and see how the pieces of many object files share a few chunks.\n";
  printTables(*Linked, O.Rounds);
  printTable(*Queries);
  return Error::success();
}

Error runDemo() {
  if (LargeHeap)
    if (auto E = reserveLargeHeap())
      return E;
  if (StockExecutor)
    ExecutorPath = DEMO_STOCK_EXECUTOR;
  SmallString<128> Layout(LayoutPath);
  sys::fs::make_absolute(Layout);
  if (auto E = runScenes({Rounds, InProcess, ExecutorPath, Mapper, Layout.str().str(), DriverPath}))
    return E;
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
  cl::HideUnrelatedOptions(demo::Category);
  cl::ParseCommandLineOptions(argc, argv,
                              "shows what a program gains that links code through jitmem\n");
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
