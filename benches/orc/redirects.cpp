// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "executor.hpp"
#include "segments.hpp"
#include "session.hpp"
#include "system_error.hpp"
#include "workload.hpp"

#include "llvm/ExecutionEngine/Orc/JITLinkRedirectableSymbolManager.h"
#include "llvm/Support/Process.h"
#include <jitmem/orc_write.hpp>

#include <cerrno>
#include <cstring>
#include <sys/mman.h>

using namespace llvm;
using namespace llvm::orc;

namespace bench {

static constexpr unsigned Symbols = 1000;
static constexpr unsigned Changes = 1000;

namespace {

/// Functions of small graphs that stubs lead to.
struct Targets {
  explicit Targets(ExecutionSession &ES) : Graphs(ES) {}

  Error add(uint32_t Number) {
    ExecutorAddr Code;
    auto Alloc = Graphs.add(Number, &Code);
    if (!Alloc)
      return Alloc.takeError();
    Allocs.push_back(std::move(*Alloc));
    Functions.emplace_back(Code, JITSymbolFlags::Exported | JITSymbolFlags::Callable);
    return Error::success();
  }

  SmallGraphs Graphs;
  std::vector<SmallGraphs::FinalizedAlloc> Allocs;
  std::vector<ExecutorSymbolDef> Functions;
};

} // namespace

static Error redirectOften(ExecutionSession &ES, ObjectLinkingLayer &Layer, const Targets &To,
                           Probe &P) {
  auto Stubs = JITLinkRedirectableSymbolManager::Create(Layer);
  if (!Stubs)
    return Stubs.takeError();
  JITDylib &JD = ES.createBareJITDylib("stubs");
  SymbolMap First;
  std::vector<SymbolStringPtr> Names;
  for (unsigned I = 0; I != Symbols; ++I) {
    Names.push_back(ES.intern("stub_" + std::to_string(I)));
    First[Names.back()] = To.Functions[0];
  }
  Error Err = (*Stubs)->createRedirectableSymbols(JD.getDefaultResourceTracker(), First);
  if (Err)
    return Err;
  Expected<ExecutorSymbolDef> Stub = ES.lookup({&JD}, Names.back());
  if (!Stub)
    return Stub.takeError();
  auto Redirect = [&]() -> Error {
    for (const SymbolStringPtr &Name : Names)
      if (Error Err = (*Stubs)->redirect(JD, Name, To.Functions[1]))
        return Err;
    return Error::success();
  };
  Err = P.measure("redirect a symbol", Symbols, Redirect);
  if (!Err)
    Err = expectCall(ES, Stub->getAddress(), "a redirected stub", 1, 2);
  return joinErrors(std::move(Err), JD.clear());
}

/// With LLVM's managers, whose hosts make the page writable for a moment, in which nothing may run
/// in it.
static Error changeByMprotect(ExecutorAddr Code, uint64_t NewBytes) {
  size_t PageSize = sys::Process::getPageSizeEstimate();
  auto *Page = (Code - Code.getValue() % PageSize).toPtr<char *>();
  if (mprotect(Page, PageSize, PROT_READ | PROT_WRITE))
    return systemError(errno, "mprotect");
  memcpy(Code.toPtr<void *>(), &NewBytes, sizeof NewBytes);
  if (mprotect(Page, PageSize, PROT_READ | PROT_EXEC))
    return systemError(errno, "mprotect");
  return Error::success();
}

/// While it runs.
static Error changeByScope(const jitmem::orc::MemoryManager &Manager,
                           const SmallGraphs::FinalizedAlloc &Alloc, ExecutorAddr Code,
                           uint64_t NewBytes) {
  auto Scope = jitmem::orc::WriteScope::begin(Manager, Alloc);
  if (!Scope)
    return Scope.takeError();
  if (Error Err = Scope->store(Code, NewBytes))
    return Err;
  return Scope->end();
}

static Error changeOften(const Host &H, ExecutionSession &ES, const Targets &To, Probe &P) {
  ExecutorAddr Code = To.Functions[0].getAddress();
  uint64_t Bytes;
  memcpy(&Bytes, Code.toPtr<const void *>(), sizeof Bytes);
  auto Change = [&]() -> Error {
    for (unsigned I = 0; I != Changes; ++I) {
      // The number that the function adds, little-endian behind the operation's two bytes.
      uint64_t NewBytes = (Bytes & ~(uint64_t(UINT32_MAX) << 16)) | uint64_t(I) << 16;
      if (Error Err = H.Jitmem ? changeByScope(*H.Jitmem, To.Allocs[0], Code, NewBytes)
                               : changeByMprotect(Code, NewBytes))
        return Err;
    }
    return Error::success();
  };
  if (Error Err = P.measure("change 8 bytes of code", Changes, Change))
    return Err;
  return expectCall(ES, Code, "changed code", 1, Changes);
}

static Error runRedirects(const Host &H, ExecutionSession &ES, ObjectLinkingLayer &Layer,
                          Targets &To, Probe &P) {
  for (uint32_t Number : {0, 1})
    if (Error Err = To.add(Number))
      return Err;
  if (Error Err = redirectOften(ES, Layer, To, P))
    return Err;
  return changeOften(H, ES, To, P);
}

Workload redirects(const Settings &S) {
  Workload W;
  W.Key = "h";
  W.Title = "Linked code that changes: LLVM's JITLinkRedirectableSymbolManager, " +
            std::to_string(Symbols) +
            " symbols, over each manager; then 8 bytes of code, where jitmem has write scopes and "
            "the others' hosts call mprotect twice";
  W.Operation = "change";
  W.Rounds = S.rounds(9);
  W.Run = [](const Host &H, ExecutionSession &ES, Probe &P, std::shared_ptr<void> &Alive) {
    auto Layer = std::make_shared<ObjectLinkingLayer>(ES);
    Alive = Layer;
    Targets To(ES);
    Error Err = runRedirects(H, ES, *Layer, To, P);
    if (To.Allocs.empty())
      return Err;
    return joinErrors(std::move(Err), To.Graphs.removeAll(std::move(To.Allocs)));
  };
  return W;
}

} // namespace bench
