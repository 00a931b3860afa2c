// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_MANAGERS_HPP
#define JITMEM_DEMO_MANAGERS_HPP

#include "session.hpp"

namespace demo {

/// What became of one library, or of all together, with one manager.
struct Outcome {
  std::vector<Figures> Runs;
  std::string Failure;

  void record(llvm::Expected<Figures> F) {
    if (F)
      Runs.push_back(*F);
    else
      Failure = toString(F.takeError());
  }
  /// Of the runs, figure by figure.
  Figures median() const;
};

/// One memory manager and how it did.
struct MeasuredManager {
  std::string Name;
  std::string Class; ///< in its own words
  bool IsAcross;     ///< the linked code runs in another process
  Session::CreateManager Create;
  std::vector<Outcome> Libraries = {};
  Outcome All = {};

  const std::string *failure() const {
    for (const Outcome &O : Libraries)
      if (!O.Failure.empty())
        return &O.Failure;
    return All.Failure.empty() ? nullptr : &All.Failure;
  }
};

/// jitmem and LLVM's own, where linked code runs in another process. The first two are the best of
/// either.
std::vector<MeasuredManager> managersAcross();

/// jitmem and LLVM's own, where linked code runs in this process. Mapper says how jitmem gets
/// memory.
std::vector<MeasuredManager> managersInProcess(jitmem_in_process_kind Mapper);

} // namespace demo

#endif
