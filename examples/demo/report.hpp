// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_REPORT_HPP
#define JITMEM_DEMO_REPORT_HPP

#include "managers.hpp"

namespace demo {

/// Which mapper jitmem uses, and what it had to make do with.
void printMapper(const jitmem_stats &Stats);

void printStats(const jitmem_stats &Stats);

/// The outcomes by library, and what the columns mean.
void printTable(llvm::ArrayRef<Library> Libraries, llvm::ArrayRef<Contender> Contenders,
                unsigned Rounds);

/// One line per manager.
void printSummary(llvm::ArrayRef<Contender> Contenders);

} // namespace demo

#endif
