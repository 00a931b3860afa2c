// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/Config/llvm-config.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"
#include "llvm/TargetParser/Host.h"

#include <sys/utsname.h>
#include <unistd.h>

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
  for (const ManagerSpec &M : Info.Managers) {
    const Cell *C = M.Kind == Kind ? P.find(M.Name) : nullptr;
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

/// So that a figure which is small but not nothing doesn't read as nothing.
static std::string countText(double Count) {
  if (Count == 0)
    return "0";
  if (Count < 0.1)
    return formatv("{0:F4}", Count);
  return formatv("{0:F2}", Count);
}

/// One line fits into a table; the JSON has them all.
static StringRef firstLine(StringRef Text) { return Text.split('\n').first; }

static std::string ratioText(const Cell *Over, const Cell *Under) {
  std::optional<double> Ratio = ratio(Over, Under);
  return Ratio ? formatv("{0:F2}", *Ratio).str() : "–";
}

void printHeader(raw_ostream &OS, const RunInfo &Info) {
  utsname System;
  OS << "# Memory managers for JIT-linked code, side by side\n\n"
     << "LLVM " LLVM_VERSION_STRING;
  if (uname(&System) == 0)
    OS << ", " << System.sysname << ' ' << System.release << ' ' << System.machine;
  OS << ", " << sys::getHostCPUName() << ", " << sysconf(_SC_NPROCESSORS_ONLN)
     << " processors. Every manager runs under " << DispatcherName
     << ". Rounds are interleaved, the order changes from round to round, figures are medians over "
        "rounds. Ratios are medians of each round's ratio of processor times, so that waiting for "
        "a "
        "processor on a busy machine does not count. Page faults and system calls are per "
        "operation. Memory and mappings are what a child process that runs this manager alone "
        "gained, a page mapped twice counted once, without the C heap; system calls are counted "
        "there too.\n\n";
  for (const ManagerSpec &M : Info.Managers)
    OS << "- `" << M.Name << "`: " << M.Summary << '\n';
}

static void printTimed(raw_ostream &OS, const RunInfo &Info, const Phase &P) {
  OS << "\n**" << P.Name << "**, per " << P.Of->Operation << "\n\n"
     << "| manager | median | min to max | processor | faster LLVM / this | this / floor | page "
        "faults | "
        "system calls | memory KB | mappings |\n"
     << "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  const Cell *Reference = fasterReference(P, Info), *Floor = floorCell(P, Info);
  for (const ManagerSpec &M : Info.Managers) {
    const Cell *Found = P.find(M.Name);
    if (!Found)
      continue;
    const Cell &C = *Found;
    OS << "| " << C.Manager << " | ";
    if (C.timed())
      OS << timeText(C.median()) << " | " << timeText(C.fastest()) << " to "
         << timeText(C.slowest()) << " | " << timeText(C.medianProcessor()) << " | ";
    else
      OS << "– | – | – | ";
    OS << ratioText(Reference, &C) << " | " << ratioText(&C, Floor) << " | "
       << countText(C.faults()) << " | " << (C.SystemCalls ? countText(*C.SystemCalls) : "–")
       << " | ";
    if (C.Held)
      OS << C.Held->MappedKB << " | " << C.Held->Mappings << " |\n";
    else
      OS << "– | – |\n";
  }
}

static void printHeld(raw_ostream &OS, const Phase &P) {
  OS << "\n| manager | live | end | memory KB | mappings |\n|---|--:|---|--:|--:|\n";
  for (const Cell &C : P.Cells) {
    OS << "| " << C.Manager << " | " << C.Live << " | " << firstLine(C.Note) << " | ";
    if (C.Held)
      OS << C.Held->MappedKB << " | " << C.Held->Mappings << " |\n";
    else
      OS << "– | – |\n";
  }
}

void printWorkload(raw_ostream &OS, const RunInfo &Info, const Workload &W, const Results &R) {
  OS << "\n## (" << W.Key << ") " << W.Title << '\n';
  for (const Phase &P : R.phases()) {
    if (&W != P.Of)
      continue;
    if (W.Rounds)
      printTimed(OS, Info, P);
    else
      printHeld(OS, P);
  }
  for (const Failure &F : R.failures())
    if (F.Of == &W)
      OS << "\n`" << F.Manager << "` failed: " << firstLine(F.Message) << '\n';
}

void printFooter(raw_ostream &OS, const RunInfo &Info) {
  OS << formatv("\nThe whole run took {0:F0} s; in the timed phases the process had a processor "
                "{1:F0} % of the time{2}.\n",
                Info.Seconds, Info.ProcessorShare * 100,
                Info.ProcessorShare < 0.97 ? ", so the machine was busy: repeat when it is idle"
                                           : "");
  if (!Info.TraceRefusal.empty())
    OS << "System calls not measured: " << Info.TraceRefusal << ".\n";
}

static json::Object toJson(const Cell &C) {
  json::Object O{{"manager", C.Manager}};
  if (C.timed()) {
    json::Array Wall, Processor;
    for (const Sample &S : C.Samples) {
      Wall.push_back(S.WallNs);
      Processor.push_back(S.ProcessorNs);
    }
    O["median_ns"] = C.median();
    O["median_processor_ns"] = C.medianProcessor();
    O["wall_ns"] = std::move(Wall);
    O["processor_ns"] = std::move(Processor);
    O["page_faults"] = C.faults();
  }
  if (C.SystemCalls)
    O["system_calls"] = *C.SystemCalls;
  if (C.Held) {
    O["live"] = int64_t(C.Live);
    O["memory_kb"] = C.Held->MappedKB;
    O["heap_kb"] = C.Held->HeapKB;
    O["mappings"] = C.Held->Mappings;
  }
  if (!C.Note.empty())
    O["note"] = C.Note;
  return O;
}

void writeJson(raw_ostream &OS, const RunInfo &Info, const Results &R) {
  json::Array Phases;
  for (const Phase &P : R.phases()) {
    json::Array Cells;
    for (const Cell &C : P.Cells)
      Cells.push_back(toJson(C));
    Phases.push_back(json::Object{{"workload", P.Of->Key},
                                  {"title", P.Of->Title},
                                  {"phase", P.Name},
                                  {"operation", P.Of->Operation},
                                  {"cells", std::move(Cells)}});
  }
  json::Array Failures;
  for (const Failure &F : R.failures())
    Failures.push_back(
        json::Object{{"workload", F.Of->Key}, {"manager", F.Manager}, {"message", F.Message}});
  OS << formatv("{0:2}", json::Value(json::Object{{"llvm", LLVM_VERSION_STRING},
                                                  {"dispatcher", DispatcherName},
                                                  {"processor_share", Info.ProcessorShare},
                                                  {"trace_refusal", Info.TraceRefusal},
                                                  {"phases", std::move(Phases)},
                                                  {"failures", std::move(Failures)}}))
     << '\n';
}

} // namespace bench
