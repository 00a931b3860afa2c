// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "report.hpp"
#include "text.hpp"

#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;

namespace demo {

static void printOutcome(const Contender &C, const Outcome &O) {
  outs() << formatv("  {0,-18}", C.Name);
  if (!O.Failure.empty()) {
    outs() << "  failed: " << O.Failure << '\n';
  } else if (O.Runs.empty()) {
    outs() << "  not all linked\n";
  } else {
    Figures F = O.median();
    outs() << formatv("{0,9:f1} ms{1,11}{2,10}", F.Milliseconds, bytes(F.Memory), F.Mappings);
    if (C.IsAcross)
      outs() << formatv("{0,10}{1,11}", F.Messages, bytes(F.MessageBytes));
    outs() << '\n';
  }
}

/// One line per manager; Get takes what is shown out of a contender.
static void printGroup(StringRef Name, ArrayRef<Contender> Contenders,
                       function_ref<const Outcome &(const Contender &)> Get) {
  const Outcome &First = Get(Contenders.front());
  outs() << '\n' << Name;
  if (!First.Runs.empty())
    outs() << formatv(": {0} objects, {1}", First.Runs.front().Objects,
                      bytes(First.Runs.front().Content));
  outs() << '\n';
  for (const Contender &C : Contenders)
    printOutcome(C, Get(C));
}

static void explainColumns(ArrayRef<Contender> Contenders) {
  bool IsAcross = Contenders.front().IsAcross;
  outs() << "\n"
            "  memory    pages in use, each counted once, as the kernel counts them (Pss)\n"
            "  mappings  lines of /proc/PID/maps for linked code and data\n";
  if (IsAcross)
    outs() << "  messages  to the second process, each with an answer, and their bytes\n"
              "Memory and mappings are of both processes, where there are two.\n";
  outs() << "A library's figures are what it added; those of all include making the manager.\n"
            "All managers ran in turns, under InPlaceTaskDispatcher. They are:\n\n";
  for (const Contender &C : Contenders)
    outs() << formatv("  {0,-18}  {1}\n", C.Name, C.Class);
}

static void noteFallbacks(raw_ostream &OS, const jitmem_stats &Stats) {
  if (Stats.fallbacks & JITMEM_FALLBACK_WAY)
    OS << "  note: a better way was not taken, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_MPROTECT)
    OS << "  note: pages change protection, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW)
    OS << "  note: the window is of " << bytes(Stats.reserved)
       << " only, since address space is limited\n";
  if (Stats.fallbacks & JITMEM_FALLBACK_OUT_OF_REACH)
    OS << "  note: the window is out of 32-bit reach of the C library, since no gap near\n"
          "  it is wide enough; objects that refer to its data directly fail to link\n";
}

std::string describe(const jitmem_stats &Stats) {
  std::string Text;
  raw_string_ostream OS(Text);
  OS << "jitmem's memory is " << Stats.mapper_name << ":\n"
     << "  " << bytes(Stats.reserved) << " of address space reserved\n"
     << "  " << bytes(Stats.committed) << " committed, in " << Stats.chunks << " chunks\n"
     << "  " << bytes(Stats.live) << " in use by " << Stats.finalized
     << " objects (the demo's own is one), and " << bytes(Stats.padding) << " of padding\n"
     << "  " << bytes(Stats.free) << " free\n";
  if (Stats.mapper == JITMEM_MAPPER_SHARED)
    OS << "  " << Stats.messages << " messages, " << bytes(Stats.message_bytes)
       << ", through a channel of its own, and the others by EPC\n";
  noteFallbacks(OS, Stats);
  return Text;
}

void printTables(const LibrariesOutcome &Out, unsigned Rounds) {
  ArrayRef<Contender> Contenders = Out.Contenders;
  outs() << formatv("\nTables of scene 1 (medians of {0} round{1})\n\n", Rounds,
                    Rounds == 1 ? "" : "s")
         << "                      link time     memory  mappings"
         << (Contenders.front().IsAcross ? "  messages      bytes" : "") << '\n';
  for (auto [Index, Lib] : enumerate(libraries()))
    printGroup(Lib.Name, Contenders, [Index = Index](const Contender &C) -> const Outcome & {
      return C.Libraries[Index];
    });
  printGroup("all", Contenders, [](const Contender &C) -> const Outcome & { return C.All; });
  explainColumns(Contenders);
  outs() << '\n' << Out.Memory;
}

void printTable(ArrayRef<QueryFigures> Queries) {
  outs() << formatv("\nTable of scene 2\n\n"
                    "                       function     a call     memory  mappings  most live\n");
  for (const QueryFigures &F : Queries)
    outs() << formatv("  {0,-18}{1,8:f1} µs{2,8:f1} ns{3,11}{4,10}{5,11:N}\n", F.Name,
                      F.CompileMicroseconds, F.CallNanoseconds, bytes(F.Kept.Bytes),
                      F.Kept.Mappings, F.MostLive);
  outs() << formatv(
      "\n"
      "  function   to link, call and drop one, with {0} live\n"
      "  a call     in random order, with {1:N} live\n"
      "  memory     pages in use by these {1:N}; mappings likewise\n"
      "  most live  when the demo stopped at {2:N}, or the manager failed\n"
      "Each function has constants and data too. Six shapes of it were compiled from IR; every\n"
      "function is a copy of such an object file with a name and constants of its own, linked by\n"
      "ObjectLinkingLayer under a ResourceTracker of its own. Every answer was checked.\n",
      Counts.Live, Counts.Kept, Counts.Most);
}

} // namespace demo
