// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_QUERY_OBJECTS_HPP
#define JITMEM_DEMO_QUERY_OBJECTS_HPP

#include "llvm/Support/Error.h"
#include "llvm/Support/MemoryBuffer.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace demo {

/// Makes the object files of queries, each with a function, literals and a running total.
///
/// Few shapes are compiled once, because compiling takes many times as long as linking. A query is
/// a copy of such an object file with a name and literals of its own.
class QueryObjects {
public:
  static llvm::Expected<QueryObjects> Create();

  /// The function of query Number, an int64_t(int64_t row), which returns the total.
  static std::string name(unsigned Number);
  std::unique_ptr<llvm::MemoryBuffer> object(unsigned Number) const;
  /// What a row adds to the total of query Number.
  static int64_t value(unsigned Number, int64_t Row);

private:
  struct Template {
    std::string Object;
    size_t NameAt;     ///< offset in Object
    size_t LiteralsAt; ///< the same
  };
  std::vector<Template> Templates; ///< one a shape
};

} // namespace demo

#endif
