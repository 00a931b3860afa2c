// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host that is there to be looked at by debuggers and profilers: `debugged WORK OBJECT...`. It
// links the objects with its own defaults, tells gdb of them as ORC does, and works.
//   call      calls linked_outer(5)
//   wait      says process and mapper, waits for a byte on stdin, and calls linked_outer(5)
//   executor, executor-wait
//             the same in an executor: EXECUTOR, a program, is given filedescs=20,21
//   executor-perf-map
//             writes the map of an executor, and has it spin
//   executor-reuse
//             runs functions of two objects in turn, which take each other's place
//   plugin    has jitmem's plugin tell all of them, spins, calls linked_outer(5), removes
//             everything and calls removed()
//   plugin-chain, plugin-chain-by-name
//             has jitmem's plugin write a jitdump with how functions are unwound, or without, and
//             spins below other functions
//   perf-map  writes /tmp/perf-PID.map as JITs do, and spins
//   jitdump   has ORC's plugin write a jitdump file, and spins

#include "compat_orc.h"

#include <jitmem/orc.hpp>
#include <jitmem/orc_debug.hpp>
#include <llvm/ExecutionEngine/Orc/Debugging/DebuggerSupport.h>
#include <llvm/ExecutionEngine/Orc/Debugging/PerfSupportPlugin.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/JITLoaderPerf.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <set>
#include <string>
#include <sys/prctl.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

// A place where a debugger can stop and knows an address.
extern "C" __attribute__((noinline)) void linked(int (*Outer)(int)) {
  asm volatile("" : : "r"(Outer) : "memory");
}

// The same once everything is removed.
extern "C" __attribute__((noinline)) void removed() { asm volatile("" : : : "memory"); }

static void writePerfMap(pid_t Process, ExecutorAddr Function) {
  std::string Path = "/tmp/perf-" + std::to_string(Process) + ".map";
  if (FILE *File = fopen(Path.c_str(), "w")) {
    fprintf(File, "%llx 80 spin_of_the_map\n",
            static_cast<unsigned long long>(Function.getValue()));
    fclose(File);
  }
}

// Lets a debugger attach that is no parent.
static void admitDebuggers() { prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0); }

// For works that wait: a debugger attaches to `Process` meanwhile.
static bool waitForByte(pid_t Process, const std::string &Mapper) {
  printf("%d %s\n", Process, Mapper.c_str());
  fflush(stdout);
  return getchar() != EOF;
}

// Starts an executor that may be a debugger with one inside, and connects.
static Expected<std::unique_ptr<ExecutorProcessControl>> launch(pid_t &Process,
                                                                std::string &Mapper) {
  int ToChild[2], FromChild[2];
  if (pipe(ToChild) != 0 || pipe(FromChild) != 0)
    return createStringError(std::errc::io_error, "pipe");
  Process = fork();
  if (Process == 0) {
    admitDebuggers();
    dup2(ToChild[0], 20);
    dup2(FromChild[1], 21);
    for (int FD : {ToChild[0], ToChild[1], FromChild[0], FromChild[1]})
      close(FD);
    setenv("JITMEM_EXECUTOR_LLVM", std::to_string(LLVM_VERSION_MAJOR).c_str(), 1);
    execl(getenv("EXECUTOR"), "executor", "filedescs=20,21", nullptr);
    _exit(127);
  }
  close(ToChild[0]);
  close(FromChild[1]);
  SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager =
      [&](SimpleRemoteEPC &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
    auto MemMgr = jitmem::orc::MemoryManager::Create(EPC);
    if (!MemMgr)
      return MemMgr.takeError();
    Mapper = (*MemMgr)->stats().mapper_name;
    return std::move(*MemMgr);
  };
  return SimpleRemoteEPC::Create<FDSimpleRemoteEPCTransport>(
      std::make_unique<DynamicThreadPoolTaskDispatcher>(std::nullopt), std::move(Setup),
      FromChild[0], ToChild[1]);
}

static Error writeJITDump(LLJIT &J) {
  // As symbols of LLVM's library they are found in the process.
  auto &Layer = static_cast<ObjectLinkingLayer &>(J.getObjLinkingLayer());
  auto &ES = J.getExecutionSession();
  auto &Names = ES.createBareJITDylib("perf");
  SymbolMap Functions;
  auto Add = [&](const char *Name, auto *Function) {
    Functions[J.getExecutionSession().intern(Name)] = {ExecutorAddr::fromPtr(Function),
                                                       JITSymbolFlags::Exported};
  };
  Add("llvm_orc_registerJITLoaderPerfStart", &llvm_orc_registerJITLoaderPerfStart);
  Add("llvm_orc_registerJITLoaderPerfEnd", &llvm_orc_registerJITLoaderPerfEnd);
  Add("llvm_orc_registerJITLoaderPerfImpl", &llvm_orc_registerJITLoaderPerfImpl);
  if (Error Err = Names.define(absoluteSymbols(std::move(Functions))))
    return Err;
  auto Plugin = PerfSupportPlugin::Create(ES.getExecutorProcessControl(), Names,
                                          /*EmitDebugInfo=*/false, /*EmitUnwindInfo=*/false);
  if (!Plugin)
    return Plugin.takeError();
  Layer.addPlugin(std::move(*Plugin));
  return Error::success();
}

