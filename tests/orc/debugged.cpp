// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host that is there to be looked at by debuggers and profilers: `debugged WORK OBJECT...`. It
// links the objects with its own defaults, tells gdb of them as ORC does, and works.
//   call      calls linked_outer(5)
//   wait      says its mapper's name, waits for a byte on stdin, and calls linked_outer(5)
//   perf-map  writes /tmp/perf-PID.map as JITs do, and spins
//   jitdump   has ORC's plugin write a jitdump file, and spins

#include "compat_orc.h"

#include <jitmem/orc.hpp>
#include <llvm/ExecutionEngine/Orc/Debugging/DebuggerSupport.h>
#include <llvm/ExecutionEngine/Orc/Debugging/PerfSupportPlugin.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/JITLoaderPerf.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <string>
#include <sys/prctl.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

// A place where a debugger can stop and knows an address.
extern "C" __attribute__((noinline)) void linked(int (*Outer)(int)) {
  asm volatile("" : : "r"(Outer) : "memory");
}

static void writePerfMap(ExecutorAddr Function) {
  std::string Path = "/tmp/perf-" + std::to_string(getpid()) + ".map";
  if (FILE *File = fopen(Path.c_str(), "w")) {
    fprintf(File, "%llx 80 spin_of_the_map\n",
            static_cast<unsigned long long>(Function.getValue()));
    fclose(File);
  }
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

int main(int Argc, char *Argv[]) {
  ExitOnError OrExit("debugged: ");
  if (Argc < 3)
    return fprintf(stderr, "usage: debugged WORK OBJECT...\n"), 2;
  std::string Work = Argv[1];
  // A debugger that is no parent may attach too.
  prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();

  auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
  std::string Mapper = MemMgr->stats().mapper_name;
  auto EPC = OrExit(SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MemMgr)));
  auto J = OrExit(LLJITBuilder().setExecutorProcessControl(std::move(EPC)).create());
  if (Work == "jitdump")
    OrExit(writeJITDump(*J));
  else
    OrExit(enableDebuggerSupport(*J));
  for (int I = 2; I != Argc; ++I)
    OrExit(J->addObjectFile(OrExit(errorOrToExpected(MemoryBuffer::getFile(Argv[I])))));
  auto *Outer = OrExit(J->lookup("linked_outer")).toPtr<int(int)>();
  ExecutorAddr Spin = OrExit(J->lookup("spin"));
  linked(Outer);

  if (Work == "perf-map" || Work == "jitdump") {
    if (Work == "perf-map")
      writePerfMap(Spin);
    unsigned long Sum = Spin.toPtr<unsigned long(unsigned long)>()(500'000'000);
    return printf("%s: %lu\n", Mapper.c_str(), Sum) < 0;
  }
  if (Work == "wait") {
    printf("%s\n", Mapper.c_str());
    fflush(stdout);
    if (getchar() == EOF)
      return 1;
  }
  return printf("outer(5) = %d, %s\n", Outer(5), Mapper.c_str()) < 0;
}
