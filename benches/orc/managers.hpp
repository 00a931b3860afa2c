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
  /// Program is the executor to start, unless the linked code runs in this process.
  std::function<llvm::Expected<Host>(const std::string &Program,
                                     std::unique_ptr<llvm::orc::TaskDispatcher>)>
      Create;
};

/// A program that runs linked code.
struct Program {
  std::string Name;
  std::string Path;
};

/// A manager under a dispatcher with an executor: what is measured as a whole.
struct Contender {
  ManagerSpec Manager;
  Dispatch Tasks = Dispatch::InPlace;
  Program On;
  /// Whether it is one of several that differ in their executors.
  bool NamesExecutor = false;

  /// Names its cells.
  std::string row() const;
};

std::vector<ManagerSpec> allManagers();
/// Those of this process, in place: with one thread, nothing but the managers differs.
std::vector<Contender> inOneProcess(const std::vector<ManagerSpec> &Managers);
/// Those of other processes and, beside them, one of LLVM's and jitmem of this process, and the two
/// with shared memory on jitmem-executor; each under every one of Dispatches.
std::vector<Contender> acrossProcesses(const std::vector<ManagerSpec> &Managers,
                                       llvm::ArrayRef<Dispatch> Dispatches, const Program &On);
/// Those of other processes, each on every one of Programs.
std::vector<Contender> onExecutors(const std::vector<ManagerSpec> &Managers,
                                   llvm::ArrayRef<Program> Programs);
/// The programs by themselves.
std::vector<Contender> executorsAlone(llvm::ArrayRef<Program> Programs);
std::string rowName(llvm::StringRef Manager, Dispatch Tasks);
std::string rowName(llvm::StringRef Manager, llvm::StringRef Executor);

inline constexpr llvm::StringLiteral LLVMInProcess = "llvm-in-process";
inline constexpr llvm::StringLiteral LLVMMapper = "llvm-mapper";
inline constexpr llvm::StringLiteral FloorName = "floor";
inline constexpr llvm::StringLiteral Jitmem = "jitmem";
inline constexpr llvm::StringLiteral JitmemMprotect = "jitmem-mprotect";
inline constexpr llvm::StringLiteral JitmemClosing = "jitmem-closing";
inline constexpr llvm::StringLiteral LLVMGeneric = "llvm-epc";
inline constexpr llvm::StringLiteral LLVMShared = "llvm-shared";
inline constexpr llvm::StringLiteral LLVMSimpleRemote = "llvm-simple-remote";
inline constexpr llvm::StringLiteral JitmemShared = "jitmem-shared";
inline constexpr llvm::StringLiteral JitmemRemote = "jitmem-remote";

inline constexpr llvm::StringLiteral StockExecutor = "llvm-jitlink-executor";
inline constexpr llvm::StringLiteral JitmemExecutor = "jitmem-executor";

} // namespace bench