// Into JITDUMPDIR too, if that is set.
static Error addPlugin(LLJIT &J, bool Unwinding) {
  jitmem::orc::DebugOptions Options; // gdb, lldb, /tmp/perf-PID.map
  if (const char *Folder = getenv("JITDUMPDIR"))
    Options.JITDump = Folder;
  Options.JITDumpUnwinding = Unwinding; // true by default
  auto Plugin = jitmem::orc::DebugPlugin::Create(J.getExecutionSession(), Options);
  if (!Plugin)
    return Plugin.takeError();
  static_cast<ObjectLinkingLayer &>(J.getObjLinkingLayer()).addPlugin(std::move(*Plugin));
  return Error::success();
}

// Says how many answers were wrong, and of how many places.
static int reuse(LLJIT &J, char *Objects[], ExitOnError &OrExit) {
  const char *Names[] = {"replaced", "replacing"};
  int Wrong = 0;
  std::set<ExecutorAddr> Places;
  for (int I = 0; I != 50; ++I) {
    auto Tracker = J.getMainJITDylib().createResourceTracker();
    auto Object = OrExit(errorOrToExpected(MemoryBuffer::getFile(Objects[I % 2])));
    OrExit(J.addObjectFile(Tracker, std::move(Object)));
    ExecutorAddr Function = OrExit(J.lookup(Names[I % 2]));
    auto &Executor = J.getExecutionSession().getExecutorProcessControl();
    Wrong += OrExit(Executor.runAsIntFunction(Function, 1)) != 8 + 2 * (I % 2);
    Places.insert(Function);
    OrExit(Tracker->remove());
  }
  return printf("%d wrong at %zu places\n", Wrong, Places.size()) < 0;
}

int main(int Argc, char *Argv[]) {
  ExitOnError OrExit("debugged: ");
  if (Argc < 3)
    return fprintf(stderr, "usage: debugged WORK OBJECT...\n"), 2;
  std::string Work = Argv[1];
  admitDebuggers();
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();

  bool InExecutor = StringRef(Work).starts_with("executor");
  pid_t Process = getpid();
  std::string Mapper;
  std::unique_ptr<ExecutorProcessControl> EPC;
  if (InExecutor) {
    EPC = OrExit(launch(Process, Mapper));
  } else {
    auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
    Mapper = MemMgr->stats().mapper_name;
    EPC = OrExit(SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MemMgr)));
  }
  auto J = OrExit(LLJITBuilder().setExecutorProcessControl(std::move(EPC)).create());
  if (Work == "jitdump")
    OrExit(writeJITDump(*J));
  else if (StringRef(Work).starts_with("plugin"))
    OrExit(addPlugin(*J, Work != "plugin-chain-by-name"));
  else
    OrExit(enableDebuggerSupport(*J));
  if (Work == "executor-reuse")
    return reuse(*J, Argv + 2, OrExit);
  for (int I = 2; I != Argc; ++I)
    OrExit(J->addObjectFile(OrExit(errorOrToExpected(MemoryBuffer::getFile(Argv[I])))));
  if (StringRef(Work).starts_with("plugin-chain")) {
    int Sum = OrExit(J->lookup("chain_0")).toPtr<int(int)>()(1000);
    return printf("%s: %d\n", Mapper.c_str(), Sum) < 0;
  }
  ExecutorAddr LinkedOuter = OrExit(J->lookup("linked_outer"));
  if ((Work == "wait" || Work == "executor-wait") && !waitForByte(Process, Mapper))
    return 1;
  if (InExecutor) {
    auto &Executor = J->getExecutionSession().getExecutorProcessControl();
    if (Work == "executor-perf-map") {
      ExecutorAddr Spin = OrExit(J->lookup("spin_millions"));
      writePerfMap(Process, Spin);
      int Bit = OrExit(Executor.runAsIntFunction(Spin, 500));
      return printf("%s: %d\n", Mapper.c_str(), Bit) < 0;
    }
    int Result = OrExit(Executor.runAsIntFunction(LinkedOuter, 5));
    return printf("outer(5) = %d, %s\n", Result, Mapper.c_str()) < 0;
  }
  auto *Outer = LinkedOuter.toPtr<int(int)>();
  ExecutorAddr Spin = OrExit(J->lookup("spin"));
  linked(Outer);

  if (Work == "perf-map" || Work == "jitdump") {
    if (Work == "perf-map")
      writePerfMap(Process, Spin);
    unsigned long Sum = Spin.toPtr<unsigned long(unsigned long)>()(500'000'000);
    return printf("%s: %lu\n", Mapper.c_str(), Sum) < 0;
  }
  if (Work == "plugin") {
    if (getenv("JITDUMPDIR")) {
      unsigned long Sum = Spin.toPtr<unsigned long(unsigned long)>()(500'000'000);
      printf("%s: %lu\n", Mapper.c_str(), Sum);
    }
    printf("outer(5) = %d, %s\n", Outer(5), Mapper.c_str());
    OrExit(J->getMainJITDylib().clear());
    removed();
    return 0;
  }
  return printf("outer(5) = %d, %s\n", Outer(5), Mapper.c_str()) < 0;
}
