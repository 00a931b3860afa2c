// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The floor: what is left of a manager's cost when it doesn't manage. It bumps a pointer in
// two-view memory and gives nothing back before it is destroyed.
#pragma once

#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/Support/Error.h"

#include <array>
#include <memory>

namespace bench {

class FloorMemoryManager : public llvm::jitlink::JITLinkMemoryManager {
public:
  static llvm::Expected<std::unique_ptr<FloorMemoryManager>> Create();
  ~FloorMemoryManager() override;

  FloorMemoryManager(const FloorMemoryManager &) = delete;
  FloorMemoryManager &operator=(const FloorMemoryManager &) = delete;

  void allocate(const llvm::jitlink::JITLinkDylib *JD, llvm::jitlink::LinkGraph &G,
                OnAllocatedFunction OnAllocated) override;
  using JITLinkMemoryManager::allocate;

  void deallocate(std::vector<FinalizedAlloc> Allocs, OnDeallocatedFunction OnDeallocated) override;
  using JITLinkMemoryManager::deallocate;

private:
  class Allocation;

  /// The memory of one protection. Where the two views are one, the memory is private.
  struct Area {
    char *Executor = nullptr;
    char *Writer = nullptr;
    size_t Size = 0;
    size_t Used = 0;
  };

  FloorMemoryManager() = default;
  llvm::Error reserve();
  llvm::Error mapTwice(Area &A, int Protection);
  Area &areaFor(llvm::orc::MemProt Protection);

  char *Window = nullptr;
  Area Code, Constants, Data;
};

} // namespace bench
