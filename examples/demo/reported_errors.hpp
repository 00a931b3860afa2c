// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_REPORTED_ERRORS_HPP
#define JITMEM_DEMO_REPORTED_ERRORS_HPP

#include "llvm/ExecutionEngine/Orc/Core.h"

#include <mutex>
#include <string>
#include <vector>

namespace demo {

/// What an ExecutionSession reports: why symbols could not be linked. The error of the lookup that
/// failed says only which symbols these were. Thread-safe; must outlive the session.
class ReportedErrors {
public:
  void collectFrom(llvm::orc::ExecutionSession &ES) {
    ES.setErrorReporter([this](llvm::Error E) {
      std::lock_guard<std::mutex> Lock(Mutex);
      Messages.push_back(toString(std::move(E)));
    });
  }

  /// The first error reported since the last call, or Failure if none was.
  llvm::Error explain(llvm::Error Failure) {
    std::lock_guard<std::mutex> Lock(Mutex);
    if (Messages.empty())
      return Failure;
    consumeError(std::move(Failure));
    std::string First = std::move(Messages.front());
    Messages.clear();
    return llvm::createStringError(First);
  }

  /// Failure and everything reported since the last call of explain.
  llvm::Error addTo(llvm::Error Failure) {
    std::lock_guard<std::mutex> Lock(Mutex);
    for (const std::string &Message : Messages)
      Failure = joinErrors(std::move(Failure), llvm::createStringError(Message));
    Messages.clear();
    return Failure;
  }

private:
  std::mutex Mutex;
  std::vector<std::string> Messages;
};

} // namespace demo

#endif
