// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "child.hpp"
#include "managers.hpp"
#include "report.hpp"
#include "results.hpp"
#include "workload.hpp"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/CommandLine.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/raw_ostream.h"

#include <ctime>
#include <deque>
#include <sys/resource.h>

using namespace llvm;
using namespace bench;

static cl::OptionCategory Category("jitmem-bench options");
static cl::opt<bool> Quick("quick", cl::desc("a third of the rounds"), cl::cat(Category));
static cl::list<std::string> Only("only", cl::CommaSeparated, cl::value_desc("a,b,c,d,e"),
                                  cl::desc("measure these workloads"), cl::cat(Category));
static cl::list<std::string>
    Chosen("managers", cl::CommaSeparated, cl::value_desc("name,..."),
           cl::desc("measure these managers (default: all but jitmem-mprotect)"),
           cl::cat(Category));
static cl::opt<std::string> JsonFile("json", cl::value_desc("file"),
                                     cl::desc("write everything measured to this file too"),
                                     cl::cat(Category));

static double seconds(clockid_t Clock) {
  timespec Now;
  clock_gettime(Clock, &Now);
  return double(Now.tv_sec) + double(Now.tv_nsec) / 1e9;
}

static long minorFaults() {
  rusage Usage;
  getrusage(RUSAGE_SELF, &Usage);
  return Usage.ru_minflt;
}

namespace {

class TimingProbe : public Probe {
public:
  TimingProbe(Results &R, const Workload &W, const ManagerSpec &M) : R(R), W(W), M(M) {}

  Error measure(StringRef Name, uint64_t Operations, function_ref<Error()> Body) override {
    long Faults = minorFaults();
    double Processor = seconds(CLOCK_PROCESS_CPUTIME_ID);
    double Wall = seconds(CLOCK_MONOTONIC);
    Error Err = Body();
    Wall = seconds(CLOCK_MONOTONIC) - Wall;
    Processor = seconds(CLOCK_PROCESS_CPUTIME_ID) - Processor;
    Faults = minorFaults() - Faults;
    if (Err)
      return Err;
    Cell &C = R.phase(W, Name).cell(M.Name);
    C.InProcess = M.InProcess;
    C.Samples.push_back(
        {Wall * 1e9 / Operations, Processor * 1e9 / Operations, double(Faults) / Operations});
    return Error::success();
  }

  void hold(StringRef, uint64_t, StringRef) override {}

private:
  Results &R;
  const Workload &W;
  const ManagerSpec &M;
};

} // namespace

static std::vector<ManagerSpec> applicable(const RunInfo &Info, const Workload &W) {
  std::vector<ManagerSpec> Managers;
  for (const ManagerSpec &M : Info.Managers)
    if (M.InProcess || !W.NeedsInProcess)
      Managers.push_back(M);
  return Managers;
}

static void runRounds(const RunInfo &Info, const Workload &W, Results &R) {
  std::vector<ManagerSpec> Managers = applicable(Info, W);
  Results WarmUp;
  // Round 0 warms up. Each manager comes first equally often: the one before leaves caches behind.
  for (unsigned Round = 0; Round != W.Rounds + 1; ++Round) {
    for (unsigned I = 0; I != Managers.size(); ++I) {
      unsigned Index = (I + Round) % Managers.size();
      const ManagerSpec &M = Managers[Index];
      if (R.failed(W, M.Name))
        continue;
      TimingProbe P(Round ? R : WarmUp, W, M);
      if (Error Err = runOnce(M, W, P))
        R.fail(W, M.Name, toString(std::move(Err)));
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

/// A deque: results refer to the workloads.
static Error chosenWorkloads(std::deque<Workload> &Workloads) {
  Settings S{Quick};
  for (const std::string &Key : Only)
    if (Key.size() != 1 || Key[0] < 'a' || Key[0] > 'e')
      return createStringError("--only: no workload is called '%s', only a, b, c, d, e",
                               Key.c_str());
  auto Wanted = [](StringRef Key) { return Only.empty() || is_contained(Only, Key); };
  auto Add = [&](Expected<Workload> W) -> Error {
    if (!W)
      return W.takeError();
    Workloads.push_back(std::move(*W));
    return Error::success();
  };
  Error Err = Error::success();
  if (Wanted("a")) {
    Workloads.push_back(segments(S));
    Workloads.push_back(churn(S));
  }
  if (Wanted("b"))
    Err = joinErrors(std::move(Err), Add(tinyObjects(S)));
  if (Wanted("c"))
    Err = joinErrors(std::move(Err), Add(archives(S)));
  if (Wanted("d"))
    for (unsigned Functions : {10000, 20000})
      Err = joinErrors(std::move(Err), Add(calls(S, Functions)));
  if (Wanted("e"))
    Workloads.push_back(capacity());
  return Err;
}

static double processorShare(const Results &R) {
  double Wall = 0, Processor = 0;
  for (const Phase &P : R.phases())
    for (const Cell &C : P.Cells)
      for (const Sample &S : C.Samples) {
        // Operations differ in number between phases: each sample weighs the same.
        Wall += 1;
        Processor += S.ProcessorNs / S.WallNs;
      }
  return Wall ? Processor / Wall : 1;
}

static Error runAll() {
  double Start = seconds(CLOCK_MONOTONIC);
  RunInfo Info;
  Expected<std::vector<ManagerSpec>> Managers = chosenManagers();
  if (!Managers)
    return Managers.takeError();
  Info.Managers = std::move(*Managers);
  std::deque<Workload> Workloads;
  if (Error Err = chosenWorkloads(Workloads))
    return Err;

  Results R;
  printHeader(outs(), Info);
  for (const Workload &W : Workloads) {
    runRounds(Info, W, R);
    for (const ManagerSpec &M : applicable(Info, W))
      if (Error Err = measureInChild(M, W, R, Info.TraceRefusal))
        return Err;
    if (W.HasSum)
      addSum(R, W, SumPhase);
    printWorkload(outs(), Info, W, R);
    outs().flush();
  }
  Info.ProcessorShare = processorShare(R);
  Info.Seconds = seconds(CLOCK_MONOTONIC) - Start;
  printTargets(outs(), Info, R);
  printFooter(outs(), Info);

  if (!JsonFile.empty()) {
    std::error_code EC;
    raw_fd_ostream File(JsonFile, EC, sys::fs::OF_Text);
    if (EC)
      return createStringError(EC, "write %s", JsonFile.c_str());
    writeJson(File, Info, R);
  }
  // LLVM's managers may meet their limits here; the subject must not.
  for (const Failure &F : R.failures())
    for (const ManagerSpec &M : Info.Managers)
      if (M.Name == F.Manager && M.Kind == Role::Subject)
        return createStringError("%s failed workload (%s): %s", F.Manager.c_str(),
                                 F.Of->Key.c_str(), F.Message.c_str());
  return Error::success();
}

int main(int argc, char **argv) {
  cl::HideUnrelatedOptions(Category);
  cl::ParseCommandLineOptions(argc, argv, "compares memory managers for JIT-linked code\n");
  if (Error Err = runAll()) {
    logAllUnhandledErrors(std::move(Err), errs(), "jitmem-bench: ");
    return 1;
  }
  return 0;
}
