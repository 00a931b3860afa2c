// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_QUERIES_HPP
#define JITMEM_DEMO_QUERIES_HPP

#include "managers.hpp"
#include "options.hpp"

namespace demo {

/// How one memory manager did under the query engine.
struct QueryFigures {
  std::string Name;
  double CompileMicroseconds = 0; ///< to compile, call and drop one query
  double CallNanoseconds = 0;     ///< in random order among all that are kept
  Footprint Kept;                 ///< what those that are kept take
  unsigned MostLive = 0;          ///< queries, when it was stopped or came to its end
  std::string Failure;            ///< why it came to its end; empty if it did not
};

/// Scene 2: a query engine on each memory manager of this process.
llvm::Expected<std::vector<QueryFigures>> runQueries(const Options &O);

/// What the figures are about.
struct QueryCounts {
  unsigned Dropped; ///< compiled, called and dropped
  unsigned Live;    ///< at a time while that goes on
  unsigned Kept;    ///< then kept, and called in random order
  unsigned Most;    ///< live at which the engine stops
};
inline constexpr QueryCounts Counts{100000, 500, 20000, 50000};

} // namespace demo

#endif
