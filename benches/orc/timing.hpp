// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the timed rounds read off the clocks and counters of the processes.
#pragma once

#include "executor.hpp"
#include "managers.hpp"
#include "results.hpp"
#include "workload.hpp"

namespace bench {

/// Adds a sample to R for each phase.
class TimingProbe : public Probe {
public:
  TimingProbe(Results &R, const Workload &W, const Contender &C) : R(R), W(W), C(C) {}

  void begin(const Host &H) override { Where = &H; }
  llvm::Error measure(llvm::StringRef Name, uint64_t Operations,
                      llvm::function_ref<llvm::Error()> Body) override;
  void hold(llvm::StringRef, uint64_t, llvm::StringRef, uint64_t) override {}

private:
  /// What has been used and sent so far, but for the time that passes.
  llvm::Expected<Sample> read() const;

  Results &R;
  const Workload &W;
  const Contender &C;
  const Host *Where = nullptr;
};

/// What the processors of this machine did since it was made.
class MachineUse {
public:
  MachineUse();

  double seconds() const;
  /// Of what the processors could have done, what they did for other programs.
  double ofOthers() const;

private:
  /// Seconds of all processors for whatever program, and for this one and what it started.
  static double busy();
  static double ours();

  double Start, BusyBefore, OursBefore;
};

} // namespace bench
