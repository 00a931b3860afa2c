// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The one list of what is compared.
#pragma once

#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"
#include "llvm/Support/Error.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace bench {

enum class Role {
  /// One of LLVM's own: what the others are compared with.
  Reference,
  /// As fast as a manager of this kind could be.
  Floor,
  Subject,
  /// Measured only where it is asked for by name; no target is about it.
  Extra,
};

/// A manager is reached through the ExecutorProcessControl that owns it, so that one whose executor
/// is another process is a row like any other.
struct ManagerSpec {
  std::string Name;
  std::string Summary;
  Role Kind;
  bool InProcess;
  std::function<llvm::Expected<std::unique_ptr<llvm::orc::ExecutorProcessControl>>()> Create;
};

std::vector<ManagerSpec> allManagers();

inline constexpr llvm::StringLiteral LLVMInProcess = "llvm-in-process";
inline constexpr llvm::StringLiteral LLVMMapper = "llvm-mapper";
inline constexpr llvm::StringLiteral FloorName = "floor";
inline constexpr llvm::StringLiteral Jitmem = "jitmem";
inline constexpr llvm::StringLiteral JitmemMprotect = "jitmem-mprotect";
inline constexpr llvm::StringLiteral DispatcherName = "InPlaceTaskDispatcher";

} // namespace bench
