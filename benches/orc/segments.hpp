// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The small graph of workloads (a), (d) and (e): R-X 256 bytes, R-- 64 bytes, RW- 64 bytes.
#pragma once

#include "llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h"
#include "llvm/ExecutionEngine/Orc/Core.h"

#include <array>
#include <vector>

namespace bench {

class SmallGraphs {
public:
  static constexpr size_t CodeSize = 256;
  /// Of the constants, and of the data.
  static constexpr size_t OtherSize = 64;
  using FinalizedAlloc = llvm::jitlink::JITLinkMemoryManager::FinalizedAlloc;

  explicit SmallGraphs(llvm::orc::ExecutionSession &ES);

  /// Allocates, writes the content and finalizes. On x86-64 the code is a function int(int) that
  /// adds Number to its argument.
  llvm::Expected<FinalizedAlloc> add(uint32_t Number, llvm::orc::ExecutorAddr *Code = nullptr);
  llvm::Error remove(FinalizedAlloc Alloc);
  /// In one call.
  llvm::Error removeAll(std::vector<FinalizedAlloc> Allocs);

private:
  llvm::orc::ExecutionSession &ES;
  llvm::jitlink::JITLinkMemoryManager &Manager;
  llvm::orc::JITDylib &JD;
  llvm::Triple Target;
  llvm::jitlink::SimpleSegmentAlloc::SegmentMap Segments;
  std::array<char, CodeSize> Code;
  std::array<char, OtherSize> Other;
};

} // namespace bench
