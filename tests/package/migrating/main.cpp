// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What docs/migrating.md shows: the same program linked through each of LLVM's memory managers and
// through jitmem in its place. usage: migrating EXECUTOR
#include <jitmem/orc.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/MapperJITLinkMemoryManager.h>
#include <llvm/ExecutionEngine/Orc/MemoryMapper.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/Orc/Shared/OrcRTBridge.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <functional>
#include <string>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>
using namespace llvm;

static ExitOnError OrExit("migrating: ");
static const char Source[] =
    "define i32 @answer(i32 %n) { %m = add i32 %n, %n  %r = sub i32 %m, 42  ret i32 %r }";

/// Links `answer` and has the executor call it.
static bool works(orc::LLJIT &JIT) {
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Source, Diagnostic, *Context);
  OrExit(JIT.addIRModule({std::move(Module), std::move(Context)}));
  auto Answer = OrExit(JIT.lookup("answer"));
  auto &EPC = JIT.getExecutionSession().getExecutorProcessControl();
  return OrExit(EPC.runAsIntFunction(Answer, 42)) == 42;
}

static bool worksWith(std::unique_ptr<jitlink::JITLinkMemoryManager> MemMgr) {
  auto EPC = OrExit(orc::SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MemMgr)));
  return works(*OrExit(orc::LLJITBuilder().setExecutorProcessControl(std::move(EPC)).create()));
}

static bool inProcessMemoryManager() {
  auto MemMgr = OrExit(jitlink::InProcessMemoryManager::Create());
  return worksWith(std::move(MemMgr));
}

static bool jitmemInProcess() {
  auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
  return worksWith(std::move(MemMgr));
}

static bool inProcessMapper() {
  constexpr size_t Slab = 64 << 20;
  using orc::InProcessMemoryMapper, orc::MapperJITLinkMemoryManager;
  auto MemMgr = OrExit(MapperJITLinkMemoryManager::CreateWithMapper<InProcessMemoryMapper>(Slab));
  return worksWith(std::move(MemMgr));
}

static bool jitmemWithWindows() {
  jitmem::orc::Options Choices;
  Choices.WindowSize = 256 << 20;
  Choices.AnotherWindow = true;
  auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess(Choices));
  return worksWith(std::move(MemMgr));
}

static bool sectionMemoryManager() {
  orc::LLJITBuilder Builder;
  Builder.setObjectLinkingLayerCreator([](orc::ExecutionSession &ES) {
    auto NewMemMgr = [](const MemoryBuffer &) { return std::make_unique<SectionMemoryManager>(); };
    return std::make_unique<orc::RTDyldObjectLinkingLayer>(ES, std::move(NewMemMgr));
  });
  return works(*OrExit(Builder.create()));
}

static bool jitmemInALayer() {
  orc::LLJITBuilder Builder;
  Builder.setObjectLinkingLayerCreator([](orc::ExecutionSession &ES) {
    auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
    return std::make_unique<orc::ObjectLinkingLayer>(ES, std::move(MemMgr));
  });
  return works(*OrExit(Builder.create()));
}

using CreateMemoryManager = unique_function<orc::SimpleRemoteEPC::Setup::CreateMemoryManagerFn>;

/// As `works`, in a child that runs `Executor`.
static bool worksIn(const char *Executor, CreateMemoryManager Create) {
  int ToChild[2], FromChild[2];
  if (pipe(ToChild) != 0 || pipe(FromChild) != 0)
    OrExit(errorCodeToError(std::error_code(errno, std::generic_category())));
  pid_t Child = fork();
  if (Child == 0) {
    close(ToChild[1]);
    close(FromChild[0]);
    auto Channel = "filedescs=" + std::to_string(ToChild[0]) + "," + std::to_string(FromChild[1]);
    execl(Executor, Executor, Channel.c_str(), nullptr);
    _exit(127);
  }
  close(ToChild[0]);
  close(FromChild[1]);
  orc::SimpleRemoteEPC::Setup Setup;
  Setup.CreateMemoryManager = std::move(Create);
  auto EPC = OrExit(orc::SimpleRemoteEPC::Create<orc::FDSimpleRemoteEPCTransport>(
      std::make_unique<orc::DynamicThreadPoolTaskDispatcher>(std::nullopt), std::move(Setup),
      FromChild[0], ToChild[1]));
  bool Works = works(*OrExit(orc::LLJITBuilder()
                                 .setExecutorProcessControl(std::move(EPC))
                                 .setPlatformSetUp(orc::setUpInactivePlatform)
                                 .create()));
  int Status = 1;
  waitpid(Child, &Status, 0);
  return Works && Status == 0;
}

static bool genericMemoryManager(const char *Executor) { return worksIn(Executor, {}); }

static bool jitmemAcross(const char *Executor) {
  return worksIn(Executor,
                 [](orc::SimpleRemoteEPC &EPC) { return jitmem::orc::MemoryManager::Create(EPC); });
}

static bool sharedMemoryMapper(const char *Executor) {
  return worksIn(
      Executor,
      [](orc::SimpleRemoteEPC &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
        namespace rt = orc::rt;
        constexpr size_t Slab = 1 << 30;
        orc::SharedMemoryMapper::SymbolAddrs Service;
        if (auto E = EPC.getBootstrapSymbols(
                {{Service.Instance, rt::ExecutorSharedMemoryMapperServiceInstanceName},
                 {Service.Reserve, rt::ExecutorSharedMemoryMapperServiceReserveWrapperName},
                 {Service.Initialize, rt::ExecutorSharedMemoryMapperServiceInitializeWrapperName},
                 {Service.Deinitialize,
                  rt::ExecutorSharedMemoryMapperServiceDeinitializeWrapperName},
                 {Service.Release, rt::ExecutorSharedMemoryMapperServiceReleaseWrapperName}}))
          return E;
        using orc::MapperJITLinkMemoryManager, orc::SharedMemoryMapper;
        return MapperJITLinkMemoryManager::CreateWithMapper<SharedMemoryMapper>(Slab, EPC, Service);
      });
}

static bool jitmemShared(const char *Executor) {
  return worksIn(Executor, [](orc::SimpleRemoteEPC &EPC) {
    return jitmem::orc::MemoryManager::CreateShared(EPC);
  });
}

int main(int ArgCount, char **Args) {
  if (ArgCount != 2) {
    errs() << "usage: migrating EXECUTOR\n";
    return 2;
  }
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  const char *Executor = Args[1];
  const std::pair<const char *, std::function<bool()>> Steps[] = {
      {"InProcessMemoryManager", inProcessMemoryManager},
      {"  jitmem", jitmemInProcess},
      {"MapperJITLinkMemoryManager, InProcessMemoryMapper", inProcessMapper},
      {"  jitmem", jitmemWithWindows},
      {"MapperJITLinkMemoryManager, SharedMemoryMapper",
       [&] { return sharedMemoryMapper(Executor); }},
      {"  jitmem", [&] { return jitmemShared(Executor); }},
      {"EPCGenericJITLinkMemoryManager", [&] { return genericMemoryManager(Executor); }},
      {"  jitmem", [&] { return jitmemAcross(Executor); }},
      {"SectionMemoryManager", sectionMemoryManager},
      {"  jitmem", jitmemInALayer},
  };
  bool Works = true;
  for (auto &[Name, Step] : Steps) {
    bool Passed = Step();
    outs() << Name << (Passed ? ": ok\n" : ": FAILED\n");
    Works &= Passed;
  }
  return Works ? 0 : 1;
}
