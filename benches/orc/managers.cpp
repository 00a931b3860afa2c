// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "managers.hpp"
#include "floor.hpp"
#include "session.hpp"

#include "llvm/ExecutionEngine/Orc/EPCGenericJITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/MapperJITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/ExecutionEngine/Orc/Shared/OrcRTBridge.h"
#include "llvm/ExecutionEngine/Orc/SimpleRemoteMemoryMapper.h"
#include <jitmem/orc.hpp>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr size_t InProcessSlab = 64 << 20;
/// As llvm-jitlink has it.
static constexpr size_t AcrossSlab = 1 << 30;

using MemMgrPtr = std::unique_ptr<jitlink::JITLinkMemoryManager>;
using DispatcherPtr = std::unique_ptr<TaskDispatcher>;

template <class Manager>
static Expected<Host> inThisProcess(DispatcherPtr D, Expected<std::unique_ptr<Manager>> MemMgr) {
  if (!MemMgr)
    return MemMgr.takeError();
  Host H;
  if constexpr (std::is_same_v<Manager, jitmem::orc::MemoryManager>)
    H.Jitmem = MemMgr->get();
  auto EPC = SelfExecutorProcessControl::Create(nullptr, std::move(D), std::move(*MemMgr));
  if (!EPC)
    return EPC.takeError();
  H.EPC = std::move(*EPC);
  return H;
}

/// Create makes the manager for the connected EPC.
static Expected<Host> inAnotherProcess(const std::string &Program, DispatcherPtr D,
                                       Executor::CreateManager Create) {
  auto Other = Executor::Start(Program);
  if (!Other)
    return Other.takeError();
  auto EPC = (*Other)->connect(std::move(D), std::move(Create));
  if (!EPC)
    return EPC.takeError();
  Host H;
  H.Other = std::move(*Other);
  H.EPC = std::move(*EPC);
  return H;
}

static Expected<MemMgrPtr> createGeneric(SimpleRemoteEPC &EPC) {
  EPCGenericJITLinkMemoryManager::SymbolAddrs Service;
  if (Error Err = EPC.getBootstrapSymbols(
          {{Service.Allocator, rt::SimpleExecutorMemoryManagerInstanceName},
           {Service.Reserve, rt::SimpleExecutorMemoryManagerReserveWrapperName},
           {Service.Initialize, rt::SimpleExecutorMemoryManagerInitializeWrapperName},
           {Service.Deinitialize, rt::SimpleExecutorMemoryManagerDeinitializeWrapperName},
           {Service.Release, rt::SimpleExecutorMemoryManagerReleaseWrapperName}}))
    return Expected<MemMgrPtr>(std::move(Err));
  return std::make_unique<EPCGenericJITLinkMemoryManager>(EPC, Service);
}

/// Makes the manager reserve its slab, by one graph that lives until the executor ends.
///
/// LLVM's mapper manager holds its mutex from a request for the first slab until the answer has
/// been handled. If by then every worker of a pool waits for that mutex, none handles the answer.
static Error reserveSlab(jitlink::JITLinkMemoryManager &Manager, SimpleRemoteEPC &EPC) {
  Completion<Expected<jitlink::SimpleSegmentAlloc>> Created;
  jitlink::SimpleSegmentAlloc::Create(Manager, EPC.getSymbolStringPool(), EPC.getTargetTriple(),
                                      nullptr, {{AllocGroup(MemProt::Read), {1, Align(1)}}},
                                      Created.callback());
  auto Graph = Created.wait();
  if (!Graph)
    return Graph.takeError();
  Completion<Expected<jitlink::JITLinkMemoryManager::FinalizedAlloc>> Finalized;
  Graph->finalize(Finalized.callback());
  auto Alloc = Finalized.wait();
  if (!Alloc)
    return Alloc.takeError();
  Alloc->release();
  return Error::success();
}

template <class Mapper>
static Expected<MemMgrPtr> createMapperManager(SimpleRemoteEPC &EPC,
                                               const typename Mapper::SymbolAddrs &Service) {
  auto Manager = MapperJITLinkMemoryManager::CreateWithMapper<Mapper>(AcrossSlab, EPC, Service);
  if (!Manager)
    return Manager.takeError();
  if (Error Err = reserveSlab(**Manager, EPC))
    return Expected<MemMgrPtr>(std::move(Err));
  return std::move(*Manager);
}

