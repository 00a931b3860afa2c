// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// LLJIT in one process, its code in a child, which offers functions of its own to that code.
#include <jitmem/orc.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <sys/wait.h>
#include <unistd.h>
using namespace llvm;

static const char Source[] = R"(
  declare i32 @say(i32)
  define i32 @twice(i32 %n) { %m = add i32 %n, %n  %r = call i32 @say(i32 %m)  ret i32 %r }
)";

/// What the child offers.
extern "C" int say(int Number) {
  std::printf("%d, says the child\n", Number);
  std::fflush(stdout);
  return Number;
}

/// The executor: serves until its controller hangs up. It needs none of LLVM.
static int serve(int In, int Out) {
  jitmem_bootstrap_symbol Symbol{"say", reinterpret_cast<uintptr_t>(&say), {}};
  jitmem_serve_options Options{};
  Options.struct_size = sizeof Options;
  Options.symbols = &Symbol;
  Options.symbol_count = 1;
  Options.llvm_version = LLVM_VERSION_MAJOR;
  jitmem_error *E = nullptr;
  if (jitmem_executor_serve(In, Out, &Options, &E) == JITMEM_OK)
    return 0;
  std::fprintf(stderr, "child-cpp, child: %s\n", jitmem_error_message(E));
  jitmem_error_free(E);
  return 1;
}

/// The controller.
static int control(int In, int Out) {
  ExitOnError OrExit("child-cpp: ");
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  orc::SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager = [](orc::SimpleRemoteEPC &EPC) {
    return jitmem::orc::MemoryManager::Create(EPC);
  };
  auto Dispatcher = std::make_unique<orc::DynamicThreadPoolTaskDispatcher>(std::nullopt);
  auto EPC = OrExit(orc::SimpleRemoteEPC::Create<orc::FDSimpleRemoteEPCTransport>(
      std::move(Dispatcher), std::move(Setup), In, Out));
  orc::ExecutorAddr Say;
  OrExit(EPC->getBootstrapSymbols({{Say, "say"}}));
  auto JIT = OrExit(orc::LLJITBuilder()
                        .setExecutorProcessControl(std::move(EPC))
                        .setPlatformSetUp(orc::setUpInactivePlatform)
                        .create());
  auto Symbol = JIT->mangleAndIntern("say");
  OrExit(JIT->getMainJITDylib().define(
      orc::absoluteSymbols({{Symbol, {Say, JITSymbolFlags::Exported}}})));
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Source, Diagnostic, *Context);
  OrExit(JIT->addIRModule({std::move(Module), std::move(Context)}));
  auto Twice = OrExit(JIT->lookup("twice"));
  int Answer =
      OrExit(JIT->getExecutionSession().getExecutorProcessControl().runAsIntFunction(Twice, 21));
  return Answer == 42 ? 0 : 1;
}

int main() {
  int ToChild[2], FromChild[2];
  pid_t Child;
  if (pipe(ToChild) != 0 || pipe(FromChild) != 0 || (Child = fork()) < 0) {
    std::perror("child-cpp");
    return 1;
  }
  if (Child == 0) {
    close(ToChild[1]);
    close(FromChild[0]);
    _exit(serve(ToChild[0], FromChild[1]));
  }
  close(ToChild[0]);
  close(FromChild[1]);
  int Failed = control(FromChild[0], ToChild[1]), Status = 1;
  waitpid(Child, &Status, 0);
  return Failed || Status != 0;
}
