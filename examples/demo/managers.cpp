// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "managers.hpp"

#include "llvm/ExecutionEngine/Orc/EPCGenericJITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/MapperJITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/Shared/OrcRTBridge.h"

using namespace llvm;
using namespace llvm::orc;

namespace demo {

template <typename ManagerT>
static Expected<Manager> toManager(Expected<std::unique_ptr<ManagerT>> MemMgr) {
  if (!MemMgr)
    return MemMgr.takeError();
  Manager M;
  if constexpr (std::is_same_v<ManagerT, jitmem::orc::MemoryManager>)
    M.Jitmem = MemMgr->get();
  M.Owned = std::move(*MemMgr);
  return M;
}

// What SimpleRemoteEPC makes by default.
static Expected<Manager> createGeneric(ExecutorProcessControl &EPC) {
  EPCGenericJITLinkMemoryManager::SymbolAddrs Service;
  if (auto E = EPC.getBootstrapSymbols(
          {{Service.Allocator, rt::SimpleExecutorMemoryManagerInstanceName},
           {Service.Reserve, rt::SimpleExecutorMemoryManagerReserveWrapperName},
           {Service.Initialize, rt::SimpleExecutorMemoryManagerInitializeWrapperName},
           {Service.Deinitialize, rt::SimpleExecutorMemoryManagerDeinitializeWrapperName},
           {Service.Release, rt::SimpleExecutorMemoryManagerReleaseWrapperName}}))
    return E;
  return Manager{std::make_unique<EPCGenericJITLinkMemoryManager>(EPC, Service)};
}

static Expected<Manager> createShared(ExecutorProcessControl &EPC) {
  SharedMemoryMapper::SymbolAddrs Service;
  if (auto E = EPC.getBootstrapSymbols(
          {{Service.Instance, rt::ExecutorSharedMemoryMapperServiceInstanceName},
           {Service.Reserve, rt::ExecutorSharedMemoryMapperServiceReserveWrapperName},
           {Service.Initialize, rt::ExecutorSharedMemoryMapperServiceInitializeWrapperName},
           {Service.Deinitialize, rt::ExecutorSharedMemoryMapperServiceDeinitializeWrapperName},
           {Service.Release, rt::ExecutorSharedMemoryMapperServiceReleaseWrapperName}}))
    return E;
  constexpr size_t Slab = 1 << 30; // llvm-jitlink's
  return toManager(
      MapperJITLinkMemoryManager::CreateWithMapper<SharedMemoryMapper>(Slab, EPC, Service));
}

std::vector<MeasuredManager> managersAcross() {
  return {
      {"jitmem", "jitmem::orc::MemoryManager::Create(EPC)", true,
       [](ExecutorProcessControl &EPC) {
         return toManager(jitmem::orc::MemoryManager::Create(EPC));
       }},
      {"LLVM shared", "llvm::orc::MapperJITLinkMemoryManager over SharedMemoryMapper", true,
       createShared},
      {"jitmem remote", "jitmem::orc::MemoryManager::CreateRemote(EPC), for other machines", true,
       [](ExecutorProcessControl &EPC) {
         return toManager(jitmem::orc::MemoryManager::CreateRemote(EPC));
       }},
      {"LLVM EPC", "llvm::orc::EPCGenericJITLinkMemoryManager", true, createGeneric},
  };
}

std::vector<MeasuredManager> managersInProcess(jitmem_in_process_kind Mapper) {
  return {
      {"jitmem in-process", "jitmem::orc::MemoryManager::Create(EPC)", false,
       [Mapper](ExecutorProcessControl &EPC) {
         jitmem::orc::Options Choices;
         Choices.Mapper = Mapper;
         return toManager(jitmem::orc::MemoryManager::Create(EPC, Choices));
       }},
      {"LLVM in-process", "llvm::jitlink::InProcessMemoryManager", false,
       [](ExecutorProcessControl &) {
         return toManager(jitlink::InProcessMemoryManager::Create());
       }},
  };
}

template <typename T> static T medianOf(ArrayRef<Figures> Runs, T Figures::*Field) {
  std::vector<T> Values;
  for (const Figures &F : Runs)
    Values.push_back(F.*Field);
  llvm::sort(Values);
  return Values[Values.size() / 2];
}

Figures Outcome::median() const {
  Figures F;
  F.Objects = medianOf(Runs, &Figures::Objects);
  F.Milliseconds = medianOf(Runs, &Figures::Milliseconds);
  F.Content = medianOf(Runs, &Figures::Content);
  F.Memory = medianOf(Runs, &Figures::Memory);
  F.Mappings = medianOf(Runs, &Figures::Mappings);
  F.Messages = medianOf(Runs, &Figures::Messages);
  F.MessageBytes = medianOf(Runs, &Figures::MessageBytes);
  return F;
}

} // namespace demo
