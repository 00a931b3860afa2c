// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The one list of what is compared.
#pragma once

#include "dispatchers.hpp"
#include "executor.hpp"

#include "llvm/ADT/ArrayRef.h"
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

struct ManagerSpec {
  std::string Name;
  std::string Summary;
  Role Kind;
  /// The linked code runs in this process.
  bool InProcess;
  std::function<llvm::Expected<Host>(std::unique_ptr<llvm::orc::TaskDispatcher>)> Create;
};

/// A manager under a dispatcher: what is measured as a whole.
struct Contender {
  ManagerSpec Manager;
  Dispatch Tasks = Dispatch::InPlace;

  /// Names its cells.
  std::string row() const;
};

/// Program is the executor of those managers whose linked code runs in another process.
std::vector<ManagerSpec> allManagers(const std::string &Program);
/// Those of this process, in place: with one thread, nothing but the managers differs.
std::vector<Contender> inOneProcess(const std::vector<ManagerSpec> &Managers);
/// Those of other processes and, beside them, one of LLVM's and jitmem of this process, each under
/// every one of Dispatches.
std::vector<Contender> acrossProcesses(const std::vector<ManagerSpec> &Managers,
                                       llvm::ArrayRef<Dispatch> Dispatches);
std::string rowName(llvm::StringRef Manager, Dispatch Tasks);

inline constexpr llvm::StringLiteral LLVMInProcess = "llvm-in-process";
inline constexpr llvm::StringLiteral LLVMMapper = "llvm-mapper";
inline constexpr llvm::StringLiteral FloorName = "floor";
inline constexpr llvm::StringLiteral Jitmem = "jitmem";
inline constexpr llvm::StringLiteral JitmemMprotect = "jitmem-mprotect";
inline constexpr llvm::StringLiteral LLVMGeneric = "llvm-epc";
inline constexpr llvm::StringLiteral LLVMShared = "llvm-shared";
inline constexpr llvm::StringLiteral LLVMSimpleRemote = "llvm-simple-remote";
inline constexpr llvm::StringLiteral JitmemShared = "jitmem-shared";
inline constexpr llvm::StringLiteral JitmemRemote = "jitmem-remote";

} // namespace bench