static Expected<MemMgrPtr> createShared(SimpleRemoteEPC &EPC) {
  SharedMemoryMapper::SymbolAddrs Service;
  if (Error Err = EPC.getBootstrapSymbols(
          {{Service.Instance, rt::ExecutorSharedMemoryMapperServiceInstanceName},
           {Service.Reserve, rt::ExecutorSharedMemoryMapperServiceReserveWrapperName},
           {Service.Initialize, rt::ExecutorSharedMemoryMapperServiceInitializeWrapperName},
           {Service.Deinitialize, rt::ExecutorSharedMemoryMapperServiceDeinitializeWrapperName},
           {Service.Release, rt::ExecutorSharedMemoryMapperServiceReleaseWrapperName}}))
    return Expected<MemMgrPtr>(std::move(Err));
  return createMapperManager<SharedMemoryMapper>(EPC, Service);
}

static Expected<MemMgrPtr> createSimpleRemote(SimpleRemoteEPC &EPC) {
  SimpleRemoteMemoryMapper::SymbolAddrs Service;
  if (Error Err = EPC.getBootstrapSymbols(
          {{Service.Instance, rt::SimpleExecutorMemoryManagerInstanceName},
           {Service.Reserve, rt::SimpleExecutorMemoryManagerReserveWrapperName},
           {Service.Initialize, rt::SimpleExecutorMemoryManagerInitializeWrapperName},
           {Service.Deinitialize, rt::SimpleExecutorMemoryManagerDeinitializeWrapperName},
           {Service.Release, rt::SimpleExecutorMemoryManagerReleaseWrapperName}}))
    return Expected<MemMgrPtr>(std::move(Err));
  return createMapperManager<SimpleRemoteMemoryMapper>(EPC, Service);
}

using CreateJitmem = Expected<std::unique_ptr<jitmem::orc::MemoryManager>> (*)(
    ExecutorProcessControl &, const jitmem::orc::Options &);

static Expected<Host> jitmemInAnotherProcess(const std::string &Program, DispatcherPtr D,
                                             CreateJitmem Create, bool HasOwnChannel) {
  jitmem::orc::MemoryManager *Manager = nullptr;
  auto H = inAnotherProcess(Program, std::move(D), [&](SimpleRemoteEPC &EPC) {
    auto MemMgr = Create(EPC, {});
    if (MemMgr)
      Manager = MemMgr->get();
    return Expected<MemMgrPtr>(std::move(MemMgr));
  });
  // What it sends by EPC is counted there.
  if (H && HasOwnChannel)
    H->OwnTraffic = [Manager] {
      jitmem_stats Stats = Manager->stats();
      return Traffic{Stats.messages, Stats.message_bytes};
    };
  return H;
}

static void addThisProcess(std::vector<ManagerSpec> &Managers) {
  Managers.push_back({LLVMInProcess.str(), "jitlink::InProcessMemoryManager", Role::Reference, true,
                      [](const std::string &, DispatcherPtr D) {
                        return inThisProcess(std::move(D),
                                             jitlink::InProcessMemoryManager::Create());
                      }});
  Managers.push_back(
      {LLVMMapper.str(), "orc::MapperJITLinkMemoryManager over InProcessMemoryMapper, 64 MiB slab",
       Role::Reference, true, [](const std::string &, DispatcherPtr D) {
         return inThisProcess(
             std::move(D),
             MapperJITLinkMemoryManager::CreateWithMapper<InProcessMemoryMapper>(InProcessSlab));
       }});
  Managers.push_back({FloorName.str(),
                      "a bumped pointer in two-view memory, frees nothing, checks nothing",
                      Role::Floor, true, [](const std::string &, DispatcherPtr D) {
                        return inThisProcess(std::move(D), FloorMemoryManager::Create());
                      }});
  Managers.push_back({Jitmem.str(), "jitmem::orc::MemoryManager::CreateInProcess()", Role::Subject,
                      true, [](const std::string &, DispatcherPtr D) {
                        return inThisProcess(std::move(D),
                                             jitmem::orc::MemoryManager::CreateInProcess());
                      }});
  Managers.push_back({JitmemMprotect.str(),
                      "jitmem::orc::MemoryManager over whole pages whose protection changes, for "
                      "systems that refuse memfds",
                      Role::Extra, true, [](const std::string &, DispatcherPtr D) {
                        jitmem::orc::Options O;
                        O.Mapper = JITMEM_IN_PROCESS_MPROTECT;
                        return inThisProcess(std::move(D),
                                             jitmem::orc::MemoryManager::CreateInProcess(O));
                      }});
  Managers.push_back(
      {JitmemClosing.str(), "jitmem::orc::MemoryManager::CreateInProcess() with CloseWriters",
       Role::Extra, true, [](const std::string &, DispatcherPtr D) {
         jitmem::orc::Options O;
         O.CloseWriters = true;
         return inThisProcess(std::move(D), jitmem::orc::MemoryManager::CreateInProcess(O));
       }});
}

