// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/Config/llvm-config.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <utility>

using namespace llvm;

namespace bench {

static json::Object toJson(const Cell &C) {
  json::Object O{{"manager", C.Manager}};
  if (C.timed()) {
    static constexpr std::pair<const char *, double Sample::*> PerRound[] = {
        {"wall_ns", &Sample::WallNs},
        {"processor_ns", &Sample::ProcessorNs},
        {"executor_processor_ns", &Sample::ExecutorProcessorNs},
    };
    for (auto [Name, Figure] : PerRound) {
      json::Array Figures;
      for (const Sample &S : C.Samples)
        Figures.push_back(S.*Figure);
      O[Name] = std::move(Figures);
    }
    O["median_ns"] = C.median();
    O["median_processor_ns"] = C.median(&Sample::ProcessorNs);
    O["page_faults"] = C.median(&Sample::Faults);
    O["executor_page_faults"] = C.median(&Sample::ExecutorFaults);
    O["messages"] = C.median(&Sample::Messages);
    O["bytes"] = C.median(&Sample::Bytes);
    O["own_messages"] = C.median(&Sample::OwnMessages);
    O["own_bytes"] = C.median(&Sample::OwnBytes);
  }
  if (C.SystemCalls)
    O["system_calls"] = *C.SystemCalls;
  if (C.ExecutorSystemCalls)
    O["executor_system_calls"] = *C.ExecutorSystemCalls;
  if (C.ExecutorThreads)
    O["executor_threads"] = *C.ExecutorThreads;
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
  json::Array Executors;
  for (const ProgramFacts &F : Info.Facts)
    Executors.push_back(json::Object{{"executor", F.Of.Name},
                                     {"resident_kb", F.AtRest.ResidentKB},
                                     {"proportional_kb", F.AtRest.ProportionalKB},
                                     {"private_dirty_kb", F.AtRest.PrivateDirtyKB},
                                     {"threads", F.AtRest.Threads},
                                     {"file_bytes", int64_t(F.FileSize)},
                                     {"libraries", F.Libraries},
                                     {"reinitializing", F.Reinitializing}});
  OS << formatv("{0:2}", json::Value(json::Object{{"llvm", LLVM_VERSION_STRING},
                                                  {"processor_share", Info.ProcessorShare},
                                                  {"others_share", Info.OthersShare},
                                                  {"trace_refusal", Info.TraceRefusal},
                                                  {"executors", std::move(Executors)},
                                                  {"phases", std::move(Phases)},
                                                  {"failures", std::move(Failures)}}))
     << '\n';
}

} // namespace bench
