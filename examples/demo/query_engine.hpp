// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_QUERY_ENGINE_HPP
#define JITMEM_DEMO_QUERY_ENGINE_HPP

#include "query_objects.hpp"
#include "reported_errors.hpp"
#include "session.hpp"

#include <memory>

namespace demo {

/// A query whose function is linked.
class Query {
public:
  /// Calls the function. Returns whether its answer is right.
  bool run(int64_t Row) {
    Total += QueryObjects::value(Number, Row);
    return call(Row) == Total;
  }
  /// Calls the function alone.
  int64_t call(int64_t Row) const { return Function(Row); }
  /// What the function must answer after it was called for Row by call.
  int64_t expect(int64_t Row) { return Total += QueryObjects::value(Number, Row); }
  unsigned number() const { return Number; }

private:
  friend class QueryEngine;

  unsigned Number;
  llvm::orc::ResourceTrackerSP Code;
  int64_t (*Function)(int64_t);
  int64_t Total = 0;
};

/// Links queries into this process, each with a resource tracker of its own, on one memory manager.
class QueryEngine {
public:
  /// Objects must outlive the engine.
  static llvm::Expected<std::unique_ptr<QueryEngine>> Create(const QueryObjects &Objects,
                                                             const Session::CreateManager &Create);
  /// Drops all queries.
  ~QueryEngine();

  llvm::Expected<Query> compile(unsigned Number);
  /// The query must not be run again.
  llvm::Error drop(const Query &Q) { return Q.Code->remove(); }

  /// Drops all queries. Fails if something went wrong that no call has returned.
  llvm::Error end();

private:
  QueryEngine(const QueryObjects &Objects, std::unique_ptr<llvm::orc::ExecutorProcessControl> EPC)
      : Objects(Objects), ES(std::move(EPC)), Queries(ES.createBareJITDylib("queries")) {}

  const QueryObjects &Objects;
  ReportedErrors Reported;
  llvm::orc::ExecutionSession ES;
  llvm::orc::JITDylib &Queries;
  std::unique_ptr<llvm::orc::ObjectLinkingLayer> Layer;
  bool HasEnded = false;
};

} // namespace demo

#endif
