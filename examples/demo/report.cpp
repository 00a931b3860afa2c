// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "report.hpp"
#include "text.hpp"

#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

using namespace llvm;

namespace demo {

static void printOutcome(const MeasuredManager &M, const Outcome &O) {
  outs() << formatv("  {0,-18}", M.Name);
  if (!O.Failure.empty()) {
    outs() << "  failed: " << O.Failure << '\n';
  } else if (O.Runs.empty()) {
    outs() << "  not all linked\n";
  } else {
    Figures F = O.median();
    outs() << formatv("{0,9:f1} ms{1,11}{2,10}", F.Milliseconds, bytes(F.Memory), F.Mappings);
    if (M.IsAcross)
      outs() << formatv("{0,10}{1,11}", F.Messages, bytes(F.MessageBytes));
    outs() << '\n';
  }
}

/// One line per manager; Get takes what is shown out of a manager.
static void printGroup(StringRef Name, ArrayRef<MeasuredManager> Managers,
                       function_ref<const Outcome &(const MeasuredManager &)> Get) {
  const Outcome &First = Get(Managers.front());
  outs() << '\n' << Name;
  if (!First.Runs.empty())
    outs() << formatv(": {0} objects, {1}", First.Runs.front().Objects,
                      bytes(First.Runs.front().Content));
  outs() << '\n';
  for (const MeasuredManager &M : Managers)
    printOutcome(M, Get(M));
}

static void explainColumns(ArrayRef<MeasuredManager> Managers) {
  bool IsAcross = Managers.front().IsAcross;
  outs() << "\n"
            "  memory    pages in use, each counted once, as the kernel counts them (Pss)\n"
            "  mappings  lines of /proc/PID/maps for linked code and data\n";
  if (IsAcross)
    outs() << "  messages  to the second process, each with an answer, and their bytes\n"
              "Memory and mappings are of both processes, where there are two.\n";
  outs() << "A library's figures are what it added; those of all include making the manager.\n"
            "All managers ran in turns, under InPlaceTaskDispatcher. They are:\n\n";
  for (const MeasuredManager &M : Managers)
    outs() << formatv("  {0,-18}  {1}\n", M.Name, M.Class);
}

static void noteFallbacks(raw_ostream &OS, const jitmem_stats &Stats) {
  if (Stats.fallbacks & JITMEM_FALLBACK_SECOND_BEST)
    OS << "  note: a better way was not taken, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_MPROTECT)
    OS << "  note: pages change protection, since " << Stats.fallback_reason << '\n';
  if (Stats.fallbacks & JITMEM_FALLBACK_SMALLER_WINDOW)
    OS << "  note: the window is of " << bytes(Stats.reserved)
       << " only, since address space is limited\n";
  if (Stats.fallbacks & JITMEM_FALLBACK_OUT_OF_REACH)
    OS << "  note: the window is out of 32-bit reach of the M library, since no gap near\n"
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
  ArrayRef<MeasuredManager> Managers = Out.Managers;
  outs() << formatv("\nTables of scene 1 (medians of {0} round{1})\n\n", Rounds,
                    Rounds == 1 ? "" : "s")
         << "                      link time     memory  mappings"
         << (Managers.front().IsAcross ? "  messages      bytes" : "") << '\n';
  for (auto [Index, Lib] : enumerate(libraries()))
    printGroup(Lib.Name, Managers, [Index = Index](const MeasuredManager &M) -> const Outcome & {
      return M.Libraries[Index];
    });
  printGroup("all", Managers, [](const MeasuredManager &M) -> const Outcome & { return M.All; });
  explainColumns(Managers);
  outs() << '\n' << Out.Memory;
}

/// A figure that is not there where the manager failed before.
static std::string figure(double Value, StringRef Unit) {
  return Value > 0 ? formatv("{0:f1} {1}", Value, Unit).str() : "-";
}

void printTable(ArrayRef<QueryFigures> Queries) {
  outs() << "\nTable of scene 2\n\n"
            "                     a function      a call     memory  mappings  most live\n";
  for (const QueryFigures &F : Queries)
    outs() << formatv("  {0,-17}{1,12}{2,12}{3,11}{4,10:N}{5,11:N}\n", F.Name,
                      figure(F.CompileMicroseconds, "us"), figure(F.CallNanoseconds, "ns"),
                      bytes(F.Kept.Bytes), F.Kept.Mappings, F.MostLive);
  outs() << formatv(
      "\n"
      "  a function  linked, called and dropped, with {0} live\n"
      "  a call      in random order, with {1:N} live\n"
      "  memory      pages in use by these {1:N}; mappings likewise\n"
      "  most live   when the demo stopped at {2:N}, or the manager failed\n"
      "Each function has constants and data too. Six shapes of it were compiled from IR; every\n"
      "function is a copy of such an object file with a name and constants of its own, linked by\n"
      "ObjectLinkingLayer under a ResourceTracker of its own. Every answer was checked.\n",
      Counts.Live, Counts.Kept, Counts.Most);
}

} // namespace demo
