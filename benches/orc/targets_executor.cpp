// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <optional>

using namespace llvm;

namespace bench {

using Outcome = TargetOutcome;

static const Outcome NotMeasured{"not measured", std::nullopt};

/// The cell of one executor, or of a manager on it.
static const Cell *cell(const Results &R, StringRef Key, StringRef Name, StringRef Row) {
  const Phase *P = R.find(Key, Name);
  return P && !R.failure(*P->Of, Row) ? P->find(Row) : nullptr;
}

static Outcome atMost(std::optional<double> Ratio, double Most) {
  if (!Ratio)
    return NotMeasured;
  return {formatv("{0:F3} of it", *Ratio), *Ratio <= Most};
}

static Outcome timeOf(const Results &R, StringRef Name, double Most) {
  return atMost(
      ratio(cell(R, "executor", Name, JitmemExecutor), cell(R, "executor", Name, StockExecutor)),
      Most);
}

static Outcome calls(const Results &R, unsigned InFlight, double Times) {
  std::string Name = emptyCallPhase(InFlight);
  const Cell *Ours = cell(R, "executor", Name, JitmemExecutor);
  auto Ratio = ratio(cell(R, "executor", Name, StockExecutor), Ours);
  if (!Ratio)
    return NotMeasured;
  return {formatv("{0:F2} times as many, {1:F0} a second", *Ratio, 1e9 / Ours->median()),
          *Ratio >= Times};
}

static Outcome threads(const Results &R) {
  const Cell *One = cell(R, "executor", emptyCallPhase(1), JitmemExecutor),
             *Eight = cell(R, "executor", emptyCallPhase(8), JitmemExecutor);
  if (!One || !Eight || !One->ExecutorThreads || !Eight->ExecutorThreads)
    return NotMeasured;
  double Started = *One->ExecutorThreads + *Eight->ExecutorThreads;
  return {countText(Started) + " a call", Started == 0};
}

static const ProgramFacts *factsOf(ArrayRef<ProgramFacts> Facts, StringRef Name) {
  auto Found = find_if(Facts, [&](const ProgramFacts &F) { return F.Of.Name == Name; });
  return Found == Facts.end() ? nullptr : Found;
}

TargetTable targetsOfExecutor(const RunInfo &Info, const Results &R) {
  TargetTable T{"What jitmem-executor must reach", "Against LLVM's own executor.", {}};
  auto Row = [&](const Twine &What, StringRef Must, Outcome O) {
    T.Rows.push_back({What.str(), Must.str(), std::move(O)});
  };
  const ProgramFacts *Stock = factsOf(Info.Facts, StockExecutor),
                     *Ours = factsOf(Info.Facts, JitmemExecutor);
  auto Fact = [&](auto Figure, double Most) {
    if (!Stock || !Ours)
      return NotMeasured;
    return atMost(double(Figure(*Ours)) / double(Figure(*Stock)), Most);
  };
  Row(SpawnPhase, "0.6 of it", timeOf(R, SpawnPhase, 0.6));
  Row("idle memory, proportional", "0.5 of it",
      Fact([](const ProgramFacts &F) { return F.AtRest.ProportionalKB; }, 0.5));
  Row("idle memory, private dirty", "0.333 of it",
      Fact([](const ProgramFacts &F) { return F.AtRest.PrivateDirtyKB; }, 1.0 / 3));
  Row("size of the stripped program", "smaller",
      Fact([](const ProgramFacts &F) { return F.FileSize; }, 1));
  Row("empty calls, 1 in flight", "1.5 times as many", calls(R, 1, 1.5));
  Row("empty calls, 8 in flight", "3 times as many", calls(R, 8, 3));
  Row("threads started in the steady state", "0", threads(R));
  Row("(b) tiny objects in all, llvm-shared", "0.9 of it",
      atMost(ratio(cell(R, "executor-b", SumPhase, rowName(LLVMShared, JitmemExecutor)),
                   cell(R, "executor-b", SumPhase, rowName(LLVMShared, StockExecutor))),
             0.9));
  Row("the same memory initialized twice", "works",
      Ours ? Outcome{Ours->Reinitializing.empty() ? "works" : firstLine(Ours->Reinitializing).str(),
                     Ours->Reinitializing.empty()}
           : NotMeasured);
  return T;
}

} // namespace bench
