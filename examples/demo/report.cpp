// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "report.hpp"
#include "text.hpp"

#include "llvm/Support/Format.h"

using namespace llvm;

namespace demo {

void printMapper(const jitmem_stats &Stats) {
  outs() << "jitmem's mapper: " << Stats.mapper_name << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_WAY)
    outs() << "  note: a better way was not taken, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_MPROTECT)
    outs() << "  note: pages change protection, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW)
    outs() << "  note: the window is of " << bytes(Stats.reserved)
           << " only, since address space is limited\n";
  if (Stats.fallbacks & JITMEM_FALLBACK_OUT_OF_REACH)
    outs() << "  note: the window is out of 32-bit reach of the C library, since no gap near\n"
              "  it is wide enough; objects that refer to its data directly fail to link\n";
  if (!Stats.fallbacks)
    outs() << "  nothing better had to be given up\n";
}

void printStats(const jitmem_stats &Stats) {
  outs() << "\njitmem with all of it linked:\n"
         << "  " << bytes(Stats.reserved) << " of address space reserved\n"
         << "  " << bytes(Stats.committed) << " committed, in " << Stats.chunks << " chunks\n"
         << "  " << bytes(Stats.live) << " in use by " << Stats.finalized
         << " allocations (the driver is one), and " << bytes(Stats.padding) << " of padding\n"
         << "  " << bytes(Stats.free) << " free\n";
  if (Stats.mapper == JITMEM_MAPPER_SHARED)
    outs() << "  " << Stats.messages << " messages, " << bytes(Stats.message_bytes)
           << ", through a channel of its own, and the others by EPC\n";
}

static void printOutcome(StringRef Label, const Contender &C, const Outcome &O) {
  outs() << formatv("  {0,-8}{1,-18}", Label, C.Name);
  if (!O.Failure.empty()) {
    outs() << "failed, see below\n";
  } else if (O.Runs.empty()) {
    outs() << "not all linked\n";
  } else {
    Figures F = O.median();
    outs() << format("%7zu %8.1f ms %10s %10s %8lld %10s %8s\n", F.Objects, F.Milliseconds,
                     bytes(F.Content).c_str(), bytes(F.Memory).c_str(),
                     static_cast<long long>(F.Mappings), bytes(F.Distance).c_str(),
                     C.IsAcross ? std::to_string(F.Messages).c_str() : "-");
  }
}

// Lookups of symbols by one session, with every manager about the same.
static std::string lookups(ArrayRef<Contender> Contenders) {
  uint64_t Fewest = UINT64_MAX, Most = 0;
  for (const Contender &C : Contenders) {
    if (!C.IsAcross)
      continue;
    Fewest = std::min(Fewest, C.Lookups.Messages);
    Most = std::max(Most, C.Lookups.Messages);
  }
  return formatv(Fewest == Most ? "{0}" : "{0} to {1}", Fewest, Most);
}

static void explain(ArrayRef<Contender> Contenders) {
  bool IsAcross = Contenders.front().IsAcross;
  outs() << "\n"
            "  content   bytes that the linker wrote\n"
            "  memory    pages really used, each counted once, as the kernel counts them (Pss)\n"
            "  mappings  lines of /proc/PID/maps\n"
            "  distance  from the lowest to the highest byte of linked code and data\n";
  if (IsAcross)
    outs() << "  messages  to the executor, each with an answer, by EPC or a channel of the\n"
              "            manager's own; looking symbols up took "
           << lookups(Contenders) << " more with any manager\n";
  outs()
      << "A library's figures are what it added; those of all include making the manager.\n"
      << (IsAcross ? "Memory and mappings are of both processes, where there are two.\n" : "")
      << "jitmem's distance is that from the bottom of its window, where code lies, to the top,\n"
         "where data lies: 32-bit references reach across it, and it never gets wider.\n"
         "Members that define no symbol are left out. All managers ran in turns, under\n"
         "InPlaceTaskDispatcher, and each with the same work:\n\n";
  for (const Contender &C : Contenders)
    outs() << formatv("  {0,-18}{1}\n", C.Name, C.Class);
}

void printTable(ArrayRef<Library> Libraries, ArrayRef<Contender> Contenders, unsigned Rounds) {
  outs() << "\nWhat it cost (medians of " << Rounds << (Rounds == 1 ? " round" : " rounds")
         << "):\n\n"
         << "                            objects   link time    content     memory mappings"
            "     widest messages\n"
            "                                                                              "
            "   distance\n";
  for (size_t I = 0; I < Libraries.size(); ++I)
    for (const Contender &C : Contenders)
      printOutcome(&C == Contenders.begin() ? StringRef(Libraries[I].Name) : "", C, C.Libraries[I]);
  for (const Contender &C : Contenders)
    printOutcome(&C == Contenders.begin() ? "all" : "", C, C.All);
  for (const Contender &C : Contenders)
    for (auto [Lib, Result] : zip(Libraries, C.Libraries))
      if (!Result.Failure.empty())
        outs() << "\n" << C.Name << " failed on " << Lib.Name << ": " << Result.Failure << '\n';
  explain(Contenders);
}

void printSummary(ArrayRef<Contender> Contenders) {
  outs() << '\n';
  for (const Contender &C : Contenders) {
    outs() << formatv("{0,-18}{1,-16}", C.Name, C.IsAcross ? "another process" : "this process");
    if (C.All.Runs.empty()) {
      outs() << "failed\n";
      continue;
    }
    Figures F = C.All.median();
    outs() << format("%8.1f ms %9s %6llu messages %10s\n", F.Milliseconds, bytes(F.Memory).c_str(),
                     static_cast<unsigned long long>(F.Messages), bytes(F.MessageBytes).c_str());
  }
}

} // namespace demo
