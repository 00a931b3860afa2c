// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// clang::Interpreter with its memory from jitmem: C++ line by line, in this process, then in
// jitmem-executor, which may crash: another one goes on with the session.
//
// Usage: jitmem-interpreter PATH-OF-JITMEM-EXECUTOR
#include <clang/Frontend/CompilerInstance.h>
#include <clang/Interpreter/IncrementalExecutor.h>
#include <clang/Interpreter/Interpreter.h>
#include <jitmem/orc.hpp>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>
using namespace llvm;

static ExitOnError OrExit("interpreter: ");
using Manager = jitmem::orc::MemoryManager;

/// What of a session is not undone: declarations, objects with constructors, functions of several
/// lines.
static const char *const Begin[] = {
    "#include <cstdio>\n#include <stdexcept>\n#include <string>\n#include <vector>\n",
    "struct Named {\n  std::string Name;\n  ~Named() { std::printf(\"  %s goes\\n\", "
    "Name.c_str()); }\n};",
    "Named Global{\"Global\"};",
    "int fib(int N) {\n  if (N < 2)\n    return N;\n  return fib(N - 1) + fib(N - 2);\n}",
    "std::vector<int> Values{1, 2, 3};",
};

/// An interpreter, its manager, and the process of its executor, or 0.
struct Session {
  std::unique_ptr<clang::Interpreter> Interpreter;
  Manager *Memory = nullptr;
  pid_t Executor = 0;

  /// Whether a line compiles and runs.
  bool run(const char *Line) {
    Error E = Interpreter->ParseAndExecute(Line);
    if (!E)
      return true;
    std::printf("  refused: %s\n", toString(std::move(E)).c_str());
    return false;
  }

  /// Ends it, and says whether its executor came to this end.
  bool end(bool Crashed) {
    // clang ends the whole program where the destructors of a session can't be run any more, so the
    // interpreter of an executor that has crashed stays.
    if (Crashed)
      (void)Interpreter.release();
    Interpreter.reset();
    int Status = 0;
    if (Executor != 0)
      waitpid(Executor, &Status, 0);
    return Crashed ? WIFSIGNALED(Status) : Status == 0;
  }
};

static std::unique_ptr<orc::ExecutorProcessControl> here(Manager *&Memory) {
  auto Made = OrExit(Manager::CreateInProcess());
  Memory = Made.get();
  return OrExit(orc::SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(Made)));
}

static std::unique_ptr<orc::ExecutorProcessControl> there(const char *Program, Manager *&Memory,
                                                          pid_t &Child) {
  int ToChild[2], FromChild[2];
  if (pipe(ToChild) != 0 || pipe(FromChild) != 0 || (Child = fork()) < 0) {
    std::perror("interpreter");
    std::exit(1);
  }
  if (Child == 0) {
    close(ToChild[1]);
    close(FromChild[0]);
    const std::string Ends =
        "filedescs=" + std::to_string(ToChild[0]) + "," + std::to_string(FromChild[1]);
    execl(Program, Program, Ends.c_str(), static_cast<char *>(nullptr));
    std::perror(Program);
    _exit(127);
  }
  close(ToChild[0]);
  close(FromChild[1]);
  orc::SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager =
      [&Memory](
          orc::SimpleRemoteEPC &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
    auto Made = Manager::Create(EPC);
    if (!Made)
      return Made.takeError();
    Memory = Made->get();
    return std::move(*Made);
  };
  auto Dispatcher = std::make_unique<orc::DynamicThreadPoolTaskDispatcher>(std::nullopt);
  return OrExit(orc::SimpleRemoteEPC::Create<orc::FDSimpleRemoteEPCTransport>(
      std::move(Dispatcher), std::move(Setup), FromChild[0], ToChild[1]));
}

/// A session that has begun; in this process where Program is nullptr.
static Session begin(const char *Program) {
  Session S;
  auto Executor = std::make_unique<clang::IncrementalExecutorBuilder>();
  Executor->JITBuilder = std::make_unique<orc::LLJITBuilder>();
  if (Program == nullptr) {
    Executor->JITBuilder->setExecutorProcessControl(here(S.Memory));
  } else {
    Executor->JITBuilder->setExecutorProcessControl(there(Program, S.Memory, S.Executor));
    Executor->JITBuilder->setPlatformSetUp(orc::ExecutorNativePlatform(ORC_RUNTIME));
    Executor->IsOutOfProcess = true;
  }
  clang::IncrementalCompilerBuilder Compiler;
  Compiler.SetCompilerArgs({"-std=c++17", "-resource-dir", RESOURCE_DIR});
  S.Interpreter =
      OrExit(clang::Interpreter::create(OrExit(Compiler.CreateCpp()), std::move(Executor)));
  for (const char *Line : Begin)
    OrExit(S.Interpreter->ParseAndExecute(Line));
  return S;
}

static bool check(bool Right, const char *What) {
  if (!Right)
    std::printf("  WRONG: %s\n", What);
  return Right;
}

/// What holds in each session: results, exceptions, undo. A line that answers wrongly throws.
static bool use(Session &S) {
  bool Right = check(S.run("if (fib(20) != 6765) throw 1;"), "fib");
  Right &= check(S.run("for (int I = 0; I < 3; I++)\n  Values.push_back(fib(I));"),
                 "a loop of two lines");
  Right &= check(S.run("if (Values.size() != 6) throw 1;"), "an object of earlier lines");
  Right &= check(
      S.run("try {\n  throw std::runtime_error(\"thrown\");\n} catch (const std::exception &E) {\n"
            "  std::printf(\"  caught what was %s\\n\", E.what());\n}"),
      "an exception");
  Right &= check(S.run("int Undone = 1;"), "a declaration");
  OrExit(S.Interpreter->Undo(1));
  Right &= check(S.run("const char *Undone = \"again\";"), "a name that was undone");
  OrExit(S.Interpreter->Undo(1));
  const auto Before = S.Memory->stats().finalized;
  for (int I = 0; I < 20; I++) {
    Right &= check(S.run("int Temporary = fib(5);"), "a line to be undone");
    OrExit(S.Interpreter->Undo(1));
  }
  const auto Stats = S.Memory->stats();
  Right &= check(Stats.finalized == Before, "memory of what was undone is given back");
  std::printf("  %s: %llu graphs live, %llu gone\n", Stats.mapper_name,
              static_cast<unsigned long long>(Stats.finalized),
              static_cast<unsigned long long>(Stats.deallocate_calls));
  std::fflush(stdout);
  return Right;
}

int main(int Count, char **Arguments) {
  if (Count != 2) {
    std::fprintf(stderr, "usage: %s PATH-OF-JITMEM-EXECUTOR\n", Arguments[0]);
    return 2;
  }
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();

  std::puts("in this process");
  Session Here = begin(nullptr);
  bool Right = use(Here);
  Right &= check(Here.end(false), "the end");

  std::puts("in another process, which crashes");
  Session There = begin(Arguments[1]);
  Right &= use(There);
  Right &= check(!There.run("*(volatile int *)8 = 0;"), "a crash is an error");
  Right &= check(There.end(true), "the executor was ended by a signal");

  std::puts("in the next one");
  Session Next = begin(Arguments[1]);
  Right &= use(Next);
  Right &= check(Next.end(false), "the end");
  std::puts(Right ? "all as it should be" : "something is wrong");
  return Right ? 0 : 1;
}
