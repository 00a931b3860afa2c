// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// An LLJIT whose code crashes, loops, takes memory, writes code and floods its output, one after
// the other, in executors that bound it. After each the host links a function and gets its answer.
#include <jitmem/orc.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <future>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
using namespace llvm;

static const char Source[] = R"(
  declare ptr @malloc(i64)
  declare ptr @memset(ptr, i32, i64)
  declare i64 @write(i32, ptr, i64)
  @text = constant [4096 x i8] zeroinitializer

  define i32 @twice(i32 %n) { %m = add i32 %n, %n  ret i32 %m }
  define i32 @crash(i32 %n) { store volatile i32 1, ptr inttoptr (i64 64 to ptr)  ret i32 0 }
  define i32 @loop(i32 %n) { br label %again again: call void asm sideeffect "", ""()  br label %again }
  define i32 @allocate(i32 %n) {
    br label %again
  again:
    %m = call ptr @malloc(i64 1048576)
    %none = icmp eq ptr %m, null
    br i1 %none, label %end, label %fill
  fill:
    call ptr @memset(ptr %m, i32 1, i64 1048576)
    br label %again
  end:
    ret i32 -12
  }
  define i32 @write_code(i32 %n) { store volatile i8 0, ptr @twice  ret i32 0 }
  define i32 @flood(i32 %n) {
    br label %again
  again:
    call i64 @write(i32 1, ptr @text, i64 4096)
    br label %again
  }
)";

static ExitOnError OrExit("untrusted-cpp: ");

/// A process that runs linked code, and the LLJIT that links it.
class Executor {
public:
  Executor();
  ~Executor();

  /// Calls `int Name(int)` there and waits for the answer, 10 seconds at most.
  Expected<int> run(StringRef Name, int32_t Argument);

private:
  std::unique_ptr<orc::LLJIT> JIT;
  std::unique_ptr<jitmem::orc::Calls> Calls;
  orc::ExecutorAddr RunAsInt;
  std::thread Output;
  pid_t Process = -1;
};

Executor::Executor() {
  int Ends[2], Pipe[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, Ends) != 0 || pipe2(Pipe, O_CLOEXEC) != 0)
    report_fatal_error("no descriptors");
  std::string Version = "--llvm=" + std::to_string(LLVM_VERSION_MAJOR);
  const char *Words[] = {
      JITMEM_EXECUTOR,  "--seccomp=sealed",  "--memory=512M", "--rlimit-as=2G", "--rlimit-core=0",
      "--time-limit=1", "--die-with-parent", Version.c_str(), "filedescs=3,3",  nullptr};
  posix_spawn_file_actions_t Actions;
  posix_spawn_file_actions_init(&Actions);
  posix_spawn_file_actions_addopen(&Actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&Actions, Pipe[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&Actions, Pipe[1], STDERR_FILENO);
  posix_spawn_file_actions_adddup2(&Actions, Ends[1], 3);
  if (posix_spawn(&Process, Words[0], &Actions, nullptr, const_cast<char **>(Words), environ) != 0)
    report_fatal_error("jitmem-executor can't be started");
  posix_spawn_file_actions_destroy(&Actions);
  close(Ends[1]);
  close(Pipe[1]);
  // What is not read an executor waits with. This host has no use for it.
  Output = std::thread([Read = Pipe[0]] {
    std::array<char, 65536> Block;
    while (read(Read, Block.data(), Block.size()) > 0)
      ;
    close(Read);
  });

  orc::SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager = [](orc::SimpleRemoteEPC &EPC) {
    jitmem::orc::Options Options;
    Options.Limits.memory = Options.Limits.code = 10'000;
    Options.Limits.close = 1'000;
    return jitmem::orc::MemoryManager::Create(EPC, Options);
  };
  auto Dispatcher = std::make_unique<orc::DynamicThreadPoolTaskDispatcher>(std::nullopt);
  auto EPC = OrExit(orc::SimpleRemoteEPC::Create<orc::FDSimpleRemoteEPCTransport>(
      std::move(Dispatcher), std::move(Setup), Ends[0], Ends[0]));
  OrExit(
      EPC->getBootstrapSymbols({{RunAsInt, "__llvm_orc_bootstrap_run_as_int_function_wrapper"}}));
  JIT = OrExit(orc::LLJITBuilder()
                   .setExecutorProcessControl(std::move(EPC))
                   .setPlatformSetUp(orc::setUpInactivePlatform)
                   .create());
  // An executor that is gone is no news here.
  JIT->getExecutionSession().setErrorReporter(consumeError);
  jitmem_limits Limits{};
  Limits.code = 10'000;
  Calls = OrExit(
      jitmem::orc::Calls::Create(JIT->getExecutionSession().getExecutorProcessControl(), Limits));
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Source, Diagnostic, *Context);
  if (!Module)
    report_fatal_error(Diagnostic.getMessage());
  OrExit(JIT->addIRModule({std::move(Module), std::move(Context)}));
}

Executor::~Executor() {
  // What is freed while the process is there waits for it.
  kill(Process, SIGKILL);
  waitpid(Process, nullptr, 0);
  Calls.reset();
  JIT.reset();
  Output.join();
}

Expected<int> Executor::run(StringRef Name, int32_t Argument) {
  auto Function = JIT->lookup(Name);
  if (!Function)
    return Function.takeError();
  const uint64_t Address = Function->getValue();
  char Bytes[sizeof Address + sizeof Argument];
  std::memcpy(Bytes, &Address, sizeof Address);
  std::memcpy(Bytes + sizeof Address, &Argument, sizeof Argument);
  std::promise<Expected<std::vector<char>>> Answered;
  Calls->start(RunAsInt, Bytes, [&](auto Answer) { Answered.set_value(std::move(Answer)); });
  auto Answer = Answered.get_future().get();
  if (!Answer)
    return Answer.takeError();
  int32_t Result = 0;
  if (Answer->size() != sizeof Result)
    return createStringError(inconvertibleErrorCode(), "no answer of a function's");
  std::memcpy(&Result, Answer->data(), sizeof Result);
  return Result;
}

int main() {
  // Of what is written to an executor that is gone.
  std::signal(SIGPIPE, SIG_IGN);
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto One = std::make_unique<Executor>();
  auto Works = [&] {
    auto Answer = One->run("twice", 21);
    if (Answer)
      return *Answer == 42;
    consumeError(Answer.takeError());
    return false;
  };
  bool Bad = !Works();
  for (const char *Attempt : {"crash", "loop", "allocate", "write_code", "flood"}) {
    auto Answer = One->run(Attempt, 0);
    std::string Told =
        Answer ? "answered " + std::to_string(*Answer) : toString(Answer.takeError());
    std::printf("%s: %s\n", Attempt, Told.c_str());
    // Only of memory there is an end that the code itself can see.
    Bad |= Answer && (StringRef(Attempt) != "allocate" || *Answer != -12);
    const char *Which = "the same";
    if (!Works()) {
      One = std::make_unique<Executor>();
      Which = "a new";
      Bad |= !Works();
    }
    std::printf("  then 2 * 21 = 42 in %s executor\n", Which);
    std::fflush(stdout);
  }
  One.reset();
  // No process is left.
  Bad |= waitpid(-1, nullptr, WNOHANG) != -1;
  return Bad;
}
