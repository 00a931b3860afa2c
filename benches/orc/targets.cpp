// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <optional>

using namespace llvm;

namespace bench {

namespace {

using Outcome = TargetOutcome;

const Outcome NotMeasured{"not measured", std::nullopt};

/// Looks up what a target compares. A comparison where one side is missing is no outcome.
class Figures {
public:
  Figures(const RunInfo &Info, const Results &R) : Info(Info), R(R) {}

  const Cell *subject(StringRef Key, StringRef Name) const { return cell(Key, Name, Jitmem); }

  const Cell *cell(StringRef Key, StringRef Name, StringRef Manager) const {
    const Phase *P = R.find(Key, Name);
    const Cell *C = P ? P->find(Manager) : nullptr;
    return C && !R.failure(*P->Of, Manager) ? C : nullptr;
  }

  std::optional<double> ofFasterLLVM(StringRef Key, StringRef Name) const {
    const Phase *P = R.find(Key, Name);
    return P ? ratio(subject(Key, Name), fasterReference(*P, Info)) : std::nullopt;
  }

  std::optional<double> ofMapper(StringRef Key, StringRef Name) const {
    return ratio(subject(Key, Name), cell(Key, Name, LLVMMapper));
  }

  std::optional<double> ofFloor(StringRef Key, StringRef Name) const {
    const Phase *P = R.find(Key, Name);
    return P ? ratio(subject(Key, Name), floorCell(*P, Info)) : std::nullopt;
  }

private:
  const RunInfo &Info;
  const Results &R;
};

} // namespace

/// At least Times faster, and no more than MostOfFloor times the floor (0: no matter).
static Outcome faster(std::optional<double> OfLLVM, double Times, std::optional<double> OfFloor,
                      double MostOfFloor) {
  if (!OfLLVM || (MostOfFloor > 0 && !OfFloor))
    return NotMeasured;
  double Faster = 1 / *OfLLVM;
  if (MostOfFloor == 0)
    return {formatv("{0:F2} times faster", Faster), Faster >= Times};
  return {formatv("{0:F2} times faster, {1:F2} of the floor", Faster, *OfFloor),
          Faster >= Times && *OfFloor <= MostOfFloor};
}

static Outcome fraction(std::optional<double> OfLLVM, double Most, std::optional<double> OfFloor,
                        double MostOfFloor) {
  if (!OfLLVM || (MostOfFloor > 0 && !OfFloor))
    return NotMeasured;
  if (MostOfFloor == 0)
    return {formatv("{0:F3} of it", *OfLLVM), *OfLLVM <= Most};
  return {formatv("{0:F3} of it, {1:F3} of the floor", *OfLLVM, *OfFloor),
          *OfLLVM <= Most && *OfFloor <= MostOfFloor};
}

static Outcome systemCalls(const Figures &F) {
  const Cell *Churn = F.subject("a", ChurnPhase), *Allocate = F.subject("a", AllocatePhase),
             *Deallocate = F.subject("a", DeallocateOldestPhase);
  if (!Churn || !Allocate || !Deallocate || !Churn->SystemCalls || !Allocate->SystemCalls ||
      !Deallocate->SystemCalls)
    return NotMeasured;
  // Growth makes a handful of calls however many graphs there are: those aren't per graph.
  bool Reached =
      *Churn->SystemCalls == 0 && *Allocate->SystemCalls < 0.01 && *Deallocate->SystemCalls < 0.01;
  return {formatv("churn {0:F4}, allocate + finalize {1:F4}, deallocate {2:F4}",
                  *Churn->SystemCalls, *Allocate->SystemCalls, *Deallocate->SystemCalls),
          Reached};
}

static Outcome held(const Cell *C, int64_t Footprint::*Field, int64_t Most) {
  if (!C || !C->Held)
    return NotMeasured;
  int64_t Value = (*C->Held).*Field;
  return {std::to_string(Value), Value <= Most};
}

static Outcome capacityOutcome(const Cell *C) {
  if (!C || !C->Held)
    return NotMeasured;
  return {formatv("{0} live, {1} mappings", C->Live, C->Held->Mappings),
          C->Live >= 100000 && C->Held->Mappings <= 64};
}

static StringRef reachedText(std::optional<bool> Reached) {
  if (!Reached)
    return "–";
  return *Reached ? "yes" : "no";
}

void printTargets(raw_ostream &OS, const TargetTable &T) {
  // A run of other managers, or of parts.
  if (none_of(T.Rows, [](const TargetRow &Row) { return Row.Outcome.Reached.has_value(); }))
    return;
  OS << "\n## " << T.Title << "\n\n"
     << T.Against << "\n\n| | must reach | measured | reached |\n|---|---|---|---|\n";
  for (const TargetRow &Row : T.Rows)
    OS << "| " << Row.What << " | " << Row.Must << " | " << Row.Outcome.Measured << " | "
       << reachedText(Row.Outcome.Reached) << " |\n";
}

TargetTable targetsInOneProcess(const RunInfo &Info, const Results &R) {
  Figures F(Info, R);
  auto OfLLVM = [&](StringRef Key, StringRef Name) { return F.ofFasterLLVM(Key, Name); };
  auto OfFloor = [&](StringRef Key, StringRef Name) { return F.ofFloor(Key, Name); };

  TargetTable T{"What jitmem must reach",
                "Against the faster of LLVM's two managers unless it says otherwise.",
                {}};
  auto Row = [&](const Twine &What, StringRef Must, Outcome O) {
    T.Rows.push_back({What.str(), Must.str(), std::move(O)});
  };

  Row("(a) allocate + finalize", "5 times faster, within 1.1 of the floor",
      faster(OfLLVM("a", AllocatePhase), 5, OfFloor("a", AllocatePhase), 1.1));
  for (StringRef Name : {DeallocateOldestPhase, DeallocateRandomPhase})
    Row("(a) " + Name, "15 times faster", faster(OfLLVM("a", Name), 15, std::nullopt, 0));
  Row("(a) churn at 500 live", "4.5 times faster than the mapper, within 1.1 of the floor",
      faster(F.ofMapper("a", ChurnPhase), 4.5, OfFloor("a", ChurnPhase), 1.1));
  Row("(b) tiny objects, " + SumPhase, "0.4 of it, within 1.06 of the floor",
      fraction(OfLLVM("b", SumPhase), 0.4, OfFloor("b", SumPhase), 1.06));
  Row("(c) four libraries, " + SumPhase, "0.95 of it, within 1.1 of the floor",
      fraction(OfLLVM("c", SumPhase), 0.95, OfFloor("c", SumPhase), 1.1));
  Row("memory for (b), KB", "600", held(F.subject("b", LinkPhase), &Footprint::MappedKB, 600));
  Row("mappings for (b)", "16", held(F.subject("b", LinkPhase), &Footprint::Mappings, 16));
  Row("(e) live small graphs", "100,000 with at most 64 mappings",
      capacityOutcome(F.subject("e", CapacityPhase)));
  Row("(d) 10,000 functions, per call", "1.5 times faster",
      faster(OfLLVM("d", callPhase(10000)), 1.5, std::nullopt, 0));
  Row("(d) 20,000 functions, per call", "5 times faster",
      faster(OfLLVM("d", callPhase(20000)), 5, std::nullopt, 0));
  Row("system calls per graph on the hot path", "0", systemCalls(F));
  return T;
}

} // namespace bench
