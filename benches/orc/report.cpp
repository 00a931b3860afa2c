// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Config/llvm-config.h"
#include "llvm/Support/FormatVariadic.h"

using namespace llvm;

namespace bench {

std::string timeText(double Nanoseconds) {
  if (Nanoseconds < 100)
    return formatv("{0:F1} ns", Nanoseconds);
  if (Nanoseconds < 1000)
    return formatv("{0:F0} ns", Nanoseconds);
  return formatv("{0:F2} µs", Nanoseconds / 1000);
}

static const Cell *fastestOf(const Phase &P, const RunInfo &Info, Role Kind) {
  const Cell *Best = nullptr;
  for (const Contender &M : Info.contenders(*P.Of)) {
    const Cell *C = M.Manager.Kind == Kind ? P.find(M.row()) : nullptr;
    if (C && C->timed() && (!Best || C->cost() < Best->cost()))
      Best = C;
  }
  return Best;
}

const Cell *fasterReference(const Phase &P, const RunInfo &Info) {
  return fastestOf(P, Info, Role::Reference);
}

const Cell *floorCell(const Phase &P, const RunInfo &Info) {
  return fastestOf(P, Info, Role::Floor);
}

std::string countText(double Count) {
  if (Count == 0)
    return "0";
  if (Count < 0.1)
    return formatv("{0:F4}", Count);
  return formatv("{0:F2}", Count);
}

StringRef firstLine(StringRef Text) { return Text.split('\n').first; }

std::string ratioText(const Cell *Over, const Cell *Under) {
  std::optional<double> Ratio = ratio(Over, Under);
  return Ratio ? countText(*Ratio) : "–";
}

void printHeader(raw_ostream &OS, const RunInfo &Info) {
  OS << "# Memory managers for JIT-linked code, side by side\n\n"
     << "LLVM " LLVM_VERSION_STRING ", " << Info.On.System << ", " << Info.On.Processors
     << " processors (" << Info.On.Processor
     << "). Rounds are interleaved, the order changes from round to round, figures are "
        "medians over rounds, ratios medians of each round's ratio. Page faults and system calls "
        "are per operation. Memory and mappings are what a child process that runs this manager "
        "alone gained, a page mapped twice counted once, without the C heap; system calls are "
        "counted there too.\n\nIn one process every manager runs under InPlaceTaskDispatcher, "
        "and ratios are of processor times, so that waiting for a processor on a busy machine does "
        "not count:\n\n";
  for (const Contender &C : Info.OneProcess)
    OS << "- `" << C.Manager.Name << "`: " << C.Manager.Summary << '\n';
  OS << "\nOut of process the executor is " << Info.Other.Name
     << ", a new one for each row of each round, connected by two pipes; starting it is not timed. "
        "Ratios are of the time that passed. Where a cell has two figures, the first is the "
        "controller's and the second the executor's. Messages are those that the controller sent, "
        "each of which has an answer; bytes are those of both directions. Memory and mappings are "
        "both processes' together, threads' stacks included:\n\n";
  for (const Contender &C : Info.Across)
    if (!C.Manager.InProcess && !C.NamesExecutor && C.Tasks == Info.Across.front().Tasks)
      OS << "- `" << C.Manager.Name << "`: " << C.Manager.Summary << '\n';
  OS << "\nWhere executors are compared, that is "
     << join(map_range(Info.Executors, [](const Contender &C) { return C.Manager.Name; }), " and ")
     << ", under in-place. Both are started by posix_spawn, with two pipes. Rows that name "
     << JitmemExecutor << " elsewhere have that one.\n";
  OS << "\nDispatchers:\n\n";
  for (Dispatch D : AllDispatches)
    OS << "- " << nameOf(D) << ": " << summaryOf(D) << '\n';
}

static void printTimed(raw_ostream &OS, const RunInfo &Info, const Phase &P) {
  OS << "\n**" << P.Name << "**, per " << P.Of->Operation << "\n\n"
     << "| manager | median | min to max | processor | faster LLVM / this | this / floor | page "
        "faults | "
        "system calls | memory KB | mappings |\n"
     << "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  const Cell *Reference = fasterReference(P, Info), *Floor = floorCell(P, Info);
  for (const Contender &M : Info.OneProcess) {
    const Cell *Found = P.find(M.row());
    if (!Found)
      continue;
    const Cell &C = *Found;
    OS << "| " << C.Manager << " | ";
    if (C.timed())
      OS << timeText(C.median()) << " | " << timeText(C.fastest()) << " to "
         << timeText(C.slowest()) << " | " << timeText(C.median(&Sample::ProcessorNs)) << " | ";
    else
      OS << "– | – | – | ";
    OS << ratioText(Reference, &C) << " | " << ratioText(&C, Floor) << " | "
       << countText(C.median(&Sample::Faults)) << " | "
       << (C.SystemCalls ? countText(*C.SystemCalls) : "–") << " | ";
    if (C.Held)
      OS << C.Held->MappedKB << " | " << C.Held->Mappings << " |\n";
    else
      OS << "– | – |\n";
  }
}

static void printHeld(raw_ostream &OS, const Phase &P) {
  OS << "\n**" << P.Name << "**\n\n"
     << "| manager | live | end | memory KB | memory / content | mappings |\n"
     << "|---|--:|---|--:|--:|--:|\n";
  for (const Cell &C : P.Cells) {
    OS << "| " << C.Manager << " | " << C.Live << " | " << firstLine(C.Note) << " | ";
    if (!C.Held) {
      OS << "– | – | – |\n";
      continue;
    }
    OS << C.Held->MappedKB << " | "
       << (C.Content ? countText(double(C.Held->MappedKB) * 1024 / double(C.Content)) : "–")
       << " | " << C.Held->Mappings << " |\n";
  }
}

void printWorkload(raw_ostream &OS, const RunInfo &Info, const Workload &W, const Results &R) {
  OS << "\n## (" << W.Key << ") " << W.Title << '\n';
  bool HasPhase = false;
  for (const Phase &P : R.phases()) {
    if (&W != P.Of)
      continue;
    HasPhase = true;
    switch (W.Compares) {
    case Contest::InOneProcess:
      W.Rounds ? printTimed(OS, Info, P) : printHeld(OS, P);
      break;
    case Contest::AcrossProcesses:
      printAcross(OS, Info, P, R);
      break;
    case Contest::OnExecutors:
      printOnExecutors(OS, Info, P, R);
      break;
    case Contest::Executors:
      printExecutors(OS, Info, P, R);
      break;
    }
  }
  // Out of process, the rows themselves say it, if there are any.
  bool SaidInRows = W.Compares != Contest::InOneProcess && HasPhase;
  for (const Failure &F : R.failures())
    if (F.Of == &W && !SaidInRows)
      OS << "\n`" << F.Manager << "` failed: " << firstLine(F.Message) << '\n';
}

void printFooter(raw_ostream &OS, const RunInfo &Info) {
  bool Busy = Info.ProcessorShare < 0.97 || Info.OthersShare > 0.03;
  OS << formatv("\nThe whole run took {0:F0} s. In the timed phases of one thread, that had a "
                "processor {1:F0} % of the time; over the whole run other programs took {2:F0} % "
                "of the processors{3}.\n",
                Info.Seconds, Info.ProcessorShare * 100, Info.OthersShare * 100,
                Busy ? ", so the machine was busy: repeat when it is idle" : "");
  if (!Info.TraceRefusal.empty())
    OS << "System calls not measured: " << Info.TraceRefusal << ".\n";
}

} // namespace bench
