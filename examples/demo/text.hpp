// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_TEXT_HPP
#define JITMEM_DEMO_TEXT_HPP

#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/FormatVariadic.h"

#include <cstdint>
#include <string>

namespace demo {

inline std::string bytes(uint64_t Count) {
  constexpr const char *Units[] = {"B", "KiB", "MiB", "GiB"};
  unsigned Unit = 0;
  double Value = Count;
  for (; Value >= 1024 && Unit < 3; ++Unit)
    Value /= 1024;
  // A fraction only where there is one to see.
  bool Whole = Unit == 0 || Value == static_cast<uint64_t>(Value);
  return llvm::formatv(Whole ? "{0:f0} {1}" : "{0:f1} {1}", Value, Units[Unit]);
}

inline std::string hex(uint64_t Value) { return "0x" + llvm::utohexstr(Value, /*LowerCase=*/true); }

} // namespace demo

#endif
