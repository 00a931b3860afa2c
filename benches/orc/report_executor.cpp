// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <optional>

using namespace llvm;

namespace bench {

static std::string optionalText(std::optional<double> Figure) {
  return Figure ? countText(*Figure) : "–";
}

/// What every table about executors has of a cell, each column closed. Reference is the same with
/// the stock executor.
static void printTimes(raw_ostream &OS, const Cell &C, const Cell *Reference) {
  OS << timeText(C.median()) << " | " << timeText(C.fastest()) << " to " << timeText(C.slowest())
     << " | " << ratioText(&C, Reference) << " | ";
}

void printExecutors(raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R) {
  OS << "\n**" << P.Name << "**, per " << P.Of->Operation << "\n\n"
     << "| executor | median | min to max | / stock | per second | processor | page faults | "
        "system calls | threads started |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const Contender &Row : Info.Executors) {
    OS << "| " << Row.row() << " | ";
    const Cell *C = P.find(Row.row());
    if (const Failure *F = R.failure(*P.Of, Row.row())) {
      OS << firstLine(F->Message) << " | – | – | – | – | – | – | – |\n";
      continue;
    }
    if (!C || !C->timed()) {
      OS << "– | – | – | – | – | – | – | – |\n";
      continue;
    }
    printTimes(OS, *C, P.find(StockExecutor));
    OS << formatv("{0:F0}", 1e9 / C->median()) << " | "
       << timeText(C->median(&Sample::ExecutorProcessorNs)) << " | "
       << countText(C->median(&Sample::ExecutorFaults)) << " | "
       << optionalText(C->ExecutorSystemCalls) << " | " << optionalText(C->ExecutorThreads)
       << " |\n";
  }
}

void printOnExecutors(raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R) {
  OS << "\n**" << P.Name << "**, per " << P.Of->Operation << "\n\n"
     << "| manager | executor | median | min to max | / stock | processor | page faults | system "
        "calls | threads started | memory KB |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const Contender &Row : Info.OnExecutors) {
    OS << "| " << Row.Manager.Name << " | " << Row.On.Name << " | ";
    const Cell *C = P.find(Row.row());
    if (const Failure *F = R.failure(*P.Of, Row.row())) {
      OS << firstLine(F->Message) << " | – | – | – | – | – | – | – |\n";
      continue;
    }
    if (!C || !C->timed()) {
      OS << "– | – | – | – | – | – | – | – |\n";
      continue;
    }
    printTimes(OS, *C, P.find(rowName(Row.Manager.Name, StockExecutor)));
    OS << timeText(C->median(&Sample::ProcessorNs)) << " + "
       << timeText(C->median(&Sample::ExecutorProcessorNs)) << " | "
       << countText(C->median(&Sample::Faults)) << " + "
       << countText(C->median(&Sample::ExecutorFaults)) << " | "
       << (C->SystemCalls ? countText(*C->SystemCalls) + " + " : "")
       << optionalText(C->ExecutorSystemCalls) << " | " << optionalText(C->ExecutorThreads) << " | "
       << (C->Held ? std::to_string(C->Held->MappedKB) : "–") << " |\n";
  }
}

void printFacts(raw_ostream &OS, ArrayRef<ProgramFacts> Facts) {
  OS << "\n## (executor) Idle, after its first message, and the program's file\n\n"
     << "| executor | resident KB | proportional KB | private dirty KB | threads | file KB | the "
        "same "
        "memory initialized twice |\n|---|--:|--:|--:|--:|--:|---|\n";
  for (const ProgramFacts &F : Facts)
    OS << formatv("| {0} | {1:F0} | {2:F0} | {3:F0} | {4:F0} | {5} | {6} |\n", F.Of.Name,
                  F.AtRest.ResidentKB, F.AtRest.ProportionalKB, F.AtRest.PrivateDirtyKB,
                  F.AtRest.Threads, F.FileSize / 1024,
                  F.Reinitializing.empty() ? "works" : firstLine(F.Reinitializing));
  OS << '\n';
  for (const ProgramFacts &F : Facts)
    OS << "- `" << F.Of.Name << "` has loaded " << F.Libraries << '\n';
}

} // namespace bench
