// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Links every object of four static libraries through jitmem, uses the libraries, and shows what
// that cost, beside LLVM's own memory manager.
#include "layout.hpp"
#include "session.hpp"
#include "text.hpp"

#include <jitmem/orc.hpp>

#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"

#include <optional>
#include <sys/mman.h>

using namespace llvm;
using namespace llvm::orc;

namespace demo {
namespace {

cl::OptionCategory Options("jitmem-demo");
cl::opt<unsigned> Rounds("rounds", cl::desc("How often to link everything with each manager"),
                         cl::init(5), cl::cat(Options));
cl::opt<jitmem_in_process_kind> Mapper(
    "mapper", cl::desc("How jitmem gets memory"), cl::init(JITMEM_IN_PROCESS_AUTO),
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

/// What became of one library, or of all together, with one manager.
struct Outcome {
  std::optional<Figures> Cost;
  std::string Failure;
  std::vector<double> Times;

  void record(Expected<Figures> F) {
    if (F) {
      Cost = *F;
      Times.push_back(F->Milliseconds);
    } else {
      Failure = toString(F.takeError());
    }
  }
};

/// One memory manager and how it did.
struct Contender {
  std::string Name;
  Session::CreateMemoryManager CreateMemMgr;
  std::vector<Outcome> Libraries = std::vector<Outcome>(std::size(demo::Libraries));
  Outcome All = {};

  const std::string *failure() const {
    for (const Outcome &O : Libraries)
      if (!O.Failure.empty())
        return &O.Failure;
    return All.Failure.empty() ? nullptr : &All.Failure;
  }
};

/// Links all libraries and, if that worked, uses them. Inspect sees the session while all is in
/// memory.
Error runOnce(Contender &C, bool Quiet, function_ref<Error()> Inspect) {
  // In place, so that both managers run under the same, simplest dispatcher.
  auto EPC = SelfExecutorProcessControl::Create(nullptr, std::make_unique<InPlaceTaskDispatcher>());
  if (!EPC)
    return EPC.takeError();
  auto S = Session::Create(std::move(*EPC), C.CreateMemMgr);
  if (!S)
    return S.takeError();
  for (auto [Lib, Result] : zip(Libraries, C.Libraries)) {
    Result.record((*S)->link(Lib));
    if (!Quiet && Result.Cost)
      outs() << format("  %-8s%4zu objects of ", Lib.Name.c_str(), Result.Cost->Objects)
             << Lib.Archive << '\n';
  }
  if (C.failure()) {
    C.All = {};
    return Error::success();
  }
  C.All.record((*S)->total());
  if (C.failure())
    return Error::success();
  if (auto E = (*S)->linkDriver(DriverPath))
    return E;
  if (!Quiet)
    outs() << "\nUsed in the linked code, answers checked:\n";
  for (const Library &Lib : Libraries) {
    // The driver writes to the same place through a stream of its own.
    outs().flush();
    if (auto E = (*S)->run(Lib, Quiet))
      return E;
  }
  return Inspect();
}

double median(std::vector<double> Values) {
  llvm::sort(Values);
  size_t Half = Values.size() / 2;
  return Values.size() % 2 ? Values[Half] : (Values[Half - 1] + Values[Half]) / 2;
}

void printOutcome(StringRef Label, const Contender &C, const Outcome &O) {
  outs() << formatv("  {0,-8}{1,-11}", Label, C.Name);
  if (!O.Failure.empty())
    outs() << "failed, see below\n";
  else if (O.Cost)
    outs() << format("%7zu %7.1f ms %10s %10s %9lld %10s\n", O.Cost->Objects, median(O.Times),
                     bytes(O.Cost->Content).c_str(), bytes(O.Cost->Memory).c_str(),
                     static_cast<long long>(O.Cost->Mappings), bytes(O.Cost->Distance).c_str());
  else
    outs() << "not all linked\n";
}

void printTable(const Contender &Jitmem, const Contender &Stock) {
  outs() << "\nWhat it cost (link time: median of " << Rounds
         << (Rounds == 1 ? " round" : " rounds") << "):\n\n"
         << "                     objects  link time    content     memory  mappings     widest\n"
         << "                                                                          distance\n";
  for (size_t I = 0; I < std::size(Libraries); ++I) {
    printOutcome(Libraries[I].Name, Jitmem, Jitmem.Libraries[I]);
    printOutcome("", Stock, Stock.Libraries[I]);
  }
  printOutcome("all", Jitmem, Jitmem.All);
  printOutcome("", Stock, Stock.All);
  for (auto [Lib, Result] : zip(Libraries, Stock.Libraries))
    if (!Result.Failure.empty())
      outs() << "\n" << Stock.Name << " failed on " << Lib.Name << ": " << Result.Failure << '\n';
  outs() << "\n"
            "  content   bytes that the linker wrote\n"
            "  memory    pages really used, each counted once, as the kernel counts them (Pss)\n"
            "  mappings  lines of /proc/self/maps\n"
            "  distance  from the lowest to the highest byte of linked code and data\n"
            "A library's memory and mappings are what it added. Those of all include what the\n"
            "manager took when it was made. jitmem's distance is that from the bottom of its\n"
            "window, where code lies, to the top, where data lies: 32-bit references reach across\n"
            "it, and it never gets wider. LLVM is its InProcessMemoryManager, whose distance is\n"
            "the kernel's choice. Both ran in one thread, under InPlaceTaskDispatcher, in turns.\n";
}

/// Tells which mapper the manager uses and what it had to make do with.
void printMapper(const jitmem_stats &Stats) {
  outs() << "Linked through jitmem (" << Stats.mapper_name << "):\n";
  if (Stats.fallbacks & JITMEM_FALLBACK_MPROTECT)
    outs() << "  note: pages change protection, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW)
    outs() << "  note: the window is of " << bytes(Stats.reserved)
           << " only, since address space is limited\n";
  if (Stats.fallbacks & JITMEM_FALLBACK_OUT_OF_REACH)
    outs() << "  note: the window is out of 32-bit reach of the C library, since no gap near\n"
              "  it is wide enough; objects that refer to its data directly fail to link\n";
}

void printStats(const jitmem_stats &Stats) {
  outs() << "\njitmem with all of it linked:\n"
         << "  " << bytes(Stats.reserved) << " of address space reserved\n"
         << "  " << bytes(Stats.committed) << " committed, in " << Stats.chunks << " chunks\n"
         << "  " << bytes(Stats.live) << " in use by " << Stats.finalized
         << " allocations (the driver is one), and " << bytes(Stats.padding) << " of padding\n"
         << "  " << bytes(Stats.free) << " free\n";
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
  jitmem::orc::Options Choices;
  Choices.Mapper = Mapper;
  jitmem::orc::MemoryManager *Live = nullptr;
  Contender Jitmem{
      "jitmem",
      [&](ExecutorProcessControl &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
        auto MemMgr = jitmem::orc::MemoryManager::Create(EPC, Choices);
        if (!MemMgr)
          return MemMgr.takeError();
        if (!std::exchange(Live, MemMgr->get()))
          printMapper(Live->stats());
        return std::move(*MemMgr);
      }};
  Contender Stock{
      "LLVM", [](ExecutorProcessControl &) { return jitlink::InProcessMemoryManager::Create(); }};
  auto DoNothing = [] { return Error::success(); };

  if (auto E = runOnce(Jitmem, /*Quiet=*/false, DoNothing))
    return E;
  if (const std::string *Failure = Jitmem.failure())
    return createStringError(*Failure);

  // That first run also paid for what happens only once in a process, so its times are left out.
  Jitmem.All.Times.clear();
  for (Outcome &O : Jitmem.Libraries)
    O.Times.clear();
  jitmem_stats Stats{};
  for (unsigned Round = 0; Round < Rounds; ++Round) {
    if (!Stock.failure())
      if (auto E = runOnce(Stock, /*Quiet=*/true, DoNothing))
        return E;
    auto Inspect = [&]() -> Error {
      if (Round + 1 < Rounds)
        return Error::success();
      Stats = Live->stats();
      return drawLayout(Live->handle(), LayoutPath);
    };
    if (auto E = runOnce(Jitmem, /*Quiet=*/true, Inspect))
      return E;
    if (const std::string *Failure = Jitmem.failure())
      return createStringError(*Failure);
  }
  printTable(Jitmem, Stock);
  printStats(Stats);
  SmallString<128> Place(LayoutPath);
  sys::fs::make_absolute(Place);
  outs() << "\nPicture of the memory: " << Place << '\n';
  return Error::success();
}

} // namespace
} // namespace demo

int main(int argc, char **argv) {
  demo::keepMallocInHeap();
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
