// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_REPORT_HPP
#define JITMEM_DEMO_REPORT_HPP

#include "libraries.hpp"
#include "queries.hpp"

namespace demo {

/// Where a manager has its memory from, how much, and what it had to make do with.
std::string describe(const jitmem_stats &Stats);

/// The tables behind scene 1, and what their columns mean.
void printTables(const LibrariesOutcome &Outcome, unsigned Rounds);

/// The table behind scene 2, and what its columns mean.
void printTable(llvm::ArrayRef<QueryFigures> Queries);

} // namespace demo

#endif
