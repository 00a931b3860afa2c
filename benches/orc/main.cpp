// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"
#include "child.hpp"
#include "managers.hpp"
#include "report.hpp"
#include "results.hpp"
#include "system_error.hpp"
#include "timing.hpp"
#include "workload.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Path.h"
#include "llvm/Support/raw_ostream.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <deque>
#include <iterator>

using namespace llvm;
using namespace bench;

static cl::OptionCategory Category("jitmem-bench options");
static cl::opt<bool> Quick("quick", cl::desc("a third of the rounds"), cl::cat(Category));
static cl::opt<unsigned> Rounds("rounds", cl::value_desc("number"),
                                cl::desc("timed rounds of each workload"), cl::cat(Category));
static cl::list<std::string>
    Only("only", cl::CommaSeparated, cl::value_desc("key,..."),
         cl::desc("measure these workloads: a to h, t, oop-a, oop-b, oop-c, executor; oop is "
                  "all three that are out of process"),
         cl::cat(Category));
static cl::list<std::string>
    Chosen("managers", cl::CommaSeparated, cl::value_desc("name,..."),
           cl::desc("measure these managers (default: all but jitmem-mprotect and jitmem-closing)"),
           cl::cat(Category));
static cl::list<std::string>
    Dispatchers("dispatchers", cl::CommaSeparated, cl::value_desc("name,..."),
                cl::desc("out of process, measure under these: in-place, pool, threads"),
                cl::cat(Category));
static cl::opt<std::string>
    ExecutorPath("executor", cl::value_desc("file"), cl::init(JITMEM_BENCH_EXECUTOR),
                 cl::desc("the executor of oop-a, oop-b and oop-c, of LLVM 22's protocol; "
                          "--only=executor always compares llvm-jitlink-executor and "
                          "jitmem-executor"),
                 cl::cat(Category));
static cl::opt<std::string> JsonFile("json", cl::value_desc("file"),
                                     cl::desc("write everything measured to this file too"),
                                     cl::cat(Category));

static void runRounds(const RunInfo &Info, const Workload &W, Results &R) {
  const std::vector<Contender> &Contenders = Info.contenders(W);
  Results WarmUp;
  // Round 0 warms up. Each contender comes first equally often: the one before leaves caches
  // behind.
  for (unsigned Round = 0; Round != W.Rounds + 1; ++Round) {
    for (unsigned I = 0; I != Contenders.size(); ++I) {
      const Contender &C = Contenders[(I + Round) % Contenders.size()];
      if (R.failure(W, C.row()))
        continue;
      TimingProbe P(Round ? R : WarmUp, W, C);
      if (Error Err = runOnce(C, W, P))
        recordFailure(R, W, C, std::move(Err));
    }
  }
}

static Expected<std::vector<ManagerSpec>> chosenManagers() {
  std::vector<ManagerSpec> All = allManagers(), Managers;
  for (const std::string &Name : Chosen)
    if (none_of(All, [&](const ManagerSpec &M) { return M.Name == Name; }))
      return createStringError(
          "--managers: no manager is called '%s', only %s", Name.c_str(),
          join(map_range(All, [](const ManagerSpec &M) { return M.Name; }), ", ").c_str());
  for (ManagerSpec &M : All)
    if (Chosen.empty() ? M.Kind != Role::Extra : is_contained(Chosen, M.Name))
      Managers.push_back(std::move(M));
  return Managers;
}

static Expected<std::vector<Dispatch>> chosenDispatches() {
  std::vector<Dispatch> Dispatches;
  for (const std::string &Name : Dispatchers)
    if (none_of(AllDispatches, [&](Dispatch D) { return nameOf(D) == Name; }))
      return createStringError("--dispatchers: no dispatcher is called '%s', only in-place, pool, "
                               "threads",
                               Name.c_str());
  for (Dispatch D : AllDispatches)
    if (Dispatchers.empty() || is_contained(Dispatchers, nameOf(D)))
      Dispatches.push_back(D);
  return Dispatches;
}

