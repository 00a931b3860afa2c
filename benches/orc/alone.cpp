// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"
#include "client.hpp"
#include "system_error.hpp"
#include "workload.hpp"

#include "llvm/ADT/StringExtras.h"
#include "llvm/ExecutionEngine/Orc/Shared/OrcRTBridge.h"
#include "llvm/ExecutionEngine/Orc/Shared/TargetProcessControlTypes.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <fcntl.h>
#include <sched.h>
#include <set>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned CallsPerRound = 10000;
static constexpr unsigned InFlight[] = {1, 8};
static constexpr auto Patience = std::chrono::seconds(10);

std::string emptyCallPhase(unsigned InFlight) {
  return formatv("empty call, {0} in flight", InFlight);
}

/// A call that does nothing: reads the bytes at no addresses.
static Expected<ExecutorAddr> emptyCall(const Client &C) {
  return C.symbol(rt::MemoryReadUInt8sWrapperName);
}

static std::string noAddresses() {
  return encode<shared::SPSSequence<shared::SPSExecutorAddr>>(std::vector<ExecutorAddr>());
}

static Error runStart(const std::string &Program, Probe &P) {
  Host H;
  std::unique_ptr<Client> C;
  auto Spawn = [&]() -> Error {
    auto Other = Executor::Start(Program);
    if (!Other)
      return Other.takeError();
    H.Other = std::move(*Other);
    P.begin(H);
    return Client::Connect(*H.Other).moveInto(C);
  };
  if (Error Err = P.measure(SpawnPhase, 1, Spawn))
    return Err;
  auto Call = [&]() -> Error {
    auto Empty = emptyCall(*C);
    return Empty ? C->call(*Empty, noAddresses()).takeError() : Empty.takeError();
  };
  if (Error Err = P.measure(FirstCallPhase, 1, Call))
    return Err;
  C.reset();
  return H.Other->waitForEnd();
}

Workload executorStart(const Settings &S) {
  Workload W;
  W.Key = "executor";
  W.Title = "How an executor starts, fork and exec included";
  W.Operation = "start";
  W.Rounds = S.rounds(60);
  W.Compares = Contest::Executors;
  W.HasSum = true;
  W.RunAlone = runStart;
  return W;
}

static Error runCalls(const std::string &Program, Probe &P) {
  Host H;
  std::unique_ptr<Client> C;
  if (Error Err = Executor::Start(Program).moveInto(H.Other))
    return Err;
  if (Error Err = Client::Connect(*H.Other).moveInto(C))
    return Err;
  P.begin(H);
  auto Empty = emptyCall(*C);
  if (!Empty)
    return Empty.takeError();
  std::string Args = noAddresses();
  for (unsigned N : InFlight) {
    // Threads, buffers: what only the first calls need is not their cost.
    if (Error Err = C->callOften(*Empty, Args, CallsPerRound / 100, N))
      return Err;
    if (Error Err = P.measure(emptyCallPhase(N), CallsPerRound,
                              [&] { return C->callOften(*Empty, Args, CallsPerRound, N); }))
      return Err;
  }
  C.reset();
  return H.Other->waitForEnd();
}

Workload executorCalls(const Settings &S) {
  Workload W;
  W.Key = "executor";
  W.Title = formatv("{0} calls of a wrapper function that does nothing, by a controller of one "
                    "thread without LLVM",
                    CallsPerRound);
  W.Operation = "call";
  W.Rounds = S.rounds(9);
  W.Compares = Contest::Executors;
  W.RunAlone = runCalls;
  return W;
}

/// How many threads a process has, and whether all of them sleep.
static Expected<std::pair<unsigned, bool>> threadsOf(pid_t Process) {
  std::pair<unsigned, bool> Threads{0, true};
  std::error_code Code;
  std::string Tasks = formatv("/proc/{0}/task", Process);
  for (sys::fs::directory_iterator I(Tasks, Code), End; I != End && !Code; I.increment(Code)) {
    auto Text = MemoryBuffer::getFileAsStream(I->path() + "/stat");
    if (!Text)
      continue; // it has just ended
    ++Threads.first;
    // The state stands behind the name, which is in parentheses.
    Threads.second &= (*Text)->getBuffer().rsplit(')').second.ltrim().starts_with("S");
  }
  if (Code)
    return systemError(Code.value(), "list " + Tasks);
  return Threads;
}

