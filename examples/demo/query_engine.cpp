// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "query_engine.hpp"

#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"

using namespace llvm;
using namespace llvm::orc;

namespace demo {

Expected<std::unique_ptr<QueryEngine>> QueryEngine::Create(const QueryObjects &Objects,
                                                           const Session::CreateManager &Create) {
  auto EPC = SelfExecutorProcessControl::Create(nullptr, std::make_unique<InPlaceTaskDispatcher>());
  if (!EPC)
    return EPC.takeError();
  std::unique_ptr<QueryEngine> Engine(new QueryEngine(Objects, std::move(*EPC)));
  Engine->Reported.collectFrom(Engine->ES);
  auto MemMgr = Create(Engine->ES.getExecutorProcessControl());
  if (!MemMgr)
    return MemMgr.takeError();
  Engine->Layer = std::make_unique<ObjectLinkingLayer>(Engine->ES, std::move(MemMgr->Owned));
  return Engine;
}

QueryEngine::~QueryEngine() { consumeError(end()); }

Error QueryEngine::end() {
  if (std::exchange(HasEnded, true))
    return Error::success();
  return Reported.addTo(ES.endSession());
}

Expected<Query> QueryEngine::compile(unsigned Number) {
  Query Q;
  Q.Number = Number;
  Q.Code = Queries.createResourceTracker();
  if (auto E = Layer->add(Q.Code, Objects.object(Number)))
    return E;
  auto Symbol = ES.lookup({&Queries}, QueryObjects::name(Number));
  if (!Symbol)
    return Reported.explain(Symbol.takeError());
  Q.Function = Symbol->getAddress().toPtr<int64_t (*)(int64_t)>();
  return Q;
}

} // namespace demo