static bool isWanted(StringRef Key) {
  return Only.empty() || is_contained(Only, Key) ||
         (Key.starts_with("oop-") && is_contained(Only, "oop")) ||
         (Key.starts_with("executor-") && is_contained(Only, "executor"));
}

namespace {

/// A deque: results refer to the workloads.
using Workloads = std::deque<Workload>;

/// What is measured, in the order of the report.
struct Plan {
  Workloads OneProcess, Across, Executors;
};

} // namespace

/// W once more under Prefix, if that is wanted.
static void addAgain(Workloads &To, Workload W, StringRef Prefix, Contest Compares,
                     unsigned Rounds) {
  W.Key = (Prefix + W.Key).str();
  W.Rounds = Rounds;
  W.Compares = Compares;
  // Tracing takes minutes, and one workload tells enough of executors.
  W.CountSystemCalls = Compares != Contest::OnExecutors || W.Key == "executor-b";
  if (isWanted(W.Key))
    To.push_back(std::move(W));
}

/// Adds the workload under its own key, across processes, and on executors.
static Error addLink(Plan &P, StringRef Key, const Settings &S,
                     Expected<Workload> (*Make)(const Settings &), unsigned RoundsAcross,
                     unsigned RoundsOnExecutors) {
  std::string Prefixed[] = {Key.str(), ("oop-" + Key).str(), ("executor-" + Key).str()};
  if (none_of(Prefixed, isWanted))
    return Error::success();
  Expected<Workload> W = Make(S);
  if (!W)
    return W.takeError();
  if (isWanted(Key))
    P.OneProcess.push_back(*W);
  addAgain(P.Across, *W, "oop-", Contest::AcrossProcesses, S.rounds(RoundsAcross));
  addAgain(P.Executors, *W, "executor-", Contest::OnExecutors, S.rounds(RoundsOnExecutors));
  return Error::success();
}

static Error chosenWorkloads(Workloads &Chosen) {
  Settings S{Quick, Rounds};
  static constexpr std::array<StringLiteral, 14> Keys = {
      "a", "b", "c", "d", "e", "f", "g", "h", "t", "oop-a", "oop-b", "oop-c", "oop", "executor"};
  for (const std::string &Key : Only)
    if (!is_contained(Keys, Key))
      return createStringError("--only: no workload is called '%s', only %s", Key.c_str(),
                               join(Keys, ", ").c_str());
  Plan P;
  if (isWanted("a")) {
    P.OneProcess.push_back(segments(S));
    P.OneProcess.push_back(churn(S));
  }
  if (isWanted("executor")) {
    P.Executors.push_back(executorStart(S));
    P.Executors.push_back(executorCalls(S));
  }
  addAgain(P.Across, segmentsAcross(), "oop-", Contest::AcrossProcesses, S.rounds(7));
  addAgain(P.Executors, segmentsAcross(), "executor-", Contest::OnExecutors, S.rounds(3));
  if (Error Err = addLink(P, "b", S, tinyObjects, 7, 7))
    return Err;
  if (Error Err = addLink(P, "c", S, archives, 11, 3))
    return Err;
  for (unsigned Functions : {10000, 20000}) {
    if (!isWanted("d"))
      break;
    Expected<Workload> W = calls(S, Functions);
    if (!W)
      return W.takeError();
    P.OneProcess.push_back(std::move(*W));
  }
  if (isWanted("e"))
    P.OneProcess.push_back(capacity());
  if (isWanted("f"))
    P.OneProcess.push_back(memory());
  if (isWanted("g"))
    P.OneProcess.push_back(forks(S));
  if (isWanted("h"))
    P.OneProcess.push_back(redirects(S));
  if (isWanted("t")) {
    Expected<Workload> W = traces(S);
    if (!W)
      return W.takeError();
    P.OneProcess.push_back(std::move(*W));
  }
  for (Workloads *Part : {&P.OneProcess, &P.Across, &P.Executors})
    std::move(Part->begin(), Part->end(), std::back_inserter(Chosen));
  return Error::success();
}