/// Waits until the executor waits. Gives back its number of threads.
static Expected<unsigned> settle(const Executor &E) {
  auto Start = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - Start < Patience) {
    auto Threads = threadsOf(E.pid());
    if (!Threads)
      return Threads.takeError();
    if (Threads->first && Threads->second)
      return Threads->first;
    sched_yield();
  }
  return createStringError("the executor does not come to rest");
}

static Expected<std::unique_ptr<MemoryBuffer>> readStatus(pid_t Process, StringRef File) {
  std::string Path = formatv("/proc/{0}/{1}", Process, File);
  auto Text = MemoryBuffer::getFileAsStream(Path);
  if (!Text)
    return systemError(Text.getError().value(), "read " + Path);
  return std::move(*Text);
}

/// Adds the figure of a line "Name:   123 kB" to those that were found before.
static void take(StringRef Line, StringRef Name, std::vector<double> &Figures) {
  uint64_t KB;
  if (Line.consume_front(Name) && !Line.ltrim().consumeInteger(10, KB))
    Figures.push_back(double(KB));
}

namespace {

/// One figure for each round.
struct IdleRounds {
  std::vector<double> ResidentKB, ProportionalKB, PrivateDirtyKB, Threads;
};

} // namespace

static double mostOf(const std::vector<double> &Figures) {
  return Figures.empty() ? 0 : *std::max_element(Figures.begin(), Figures.end());
}

static Error lookAtIdle(const Program &Of, IdleRounds &Rounds, std::string &Libraries) {
  auto E = Executor::Start(Of.Path);
  if (!E)
    return E.takeError();
  auto C = Client::Connect(**E);
  if (!C)
    return C.takeError();
  auto Threads = settle(**E);
  if (!Threads)
    return Threads.takeError();
  Rounds.Threads.push_back(*Threads);
  auto Rollup = readStatus((*E)->pid(), "smaps_rollup");
  if (!Rollup)
    return Rollup.takeError();
  for (StringRef Line : split((*Rollup)->getBuffer(), '\n')) {
    take(Line, "Rss:", Rounds.ResidentKB);
    take(Line, "Pss:", Rounds.ProportionalKB);
    take(Line, "Private_Dirty:", Rounds.PrivateDirtyKB);
  }
  auto Maps = readStatus((*E)->pid(), "maps");
  if (!Maps)
    return Maps.takeError();
  std::set<std::string> Names;
  for (StringRef Line : split((*Maps)->getBuffer(), '\n')) {
    StringRef Name = sys::path::filename(Line);
    if (Name.contains(".so"))
      Names.insert(Name.str());
  }
  Libraries = join(Names, ", ");
  C->reset();
  return (*E)->waitForEnd();
}

/// Decodes an SPSExpected<SPSExecutorAddr>.
static Expected<ExecutorAddr> address(Expected<std::string> Answer) {
  if (!Answer)
    return Answer.takeError();
  shared::detail::SPSSerializableExpected<ExecutorAddr> Value;
  shared::SPSInputBuffer Bytes(Answer->data(), Answer->size());
  if (!shared::SPSArgList<shared::SPSExpected<shared::SPSExecutorAddr>>::deserialize(Bytes, Value))
    return createStringError("the executor's answer can't be understood");
  return shared::detail::fromSPSSerializable(std::move(Value));
}

/// Decodes an SPSError.
static Error outcome(Expected<std::string> Answer) {
  if (!Answer)
    return Answer.takeError();
  shared::detail::SPSSerializableError Value;
  shared::SPSInputBuffer Bytes(Answer->data(), Answer->size());
  if (!shared::SPSArgList<shared::SPSError>::deserialize(Bytes, Value))
    return createStringError("the executor's answer can't be understood");
  return shared::detail::fromSPSSerializable(std::move(Value));
}

