// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "executor.hpp"

#include "llvm/Config/llvm-config.h"
#include "llvm/Support/Errno.h"
#include "llvm/Support/FileSystem.h"

#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace demo {

static Error systemError(int Errno, const Twine &What) {
  return createStringError(std::error_code(Errno, std::generic_category()),
                           "cannot " + What + ": " + sys::StrError(Errno));
}

// A message begins with its size, operation, sequence number and tag.
static constexpr uint64_t HeaderSize = 4 * sizeof(uint64_t);

/// Passes on what an EPC and its executor tell each other, and counts it.
class Executor::CountingTransport : public SimpleRemoteEPCTransport,
                                    private SimpleRemoteEPCTransportClient {
public:
  static Expected<std::unique_ptr<CountingTransport>> Create(SimpleRemoteEPCTransportClient &EPC,
                                                             Executor &E) {
    std::unique_ptr<CountingTransport> T(new CountingTransport(EPC, E));
    auto Pipes = FDSimpleRemoteEPCTransport::Create(*T, E.In, E.Out);
    if (!Pipes)
      return Pipes.takeError();
    T->Pipes = std::move(*Pipes);
    return T;
  }

  Error start() override { return Pipes->start(); }
  void disconnect() override { Pipes->disconnect(); }

  Error sendMessage(SimpleRemoteEPCOpcode Opcode, uint64_t Sequence, ExecutorAddr Tag,
                    ArrayRef<char> Args) override {
    ++E.Messages;
    E.Bytes += HeaderSize + Args.size();
    return Pipes->sendMessage(Opcode, Sequence, Tag, Args);
  }

private:
  CountingTransport(SimpleRemoteEPCTransportClient &EPC, Executor &E) : EPC(EPC), E(E) {}

  Expected<HandleMessageAction> handleMessage(SimpleRemoteEPCOpcode Opcode, uint64_t Sequence,
                                              ExecutorAddr Tag,
                                              shared::WrapperFunctionBuffer Args) override {
    E.Bytes += HeaderSize + Args.size();
    return EPC.handleMessage(Opcode, Sequence, Tag, std::move(Args));
  }
  void handleDisconnect(Error Why) override { EPC.handleDisconnect(std::move(Why)); }

  SimpleRemoteEPCTransportClient &EPC;
  Executor &E;
  std::unique_ptr<FDSimpleRemoteEPCTransport> Pipes;
};

namespace {

/// Descriptors that are closed unless they are taken.
class Pipe {
public:
  ~Pipe() {
    for (int End : Ends)
      if (End >= 0)
        close(End);
  }
  Error open() {
    return pipe2(Ends, O_CLOEXEC) ? systemError(errno, "make a pipe") : Error::success();
  }
  int reading() const { return Ends[0]; }
  int writing() const { return Ends[1]; }
  int takeReading() { return std::exchange(Ends[0], -1); }
  int takeWriting() { return std::exchange(Ends[1], -1); }

private:
  int Ends[2] = {-1, -1};
};

} // namespace

Expected<std::unique_ptr<Executor>> Executor::Start(const std::string &Program, Stderr Errors) {
  Pipe There, Back, Captured;
  if (auto E = There.open())
    return E;
  if (auto E = Back.open())
    return E;
  if (auto E = Captured.open())
    return E;
  posix_spawn_file_actions_t Files;
  posix_spawn_file_actions_init(&Files);
  // What is duplicated onto itself stays open in the program.
  posix_spawn_file_actions_adddup2(&Files, There.reading(), There.reading());
  posix_spawn_file_actions_adddup2(&Files, Back.writing(), Back.writing());
  if (Errors == Stderr::Captured)
    posix_spawn_file_actions_adddup2(&Files, Captured.writing(), STDERR_FILENO);
  // This process ignores the signal; linked code shall not inherit that.
  sigset_t Defaults;
  sigemptyset(&Defaults);
  sigaddset(&Defaults, SIGPIPE);
  posix_spawnattr_t Attributes;
  posix_spawnattr_init(&Attributes);
  posix_spawnattr_setsigdefault(&Attributes, &Defaults);
  posix_spawnattr_setflags(&Attributes, POSIX_SPAWN_SETSIGDEF);
  std::string Ends =
      "filedescs=" + std::to_string(There.reading()) + "," + std::to_string(Back.writing());
  char *Args[] = {const_cast<char *>(Program.c_str()), Ends.data(), nullptr};
  pid_t Pid;
  int Errno = posix_spawn(&Pid, Program.c_str(), &Files, &Attributes, Args, environ);
  posix_spawnattr_destroy(&Attributes);
  posix_spawn_file_actions_destroy(&Files);
  if (Errno)
    return systemError(Errno, "start " + Program);
  return std::unique_ptr<Executor>(
      new Executor(Program, Pid, Back.takeReading(), There.takeWriting(),
                   Errors == Stderr::Captured ? Captured.takeReading() : -1));
}

Executor::~Executor() {
  if (Captured >= 0)
    close(Captured);
  if (HasEnded)
    return;
  kill(Pid, SIGKILL);
  while (waitpid(Pid, nullptr, 0) < 0 && errno == EINTR)
    ;
}

Expected<std::unique_ptr<ExecutorProcessControl>>
Executor::connect(std::unique_ptr<TaskDispatcher> D) {
  auto EPC = SimpleRemoteEPC::Create<CountingTransport>(std::move(D), {}, *this);
  if (!EPC)
    return createStringError("cannot connect to " + Program + ": " + toString(EPC.takeError()) +
                             "; it must be jitmem-executor, or llvm-jitlink-executor of "
                             "LLVM " LLVM_VERSION_STRING);
  return std::move(*EPC);
}

Expected<int> Executor::waitForStatus() {
  constexpr int PatienceSeconds = 10;
  int Ended = int(syscall(SYS_pidfd_open, Pid, 0));
  if (Ended < 0)
    return systemError(errno, "watch " + Program);
  pollfd Wanted{Ended, POLLIN, 0};
  int Ready;
  do
    Ready = poll(&Wanted, 1, PatienceSeconds * 1000);
  while (Ready < 0 && errno == EINTR);
  close(Ended);
  if (Ready == 0)
    return createStringError("%s, process %d, is left over: it still runs %d seconds after it "
                             "was disconnected",
                             Program.c_str(), int(Pid), PatienceSeconds);
  int Status;
  while (waitpid(Pid, &Status, 0) < 0)
    if (errno != EINTR)
      return systemError(errno, "wait for " + Program);
  HasEnded = true;
  return Status;
}

Error Executor::waitForEnd() {
  auto Status = waitForStatus();
  if (!Status)
    return Status.takeError();
  if (WIFSIGNALED(*Status))
    return createStringError("%s was ended by signal %d", Program.c_str(), WTERMSIG(*Status));
  if (WEXITSTATUS(*Status))
    return createStringError("%s ended with status %d", Program.c_str(), WEXITSTATUS(*Status));
  return Error::success();
}

Expected<std::string> Executor::takeStderr() {
  SmallString<256> Text;
  if (auto E = sys::fs::readNativeFileToEOF(Captured, Text))
    return E;
  return Text.str().str();
}

} // namespace demo
