// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "managers.hpp"
#include "floor.hpp"

#include "llvm/ExecutionEngine/Orc/MapperJITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/ExecutionEngine/Orc/TaskDispatch.h"
#include <jitmem/orc.hpp>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr size_t MapperSlab = 64 << 20;

template <class Manager>
static Expected<std::unique_ptr<ExecutorProcessControl>>
inThisProcess(Expected<std::unique_ptr<Manager>> MemMgr) {
  if (!MemMgr)
    return MemMgr.takeError();
  return SelfExecutorProcessControl::Create(nullptr, std::make_unique<InPlaceTaskDispatcher>(),
                                            std::move(*MemMgr));
}

std::vector<ManagerSpec> allManagers() {
  std::vector<ManagerSpec> Managers;
  Managers.push_back({LLVMInProcess.str(), "jitlink::InProcessMemoryManager", Role::Reference, true,
                      [] { return inThisProcess(jitlink::InProcessMemoryManager::Create()); }});
  Managers.push_back(
      {LLVMMapper.str(), "orc::MapperJITLinkMemoryManager over InProcessMemoryMapper, 64 MiB slab",
       Role::Reference, true, [] {
         return inThisProcess(
             MapperJITLinkMemoryManager::CreateWithMapper<InProcessMemoryMapper>(MapperSlab));
       }});
  Managers.push_back(
      {FloorName.str(), "a bumped pointer in two-view memory, frees nothing, checks nothing",
       Role::Floor, true, [] { return inThisProcess(FloorMemoryManager::Create()); }});
  Managers.push_back({Jitmem.str(), "jitmem::orc::MemoryManager::CreateInProcess()", Role::Subject,
                      true,
                      [] { return inThisProcess(jitmem::orc::MemoryManager::CreateInProcess()); }});
  Managers.push_back({JitmemMprotect.str(),
                      "jitmem::orc::MemoryManager over whole pages whose protection changes, for "
                      "systems that refuse memfds",
                      Role::Extra, true, [] {
                        jitmem::orc::Options O;
                        O.Mapper = JITMEM_IN_PROCESS_MPROTECT;
                        return inThisProcess(jitmem::orc::MemoryManager::CreateInProcess(O));
                      }});
  return Managers;
}

} // namespace bench