/// As LLVM's mapper manager does with memory that a graph has given back.
static Error initializeTwice(Client &C) {
  ExecutorAddr Instance, Reserve, Initialize, Deinitialize;
  for (auto [Name, Address] : std::initializer_list<std::pair<const char *, ExecutorAddr *>>{
           {rt::SimpleExecutorMemoryManagerInstanceName, &Instance},
           {rt::SimpleExecutorMemoryManagerReserveWrapperName, &Reserve},
           {rt::SimpleExecutorMemoryManagerInitializeWrapperName, &Initialize},
           {rt::SimpleExecutorMemoryManagerDeinitializeWrapperName, &Deinitialize}})
    if (Error Err = C.symbol(Name).moveInto(*Address))
      return Err;
  constexpr uint64_t Size = 4096;
  using shared::SPSExecutorAddr;
  auto Memory = address(C.call(Reserve, encode<SPSExecutorAddr, uint64_t>(Instance, Size)));
  if (!Memory)
    return Memory.takeError();
  for (StringRef Content : {"first", "again"}) {
    tpctypes::FinalizeRequest Request;
    Request.Segments.push_back({MemProt::Read, *Memory, Size, {Content.data(), Content.size()}});
    auto Key = address(
        C.call(Initialize, encode<SPSExecutorAddr, shared::SPSFinalizeRequest>(Instance, Request)));
    if (!Key)
      return Key.takeError();
    std::vector<ExecutorAddr> Keys{*Key};
    if (Error Err = outcome(
            C.call(Deinitialize,
                   encode<SPSExecutorAddr, shared::SPSSequence<SPSExecutorAddr>>(Instance, Keys))))
      return Err;
  }
  return Error::success();
}

static Error reinitialize(const Program &Of) {
  auto E = Executor::Start(Of.Path);
  if (!E)
    return E.takeError();
  auto C = Client::Connect(**E);
  if (!C)
    return C.takeError();
  Error Err = initializeTwice(**C);
  C->reset();
  // First how it ended: if it crashed, everything else comes from that.
  return joinErrors((*E)->waitForEnd(), std::move(Err));
}

/// Pages of a file that was just built count as dirty in each process that maps them until they are
/// written back.
static Error writeBack(const std::string &Path) {
  int File = open(Path.c_str(), O_RDONLY | O_CLOEXEC);
  if (File < 0)
    return systemError(errno, "open " + Path);
  int Errno = fsync(File) ? errno : 0;
  close(File);
  return Errno ? systemError(Errno, "write back " + Path) : Error::success();
}

Expected<std::vector<ProgramFacts>> findFacts(const std::vector<Program> &Programs,
                                              unsigned Rounds) {
  std::vector<ProgramFacts> Facts(Programs.size());
  std::vector<IdleRounds> All(Programs.size());
  for (const Program &P : Programs)
    if (Error Err = writeBack(P.Path))
      return Err;
  for (unsigned Round = 0; Round != Rounds; ++Round)
    for (size_t I = 0; I != Programs.size(); ++I)
      if (Error Err = lookAtIdle(Programs[I], All[I], Facts[I].Libraries))
        return Err;
  for (size_t I = 0; I != Programs.size(); ++I) {
    ProgramFacts &F = Facts[I];
    F.Of = Programs[I];
    F.AtRest = {mostOf(All[I].ResidentKB), mostOf(All[I].ProportionalKB),
                medianOf(All[I].PrivateDirtyKB), medianOf(All[I].Threads)};
    if (auto Code = sys::fs::file_size(F.Of.Path, F.FileSize))
      return systemError(Code.value(), "look at " + F.Of.Path);
    F.Reinitializing = toString(reinitialize(F.Of));
  }
  return Facts;
}

} // namespace bench
