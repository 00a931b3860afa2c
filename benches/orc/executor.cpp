// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "executor.hpp"
#include "footprint.hpp"
#include "system_error.hpp"

#include "llvm/Support/Path.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr int EndTimeoutMs = 10000;

namespace {

/// A pipe, closed when it goes out of scope but for an end that was taken.
class Pipe {
public:
  ~Pipe() {
    for (int End : Ends)
      if (End >= 0)
        close(End);
  }
  bool open() { return pipe2(Ends, O_CLOEXEC) == 0; }
  int reader() const { return Ends[0]; }
  int writer() const { return Ends[1]; }
  int takeReader() { return std::exchange(Ends[0], -1); }
  int takeWriter() { return std::exchange(Ends[1], -1); }

private:
  int Ends[2] = {-1, -1};
};

} // namespace

/// Counts what passes between an EPC and the pipes.
class Executor::CountingTransport : public SimpleRemoteEPCTransport,
                                    private SimpleRemoteEPCTransportClient {
public:
  static Expected<std::unique_ptr<CountingTransport>> Create(SimpleRemoteEPCTransportClient &Client,
                                                             Executor &E) {
    std::unique_ptr<CountingTransport> T(new CountingTransport(Client, E));
    auto Pipes = FDSimpleRemoteEPCTransport::Create(*T, E.In, E.Out);
    if (!Pipes)
      return Pipes.takeError();
    T->Pipes = std::move(*Pipes);
    return T;
  }

  Error start() override { return Pipes->start(); }

  Error sendMessage(SimpleRemoteEPCOpcode Opcode, uint64_t Sequence, ExecutorAddr Tag,
                    ArrayRef<char> Args) override {
    ++E.Messages;
    E.Bytes += HeaderSize + Args.size();
    return Pipes->sendMessage(Opcode, Sequence, Tag, Args);
  }

  void disconnect() override { Pipes->disconnect(); }

private:
  /// Size, opcode, sequence number and tag, eight bytes each.
  static constexpr uint64_t HeaderSize = 32;

  CountingTransport(SimpleRemoteEPCTransportClient &Client, Executor &E) : Client(Client), E(E) {}

  Expected<HandleMessageAction> handleMessage(SimpleRemoteEPCOpcode Opcode, uint64_t Sequence,
                                              ExecutorAddr Tag,
                                              shared::WrapperFunctionBuffer Args) override {
    E.Bytes += HeaderSize + Args.size();
    return Client.handleMessage(Opcode, Sequence, Tag, std::move(Args));
  }

  void handleDisconnect(Error Err) override { Client.handleDisconnect(std::move(Err)); }

  SimpleRemoteEPCTransportClient &Client;
  Executor &E;
  std::unique_ptr<FDSimpleRemoteEPCTransport> Pipes;
};

Expected<std::unique_ptr<Executor>> Executor::Start(const std::string &Program) {
  Pipe ToExecutor, FromExecutor;
  if (!ToExecutor.open() || !FromExecutor.open())
    return systemError(errno, "pipe2");

  posix_spawn_file_actions_t Actions;
  posix_spawnattr_t Attributes;
  posix_spawn_file_actions_init(&Actions);
  posix_spawnattr_init(&Attributes);
  // A descriptor duplicated onto itself stays open in the program.
  for (int Kept : {ToExecutor.reader(), FromExecutor.writer()})
    posix_spawn_file_actions_adddup2(&Actions, Kept, Kept);
  // This process ignores the signal, which linked code shall not inherit.
  sigset_t Defaults;
  sigemptyset(&Defaults);
  sigaddset(&Defaults, SIGPIPE);
  posix_spawnattr_setsigdefault(&Attributes, &Defaults);
  posix_spawnattr_setflags(&Attributes, POSIX_SPAWN_SETSIGDEF);

  std::string Descriptors = "filedescs=" + std::to_string(ToExecutor.reader()) + "," +
                            std::to_string(FromExecutor.writer());
  const char *Arguments[] = {Program.c_str(), Descriptors.c_str(), nullptr};
  pid_t Pid = -1;
  int Errno = posix_spawn(&Pid, Program.c_str(), &Actions, &Attributes,
                          const_cast<char **>(Arguments), environ);
  posix_spawnattr_destroy(&Attributes);
  posix_spawn_file_actions_destroy(&Actions);
  if (Errno)
    return systemError(Errno, "start " + Program);

  std::unique_ptr<Executor> E(new Executor(sys::path::filename(Program).str(), Pid,
                                           FromExecutor.takeReader(), ToExecutor.takeWriter()));
  if (int Errno = clock_getcpuclockid(Pid, &E->Clock))
    return systemError(Errno, "clock_getcpuclockid of " + Program);
  return E;
}

Executor::~Executor() {
  if (HasEnded)
    return;
  kill(Pid, SIGKILL);
  while (waitpid(Pid, nullptr, 0) < 0 && errno == EINTR)
    ;
}

Expected<std::unique_ptr<SimpleRemoteEPC>> Executor::connect(std::unique_ptr<TaskDispatcher> D,
                                                             CreateManager Create) {
  SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager = [this, Create = std::move(Create)](SimpleRemoteEPC &EPC) mutable
      -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
    auto Now = footprint(Pid);
    if (!Now)
      return Now.takeError();
    Baseline = *Now;
    return Create(EPC);
  };
  return SimpleRemoteEPC::Create<CountingTransport>(std::move(D), std::move(Setup), *this);
}

Error Executor::waitForEnd() {
  int Descriptor = int(syscall(SYS_pidfd_open, Pid, 0));
  if (Descriptor < 0)
    return systemError(errno, "pidfd_open");
  pollfd Ends{Descriptor, POLLIN, 0};
  int Ready;
  do
    Ready = poll(&Ends, 1, EndTimeoutMs);
  while (Ready < 0 && errno == EINTR);
  close(Descriptor);
  if (Ready == 0)
    return createStringError("%s still runs %d s after it was disconnected", Name.c_str(),
                             EndTimeoutMs / 1000);

  int Status;
  while (waitpid(Pid, &Status, 0) < 0)
    if (errno != EINTR)
      return systemError(errno, "waitpid");
  HasEnded = true;
  if (WIFSIGNALED(Status))
    return createStringError("%s was ended by signal %s", Name.c_str(),
                             strsignal(WTERMSIG(Status)));
  if (WEXITSTATUS(Status) != 0)
    return createStringError("%s ended with status %d", Name.c_str(), WEXITSTATUS(Status));
  return Error::success();
}

double Executor::processorSeconds() const {
  timespec Used{};
  // Fails once the process has been waited for; it is read before that.
  clock_gettime(Clock, &Used);
  return double(Used.tv_sec) + double(Used.tv_nsec) / 1e9;
}

Expected<uint64_t> Executor::minorFaults() const {
  std::string Name = "/proc/" + std::to_string(Pid) + "/stat";
  std::unique_ptr<FILE, int (*)(FILE *)> File(fopen(Name.c_str(), "re"), fclose);
  unsigned long long Faults = 0;
  // The program's name is in parentheses, and the faults are the seventh number after its state.
  if (!File || fscanf(File.get(), "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %*u %llu", &Faults) != 1)
    return createStringError("read the page faults in %s", Name.c_str());
  return Faults;
}

} // namespace bench
