// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "queries.hpp"
#include "query_engine.hpp"
#include "scene.hpp"
#include "text.hpp"

#include "llvm/Support/FormatVariadic.h"

#include <algorithm>
#include <deque>
#include <fstream>
#include <numeric>
#include <optional>
#include <random>

using namespace llvm;

namespace demo {

namespace {

/// How many mappings the kernel allows a process, if it says so.
std::optional<uint64_t> mappingLimit() {
  std::ifstream File("/proc/sys/vm/max_map_count");
  uint64_t Limit;
  if (File >> Limit)
    return Limit;
  return std::nullopt;
}

Error wrongAnswer(const Query &Q) {
  return createStringError(QueryObjects::name(Q.number()) + " gave a wrong answer");
}

/// The scene on one memory manager.
class QueryRun {
public:
  QueryRun(const MeasuredManager &M, const QueryObjects &Objects, Scene &Screen)
      : M(M), Objects(Objects), Screen(Screen) {
    Figures.Name = M.Name;
  }

  Expected<QueryFigures> run();

private:
  Error runSteps();
  Error compileAndDrop();
  Error keep(unsigned Count);
  Error callInRandomOrder();
  Expected<bool> add();
  void progress(const Twine &Doing) { Screen.progress(M.Name + ": " + Doing); }

  const MeasuredManager &M;
  const QueryObjects &Objects;
  Scene &Screen;
  std::unique_ptr<QueryEngine> Engine;
  std::deque<Query> Live;
  unsigned Next = 0;
  QueryFigures Figures;
};

/// Compiles the next query and calls it. Returns false if the memory manager fails; the figures
/// then say why.
Expected<bool> QueryRun::add() {
  auto Q = Engine->compile(Next++);
  if (!Q) {
    Figures.Failure = toString(Q.takeError());
    return false;
  }
  Live.push_back(std::move(*Q));
  if (!Live.back().run(/*Row=*/Next))
    return wrongAnswer(Live.back());
  return true;
}

Error QueryRun::compileAndDrop() {
  auto Start = Clock::now();
  while (Next < Counts.Dropped) {
    if (Next % 10000 == 0)
      progress(formatv("{0:N} of {1:N} queries dropped", Next, Counts.Dropped).str());
    auto Added = add();
    if (!Added || !*Added)
      return Added.takeError();
    if (Live.size() < Counts.Live)
      continue;
    if (auto E = Engine->drop(Live.front()))
      return E;
    Live.pop_front();
  }
  Figures.CompileMicroseconds = millisecondsSince(Start) * 1000 / Counts.Dropped;
  return Error::success();
}

Error QueryRun::keep(unsigned Count) {
  progress(formatv("until {0:N} queries are live", Count).str());
  while (Live.size() < Count) {
    auto Added = add();
    if (!Added || !*Added)
      return Added.takeError();
  }
  return Error::success();
}

Error QueryRun::callInRandomOrder() {
  constexpr unsigned Passes = 51;
  progress(formatv("{0:N} queries called in random order", Live.size()).str());
  std::vector<unsigned> Order(Live.size());
  std::iota(Order.begin(), Order.end(), 0);
  std::shuffle(Order.begin(), Order.end(), std::mt19937());
  std::vector<Query *> Queries;
  for (unsigned Index : Order)
    Queries.push_back(&Live[Index]);
  std::vector<int64_t> Answers(Queries.size());
  std::vector<double> Times;
  for (unsigned Row = 0; Row < Passes; ++Row) {
    auto Start = Clock::now();
    for (auto [Q, Answer] : zip(Queries, Answers))
      Answer = Q->call(Row);
    Times.push_back(millisecondsSince(Start) * 1e6 / Queries.size());
    for (auto [Q, Answer] : zip(Queries, Answers))
      if (Answer != Q->expect(Row))
        return wrongAnswer(*Q);
  }
  llvm::sort(Times);
  Figures.CallNanoseconds = Times[Passes / 2];
  return Error::success();
}

Error QueryRun::runSteps() {
  auto Before = Footprint::of({"self"});
  if (!Before)
    return Before.takeError();
  if (auto E = QueryEngine::Create(Objects, M.Create).moveInto(Engine))
    return E;
  if (auto E = compileAndDrop(); E || !Figures.Failure.empty())
    return E;
  if (auto E = keep(Counts.Kept); E || !Figures.Failure.empty())
    return E;
  auto After = Footprint::of({"self"});
  if (!After)
    return After.takeError();
  Figures.Kept = *After - *Before;
  if (auto E = callInRandomOrder())
    return E;
  return keep(Counts.Most);
}

Expected<QueryFigures> QueryRun::run() {
  if (auto E = runSteps())
    return E;
  Figures.MostLive = Live.size();
  progress("giving all memory back");
  Live.clear();
  if (auto E = Engine->end())
    return E;
  return Figures;
}

} // namespace

static void showResult(Scene &Screen, const QueryFigures &F) {
  std::string Text;
  if (F.CompileMicroseconds > 0)
    Text += formatv("{0:f1} us a function; ", F.CompileMicroseconds);
  if (F.CallNanoseconds > 0)
    Text += formatv("{0:N} take {1} and {2:f0} ns a call; ", Counts.Kept, bytes(F.Kept.Bytes),
                    F.CallNanoseconds);
  Text += formatv("{0} {1:N}", F.Failure.empty() ? "goes on to" : "ends at", F.MostLive);
  Screen.result(F.Name, Text);
}

/// Why a manager came to its end, beside how many mappings it took and may take.
static void showFailure(Scene &Screen, const QueryFigures &F) {
  std::string Text = F.Failure;
  if (F.Kept.Mappings > 0)
    Text += formatv(": {0} takes {1:f1} mappings a function", F.Name,
                    double(F.Kept.Mappings) / Counts.Kept);
  if (auto Limit = mappingLimit())
    Text += formatv(", vm.max_map_count is {0:N}", *Limit);
  Screen.note(Text + ".");
}

Expected<std::vector<QueryFigures>> runQueries(const Options &O) {
  Scene Screen(2, formatv("a query engine, where {0:N} functions come and go, then {1:N} stay",
                          Counts.Dropped, Counts.Kept)
                      .str());
  Screen.progress("compiling");
  auto Objects = QueryObjects::Create();
  if (!Objects)
    return Objects.takeError();
  // Enough for LLVM to work with when no mapping is left.
  reserveHeap(size_t(256) << 20);
  std::vector<QueryFigures> All;
  for (const MeasuredManager &M : managersInProcess(O.Mapper)) {
    auto F = QueryRun(M, *Objects, Screen).run();
    if (!F)
      return createStringError(M.Name + ": " + toString(F.takeError()));
    All.push_back(std::move(*F));
  }
  if (!All.front().Failure.empty())
    return createStringError(All.front().Name + ": " + All.front().Failure);
  for (const QueryFigures &F : All)
    showResult(Screen, F);
  for (const QueryFigures &F : All)
    if (!F.Failure.empty())
      showFailure(Screen, F);
  Screen.end();
  return All;
}

} // namespace demo
