// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/Config/llvm-config.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/JSON.h"

#include <utility>

using namespace llvm;

namespace bench {

/// Whether B is something to compare A with: one of LLVM's or the floor under the same conditions,
/// or the same manager on another executor.
static bool isMeasureOf(const Contender &A, const Contender &B) {
  bool IsPeer = B.Manager.Kind == Role::Reference || B.Manager.Kind == Role::Floor;
  if (A.Tasks != B.Tasks || A.row() == B.row())
    return false;
  if (A.NamesExecutor && !B.Manager.InProcess && A.On.Name != B.On.Name)
    return A.Manager.Name == B.Manager.Name;
  return IsPeer;
}

/// What the cell of A costs of each that it is compared with, by their rows.
static json::Object ratios(const RunInfo &Info, const Phase &P, const Contender &A) {
  json::Object Ratios;
  for (const Contender &B : Info.contenders(*P.Of))
    if (isMeasureOf(A, B))
      if (std::optional<double> Ratio = ratio(P.find(A.row()), P.find(B.row())))
        Ratios[B.row()] = *Ratio;
  return Ratios;
}

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
    O["fastest_ns"] = C.fastest();
    O["slowest_ns"] = C.slowest();
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
    if (C.Content)
      O["content_kb"] = int64_t(C.Content / 1024);
  }
  if (!C.Note.empty())
    O["note"] = C.Note;
  return O;
}

static json::Object toJson(const Machine &M) {
  return json::Object{{"system", M.System},
                      {"processor", M.Processor},
                      {"processors", M.Processors},
                      {"most_mappings", int64_t(M.MostMappings)}};
}

static json::Object toJson(const TargetTable &T) {
  json::Array Rows;
  for (const TargetRow &Row : T.Rows)
    Rows.push_back(json::Object{{"what", Row.What},
                                {"must_reach", Row.Must},
                                {"measured", Row.Outcome.Measured},
                                {"reached", Row.Outcome.Reached}});
  return json::Object{{"title", T.Title}, {"rows", std::move(Rows)}};
}

void writeJson(raw_ostream &OS, const RunInfo &Info, const Results &R,
               ArrayRef<TargetTable> Targets) {
  json::Array Phases;
  for (const Phase &P : R.phases()) {
    json::Array Cells;
    for (const Contender &A : Info.contenders(*P.Of))
      if (const Cell *C = P.find(A.row())) {
        json::Object O = toJson(*C);
        O["ratios"] = ratios(Info, P, A);
        Cells.push_back(std::move(O));
      }
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
  json::Array TargetTables;
  for (const TargetTable &T : Targets)
    TargetTables.push_back(toJson(T));
  OS << formatv("{0:2}", json::Value(json::Object{{"llvm", LLVM_VERSION_STRING},
                                                  {"machine", toJson(Info.On)},
                                                  {"seconds", Info.Seconds},
                                                  {"targets", std::move(TargetTables)},
                                                  {"processor_share", Info.ProcessorShare},
                                                  {"others_share", Info.OthersShare},
                                                  {"trace_refusal", Info.TraceRefusal},
                                                  {"executors", std::move(Executors)},
                                                  {"phases", std::move(Phases)},
                                                  {"failures", std::move(Failures)}}))
     << '\n';
}

} // namespace bench