static void addAnotherProcess(std::vector<ManagerSpec> &Managers) {
  Managers.push_back({LLVMGeneric.str(), "orc::EPCGenericJITLinkMemoryManager", Role::Reference,
                      false, [](const std::string &Program, DispatcherPtr D) {
                        return inAnotherProcess(Program, std::move(D), createGeneric);
                      }});
  Managers.push_back({LLVMShared.str(),
                      "orc::MapperJITLinkMemoryManager over SharedMemoryMapper, 1 GiB slab",
                      Role::Reference, false, [](const std::string &Program, DispatcherPtr D) {
                        return inAnotherProcess(Program, std::move(D), createShared);
                      }});
  Managers.push_back({LLVMSimpleRemote.str(),
                      "orc::MapperJITLinkMemoryManager over SimpleRemoteMemoryMapper, 1 GiB slab",
                      Role::Reference, false, [](const std::string &Program, DispatcherPtr D) {
                        return inAnotherProcess(Program, std::move(D), createSimpleRemote);
                      }});
  Managers.push_back({JitmemShared.str(), "jitmem::orc::MemoryManager::CreateShared(EPC)",
                      Role::Subject, false, [](const std::string &Program, DispatcherPtr D) {
                        return jitmemInAnotherProcess(
                            Program, std::move(D), &jitmem::orc::MemoryManager::CreateShared, true);
                      }});
  Managers.push_back({JitmemRemote.str(), "jitmem::orc::MemoryManager::CreateRemote(EPC)",
                      Role::Subject, false, [](const std::string &Program, DispatcherPtr D) {
                        return jitmemInAnotherProcess(Program, std::move(D),
                                                      &jitmem::orc::MemoryManager::CreateRemote,
                                                      false);
                      }});
}

std::vector<ManagerSpec> allManagers() {
  std::vector<ManagerSpec> Managers;
  addThisProcess(Managers);
  addAnotherProcess(Managers);
  return Managers;
}

std::string rowName(StringRef Manager, Dispatch Tasks) {
  return (Manager + (Tasks == Dispatch::InPlace ? "" : ", " + nameOf(Tasks))).str();
}

std::string rowName(StringRef Manager, StringRef Executor) {
  return (Manager + " on " + Executor).str();
}

std::string Contender::row() const {
  if (NamesExecutor)
    return rowName(rowName(Manager.Name, On.Name), Tasks);
  return rowName(Manager.Name, Tasks);
}

std::vector<Contender> inOneProcess(const std::vector<ManagerSpec> &Managers) {
  std::vector<Contender> Contenders;
  for (const ManagerSpec &M : Managers)
    if (M.InProcess)
      Contenders.push_back({M, Dispatch::InPlace, Program()});
  return Contenders;
}

std::vector<Contender> acrossProcesses(const std::vector<ManagerSpec> &Managers,
                                       ArrayRef<Dispatch> Dispatches, const Program &On) {
  const Program Ours = {JitmemExecutor.str(), JITMEM_BENCH_JITMEM_EXECUTOR};
  std::vector<Contender> Contenders;
  for (Dispatch Tasks : Dispatches) {
    for (const ManagerSpec &M : Managers)
      if (!M.InProcess || M.Name == LLVMInProcess || M.Name == Jitmem)
        Contenders.push_back({M, Tasks, On});
    for (const ManagerSpec &M : Managers)
      if (M.Name == LLVMShared || M.Name == JitmemShared)
        Contenders.push_back({M, Tasks, Ours, /*NamesExecutor=*/true});
  }
  return Contenders;
}

std::vector<Contender> onExecutors(const std::vector<ManagerSpec> &Managers,
                                   ArrayRef<Program> Programs) {
  std::vector<Contender> Contenders;
  for (const ManagerSpec &M : Managers)
    for (const Program &P : Programs)
      if (!M.InProcess)
        Contenders.push_back({M, Dispatch::InPlace, P, /*NamesExecutor=*/true});
  return Contenders;
}

std::vector<Contender> executorsAlone(ArrayRef<Program> Programs) {
  std::vector<Contender> Contenders;
  for (const Program &P : Programs) {
    Role Kind = P.Name == JitmemExecutor ? Role::Subject : Role::Reference;
    Contenders.push_back({{P.Name, P.Path, Kind, false, nullptr}, Dispatch::InPlace, P});
  }
  return Contenders;
}

} // namespace bench