static double processorShare(const Results &R) {
  double Wall = 0, Processor = 0;
  for (const Phase &P : R.phases())
    for (const Cell &C : P.Cells)
      for (const Sample &S : C.Samples) {
        if (!C.ByProcessor)
          continue;
        // Operations differ in number between phases: each sample weighs the same.
        Wall += 1;
        Processor += S.ProcessorNs / S.WallNs;
      }
  return Wall ? Processor / Wall : 1;
}

static Error runAll() {
  MachineUse Use;
  RunInfo Info;
  Expected<std::vector<ManagerSpec>> Managers = chosenManagers();
  if (!Managers)
    return Managers.takeError();
  Expected<std::vector<Dispatch>> Dispatches = chosenDispatches();
  if (!Dispatches)
    return Dispatches.takeError();
  if (Error Err = thisMachine().moveInto(Info.On))
    return Err;
  Info.OneProcess = inOneProcess(*Managers);
  Info.Other = {sys::path::filename(ExecutorPath).str(), ExecutorPath};
  Info.Across = acrossProcesses(*Managers, *Dispatches, Info.Other);
  std::vector<Program> Executors = {{StockExecutor.str(), JITMEM_BENCH_EXECUTOR},
                                    {JitmemExecutor.str(), JITMEM_BENCH_JITMEM_EXECUTOR}};
  Info.OnExecutors = onExecutors(*Managers, Executors);
  Info.Executors = executorsAlone(Executors);
  Workloads Workloads;
  if (Error Err = chosenWorkloads(Workloads))
    return Err;

  Results R;
  printHeader(outs(), Info);
  outs().flush();
  for (const Workload &W : Workloads)
    for (const Contender &C : Info.contenders(W))
      if (Error Err = measureInChild(C, W, R, Info.TraceRefusal))
        return Err;
  if (isWanted("executor"))
    if (Error Err = findFacts(Executors, Settings{Quick, Rounds}.rounds(9)).moveInto(Info.Facts))
      return Err;
  for (const Workload &W : Workloads) {
    runRounds(Info, W, R);
    if (W.HasSum)
      addSum(R, W, SumPhase);
    printWorkload(outs(), Info, W, R);
    outs().flush();
  }
  Info.ProcessorShare = processorShare(R);
  Info.OthersShare = Use.ofOthers();
  Info.Seconds = Use.seconds();
  auto Has = [&](Contest C) {
    return any_of(Workloads, [&](const Workload &W) { return W.Compares == C; });
  };
  std::vector<TargetTable> Targets;
  if (Has(Contest::InOneProcess))
    Targets.push_back(targetsInOneProcess(Info, R));
  if (Has(Contest::AcrossProcesses))
    Targets.push_back(targetsAcross(R));
  if (Has(Contest::Executors)) {
    printFacts(outs(), Info.Facts);
    Targets.push_back(targetsOfExecutor(Info, R));
  }
  for (const TargetTable &T : Targets)
    printTargets(outs(), T);
  printFooter(outs(), Info);

  if (!JsonFile.empty()) {
    std::error_code EC;
    raw_fd_ostream File(JsonFile, EC, sys::fs::OF_Text);
    if (EC)
      return systemError(EC.value(), "write " + JsonFile);
    writeJson(File, Info, R, Targets);
  }
  // LLVM's managers may meet their limits here; a subject must not.
  for (const Failure &F : R.failures())
    for (const Contender &C : Info.contenders(*F.Of))
      if (C.row() == F.Manager && C.Manager.Kind == Role::Subject && !F.Unsupported)
        return createStringError("%s failed workload (%s): %s", F.Manager.c_str(),
                                 F.Of->Key.c_str(), F.Message.c_str());
  return Error::success();
}

int main(int argc, char **argv) {
  // A message to an executor that is gone is an error of that row.
  std::signal(SIGPIPE, SIG_IGN);
  cl::HideUnrelatedOptions(Category);
  cl::ParseCommandLineOptions(argc, argv, "compares memory managers for JIT-linked code\n");
  if (Error Err = runAll()) {
    logAllUnhandledErrors(std::move(Err), errs(), "jitmem-bench: ");
    return 1;
  }
  return 0;
}
