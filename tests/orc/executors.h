// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors in processes of their own, and sessions whose code runs there.

#ifndef JITMEM_TESTS_ORC_EXECUTORS_H
#define JITMEM_TESTS_ORC_EXECUTORS_H

#include "jit.h"

#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <sys/types.h>

// What runs as executor, and what jitmem makes of it.
enum class Setting {
  // LLVM's llvm-jitlink-executor, which loads libjitmem.so.
  LoadedShared,
  LoadedRemote,
  // An executor of our own, with jitmem's service linked in.
  LinkedShared,
  LinkedRemote,
  // jitmem-executor, which may make no socket and open no file.
  SealedShared,
  // jitmem-executor as it is.
  ProgramShared,
  ProgramRemote,
  // The same, which runs linked code in a child of its own.
  SupervisedShared,
  // An executor of our own that does so, and replaces the child three times.
  LinkedSupervised,
  // LLVM's llvm-jitlink-executor as it is.
  StockShared,
  // The same where it can make no files, and so share no memory.
  StockSimple,
  // LLVM's own manager in jitmem's place, over the shared memory of LLVM's executor.
  Llvm,
};
inline std::vector<Setting> allSettings() {
  return {Setting::LoadedShared, Setting::LoadedRemote,
          Setting::LinkedShared, Setting::LinkedRemote,
#if LLVM_VERSION_MAJOR >= 16 // whose executor is the first that shares memory
          Setting::StockShared,
#endif
          Setting::StockSimple};
}
inline auto everySetting() { return ::testing::ValuesIn(allSettings()); }
// Those where jitmem's own service shares pages.
inline auto sharedSettings() {
  return ::testing::Values(Setting::LoadedShared, Setting::LinkedShared);
}
const char *nameOf(Setting S);
inline std::string settingName(const ::testing::TestParamInfo<Setting> &Info) {
  return nameOf(Info.param);
}
inline void PrintTo(Setting S, std::ostream *OS) { *OS << nameOf(S); }

// The program of a setting and the arguments that follow its descriptors.
std::vector<std::string> commandOf(Setting S);
// One of jitmem_mapper_kind.
uint32_t mapperOf(Setting S);
// Not for Setting::Llvm.
llvm::Expected<std::unique_ptr<jitmem::orc::MemoryManager>>
createManager(Setting S, llvm::orc::ExecutorProcessControl &EPC, jitmem::orc::Options O = {});

struct Descriptor {
  explicit Descriptor(int Number = -1) : Number(Number) {}
  Descriptor(const Descriptor &) = delete;
  Descriptor &operator=(const Descriptor &) = delete;
  ~Descriptor() { close(); }

  int release() { return std::exchange(Number, -1); }
  void close();

  int Number;
};

struct Pipe {
  Pipe();
  Descriptor Read, Write;
};

// A child process that is killed at the end of its scope, if it has not been waited for.
class ChildProcess {
public:
  // Command[0] is a file; In and Out become the child's descriptors 20 and 21.
  ChildProcess(std::vector<std::string> Command, int In, int Out);
  ChildProcess(const ChildProcess &) = delete;
  ChildProcess &operator=(const ChildProcess &) = delete;
  ~ChildProcess();

  pid_t id() const { return Id; }
  void kill();
  // How it ended, in words: "exit 0", "signal 9".
  std::string wait();

private:
  pid_t Id;
  std::string Ended; // empty until it has been waited for
};

// How it ended, as ChildProcess::wait says it.
std::string waitFor(pid_t Process);

// Waits for N events that come in other threads.
class Countdown {
public:
  explicit Countdown(int N) : Left(N) {}

  void arrive() {
    std::lock_guard<std::mutex> Lock(M);
    if (--Left == 0)
      Zero.notify_all();
  }
  bool wait(std::chrono::seconds Deadline = std::chrono::seconds(60)) {
    std::unique_lock<std::mutex> Lock(M);
    return Zero.wait_for(Lock, Deadline, [&] { return Left <= 0; });
  }

private:
  std::mutex M;
  std::condition_variable Zero;
  int Left;
};

// Whether something comes to hold within a minute, where no event tells.
bool eventually(llvm::function_ref<bool()> Holds);

class Session {
public:
  // Who owns the manager: the EPC, by the hook in its setup, the linking layer, or this object.
  enum class Owner { EPC, Layer, Session };
  enum class Dispatcher { Threads, InPlace };

  explicit Session(Setting S, Owner O = Owner::EPC, Dispatcher D = Dispatcher::Threads,
                   llvm::orc::LLJITBuilder Builder = llvm::orc::LLJITBuilder());
  Session(Setting S, Owner O, std::unique_ptr<llvm::orc::TaskDispatcher> Tasks,
          llvm::orc::LLJITBuilder Builder = llvm::orc::LLJITBuilder());
  ~Session();

  // Ends the session in order, and says how the executor ended.
  std::string end();

  llvm::orc::ExecutorProcessControl &epc() {
    return J->getExecutionSession().getExecutorProcessControl();
  }
  // What the session has reported since the last time.
  std::string takeErrors();

  void add(const std::string &Source) { must(J->addObjectFile(objectFile(Source))); }
  ExecutorAddr find(const std::string &Name) { return must(compat::lookup(*J, Name)); }
  // Links what throws through a frame, and gives the function that catches it. One after the other:
  // with tasks in threads, LLVM 19 answers a lookup before all that it depends on is finalized.
  ExecutorAddr addProblem(llvm::orc::ResourceTrackerSP Tracker);
  ExecutorAddr addProblem();

  // Calls `int Function(int)` in the executor.
  llvm::Expected<int> tryRun(ExecutorAddr Function, int Argument);
  int run(ExecutorAddr Function, int Argument = 0) { return must(tryRun(Function, Argument)); }
  // Calls a wrapper function with bytes.
  std::string call(ExecutorAddr Function, const std::string &Bytes);

  // With objects/inside.c, which is linked when it is first needed.
  ExecutorAddr inside(const std::string &Name);
  std::string bytesAt(ExecutorAddr Address, uint64_t Size);
  std::vector<int> takeNotes();
  Journal::Call note(int Id, char Behaviour = 'n');

  std::unique_ptr<ChildProcess> Child;
  jitmem::orc::MemoryManager *MM = nullptr; // of jitmem's settings
  std::unique_ptr<llvm::orc::LLJIT> J;

private:
  std::unique_ptr<jitmem::orc::MemoryManager> OwnMM; // outlives J
  std::mutex ErrorsMutex;
  std::string Errors;
  bool HasInside = false;
};

#endif // JITMEM_TESTS_ORC_EXECUTORS_H
