// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_TIMING_HPP
#define JITMEM_DEMO_TIMING_HPP

#include <chrono>

namespace demo {

using Clock = std::chrono::steady_clock;

inline double millisecondsSince(Clock::time_point Start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - Start).count();
}

} // namespace demo

#endif
