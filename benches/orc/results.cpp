// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "results.hpp"

#include <algorithm>

namespace bench {

double medianOf(std::vector<double> Values) {
  if (Values.empty())
    return 0;
  std::sort(Values.begin(), Values.end());
  size_t Middle = Values.size() / 2;
  return Values.size() % 2 ? Values[Middle] : (Values[Middle - 1] + Values[Middle]) / 2;
}

static std::vector<double> column(const std::vector<Sample> &Samples, double Sample::*Field) {
  std::vector<double> Values;
  for (const Sample &S : Samples)
    Values.push_back(S.*Field);
  return Values;
}

static constexpr double Sample::*AllFigures[] = {
    &Sample::WallNs,   &Sample::ProcessorNs,         &Sample::Faults,
    &Sample::Messages, &Sample::ExecutorProcessorNs, &Sample::ExecutorFaults,
    &Sample::Bytes,    &Sample::OwnMessages,         &Sample::OwnBytes,
};

Sample &Sample::operator+=(const Sample &Other) {
  for (auto Figure : AllFigures)
    this->*Figure += Other.*Figure;
  return *this;
}

void Sample::scale(double Factor) {
  for (auto Figure : AllFigures)
    this->*Figure *= Factor;
}

double Cell::median(double Sample::*Figure) const { return medianOf(column(Samples, Figure)); }

double Cell::fastest() const {
  std::vector<double> Values = column(Samples, &Sample::WallNs);
  return Values.empty() ? 0 : *std::min_element(Values.begin(), Values.end());
}

double Cell::slowest() const {
  std::vector<double> Values = column(Samples, &Sample::WallNs);
  return Values.empty() ? 0 : *std::max_element(Values.begin(), Values.end());
}

Cell &Phase::cell(llvm::StringRef Manager) {
  for (Cell &C : Cells)
    if (C.Manager == Manager)
      return C;
  Cells.emplace_back();
  Cells.back().Manager = Manager.str();
  return Cells.back();
}

const Cell *Phase::find(llvm::StringRef Manager) const {
  for (const Cell &C : Cells)
    if (C.Manager == Manager)
      return &C;
  return nullptr;
}

Phase &Results::phase(const Workload &W, llvm::StringRef Name) {
  for (Phase &P : Phases)
    if (P.Of == &W && P.Name == Name)
      return P;
  Phases.push_back({&W, Name.str(), {}});
  return Phases.back();
}

const Phase *Results::find(llvm::StringRef WorkloadKey, llvm::StringRef Name) const {
  for (const Phase &P : Phases)
    if (P.Of->Key == WorkloadKey && P.Name == Name)
      return &P;
  return nullptr;
}

void Results::fail(const Workload &W, llvm::StringRef Manager, llvm::StringRef Message,
                   bool Unsupported) {
  if (!failure(W, Manager))
    Failures.push_back({&W, Manager.str(), Message.str(), Unsupported});
}

const Failure *Results::failure(const Workload &W, llvm::StringRef Manager) const {
  for (const Failure &F : Failures)
    if (F.Of == &W && F.Manager == Manager)
      return &F;
  return nullptr;
}

std::optional<double> ratio(const Cell *A, const Cell *B) {
  // One that failed half-way has fewer samples than there were rounds: nothing to compare.
  if (!A || !B || !A->timed() || A->Samples.size() != B->Samples.size())
    return std::nullopt;
  auto Cost = A->ByProcessor && B->ByProcessor ? &Sample::ProcessorNs : &Sample::WallNs;
  std::vector<double> Ratios;
  for (size_t I = 0; I != A->Samples.size(); ++I)
    Ratios.push_back(A->Samples[I].*Cost / (B->Samples[I].*Cost));
  return medianOf(std::move(Ratios));
}

void addSum(Results &R, const Workload &W, llvm::StringRef Name) {
  std::vector<Cell> Sums;
  for (const Phase &P : R.phases()) {
    if (P.Of != &W)
      continue;
    for (const Cell &C : P.Cells) {
      auto Sum = std::find_if(Sums.begin(), Sums.end(),
                              [&](const Cell &S) { return S.Manager == C.Manager; });
      if (Sum == Sums.end()) {
        Sums.push_back(C);
        Sums.back().Held.reset();
        continue;
      }
      for (size_t I = 0; I != std::min(Sum->Samples.size(), C.Samples.size()); ++I)
        Sum->Samples[I] += C.Samples[I];
      if (Sum->SystemCalls && C.SystemCalls)
        *Sum->SystemCalls += *C.SystemCalls;
      if (Sum->ExecutorSystemCalls && C.ExecutorSystemCalls)
        *Sum->ExecutorSystemCalls += *C.ExecutorSystemCalls;
      if (Sum->ExecutorThreads && C.ExecutorThreads)
        *Sum->ExecutorThreads += *C.ExecutorThreads;
    }
  }
  for (Cell &Sum : Sums)
    R.phase(W, Name).cell(Sum.Manager) = std::move(Sum);
}

} // namespace bench
