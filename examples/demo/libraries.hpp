// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_LIBRARIES_HPP
#define JITMEM_DEMO_LIBRARIES_HPP

#include "managers.hpp"
#include "options.hpp"

namespace demo {

/// The static libraries whose members the demo links.
llvm::ArrayRef<Library> libraries();

struct LibrariesOutcome {
  std::vector<MeasuredManager> Managers; ///< jitmem first
  std::string Memory;                    ///< jitmem's with everything linked, as describe says it
};

/// Scene 1: links the libraries with each memory manager, for another process and for this one, and
/// uses them there. Draws where jitmem put them.
llvm::Expected<LibrariesOutcome> runLibraries(const Options &O);

} // namespace demo

#endif
