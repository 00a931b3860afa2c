// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a C++ exception takes through linked functions by how many are linked, beside as many
// functions of a shared library: in this process, which is linked with jitmem::unwind, and in
// jitmem-executor.
//
//   jitmem-bench-throws [MOST]    a table, for 1,000 functions and for MOST (100,000)

#include "managers.hpp"
#include "session.hpp"
#include "throws/hops.h"

#include "llvm/ADT/STLExtras.h"
#include "llvm/ExecutionEngine/Orc/EPCDynamicLibrarySearchGenerator.h"
#include "llvm/ExecutionEngine/Orc/ExecutorProcessControl.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/raw_ostream.h"

#include <csignal>

using namespace llvm;
using namespace llvm::orc;
using namespace bench;

static constexpr unsigned Few = 1000, AtATime = 1000;

static Expected<std::unique_ptr<MemoryBuffer>> read(StringRef Path) {
  return errorOrToExpected(MemoryBuffer::getFile(Path));
}

/// The function's name in the object that was compiled, of which each gets a number of its own.
static std::string hopName(unsigned Number) { return formatv("hop_{0,0+6}", Number).str(); }

/// The object whose function has this number.
static std::unique_ptr<MemoryBuffer> hopObject(StringRef Compiled, unsigned Number) {
  std::string Bytes = Compiled.str(), Name = hopName(Number);
  for (size_t At = 0; (At = Bytes.find(hopName(0), At)) != std::string::npos; At += Name.size())
    Bytes.replace(At, Name.size(), Name);
  return MemoryBuffer::getMemBufferCopy(Bytes, Name);
}

namespace {

/// Linked functions and the library beside them.
class Throwing {
public:
  static Expected<std::unique_ptr<Throwing>> Create(ExecutionSession &ES) {
    auto T = std::unique_ptr<Throwing>(new Throwing(ES));
    if (Error Err = T->Hop.takeError())
      return Err;
    auto Session = LinkSession::Create(ES);
    if (!Session)
      return Session.takeError();
    T->Session = std::move(*Session);
    auto Linked = T->Session->addDylib("linked");
    if (!Linked)
      return Linked.takeError();
    T->Linked = &*Linked;
    auto Library = EPCDynamicLibrarySearchGenerator::Load(ES, JITMEM_BENCH_LIBRARY);
    if (!Library)
      return Library.takeError();
    T->Library = &ES.createBareJITDylib("library");
    T->Library->addGenerator(std::move(*Library));
    auto Throws = read(JITMEM_BENCH_THROWS);
    if (!Throws)
      return Throws.takeError();
    auto Object = readObject(std::move(*Throws));
    if (!Object)
      return Object.takeError();
    T->Throws = std::move(*Object);
    if (Error Err = T->Session->add(*T->Linked, T->Throws))
      return Err;
    return T;
  }

  Error linkUpTo(unsigned Count) {
    for (; Hops.size() < Count;) {
      std::vector<Object> Objects;
      for (size_t I = Hops.size(); I != std::min<size_t>(Count, Hops.size() + AtATime); ++I) {
        auto O = readObject(hopObject((*Hop)->getBuffer(), unsigned(I)));
        if (!O)
          return O.takeError();
        if (Error Err = Session->add(*Linked, *O))
          return Err;
        Objects.push_back(std::move(*O));
      }
      auto Found = Session->lookUp(*Linked, Objects);
      if (!Found)
        return Found.takeError();
      for (size_t I = 0, First = Hops.size(); I != Objects.size(); ++I)
        Hops.push_back((*Found)[ES.intern(hopName(unsigned(First + I)))].getAddress());
    }
    return Error::success();
  }

  /// ns of a throw through HOPS of the linked functions.
  Expected<int> timeLinked() {
    SymbolLookupSet Names({ES.intern("way"), ES.intern("throwHere"), ES.intern("timeOfThrow")});
    auto Found = ES.lookup({{Linked, JITDylibLookupFlags::MatchAllSymbols}}, std::move(Names));
    if (!Found)
      return Found.takeError();
    auto Address = [&](const char *Name) { return (*Found)[ES.intern(Name)].getAddress(); };
    std::vector<tpctypes::UInt64Write> Writes;
    for (unsigned I = 0; I <= HOPS; ++I) {
      // Far from each other in the order of linking.
      ExecutorAddr To = I == HOPS ? Address("throwHere") : Hops[uint64_t(I) * 7919 % Hops.size()];
      Writes.push_back({Address("way") + I * sizeof(hop), To.getValue()});
    }
    if (Error Err = ES.getExecutorProcessControl().getMemoryAccess().writeUInt64s(Writes))
      return Err;
    return time(Address("timeOfThrow"));
  }

  Expected<int> timeLibrary() {
    auto Found = ES.lookup(makeJITDylibSearchOrder({Library}), ES.intern("timeOfThrow"));
    if (!Found)
      return Found.takeError();
    return time(Found->getAddress());
  }

  Error removeAll() { return Session->removeAll(); }

private:
  explicit Throwing(ExecutionSession &ES) : ES(ES), Hop(read(JITMEM_BENCH_HOP)) {}

  Expected<int> time(ExecutorAddr Function) {
    auto Time = ES.getExecutorProcessControl().runAsIntFunction(Function, 0);
    if (!Time)
      return Time.takeError();
    if (*Time < 0)
      return createStringError("an exception was not caught where it belongs");
    return int(*Time);
  }

  ExecutionSession &ES;
  Expected<std::unique_ptr<MemoryBuffer>> Hop;
  /// It is read when it is linked.
  Object Throws;
  std::shared_ptr<LinkSession> Session;
  JITDylib *Linked = nullptr, *Library = nullptr;
  std::vector<ExecutorAddr> Hops;
};

} // namespace

static Error printTimes(ExecutionSession &ES, std::shared_ptr<void> &Alive, StringRef Where,
                        unsigned Most) {
  auto Created = Throwing::Create(ES);
  if (!Created)
    return Created.takeError();
  std::shared_ptr<Throwing> T = std::move(*Created);
  Alive = T;
  std::string Cells;
  int Last = 0;
  for (unsigned Count : {Few, Most}) {
    if (Error Err = T->linkUpTo(Count))
      return Err;
    auto Time = T->timeLinked();
    if (!Time)
      return Time.takeError();
    Last = *Time;
    Cells += formatv(" {0:F1} |", Last / 1e3);
  }
  auto Library = T->timeLibrary();
  if (!Library)
    return Library.takeError();
  outs() << "| " << Where << " |" << Cells
         << formatv(" {0:F1} | {1:F2} |\n", *Library / 1e3, double(Last) / *Library);
  outs().flush();
  return T->removeAll();
}

static Error measure(StringRef Manager, StringRef Where, unsigned Most) {
  std::vector<ManagerSpec> All = allManagers();
  auto Spec = find_if(All, [&](const ManagerSpec &M) { return M.Name == Manager; });
  Expected<Host> H = Spec->Create(JITMEM_BENCH_JITMEM_EXECUTOR, makeDispatcher(Dispatch::InPlace));
  if (!H)
    return H.takeError();
  std::shared_ptr<void> Alive;
  Error Err = Error::success();
  {
    ExecutionSession ES(std::move(H->EPC));
    Err = printTimes(ES, Alive, Where, Most);
    Err = joinErrors(std::move(Err), ES.endSession());
    Alive.reset();
  }
  if (H->Other)
    Err = joinErrors(H->Other->waitForEnd(), std::move(Err));
  return Err;
}

int main(int Count, char **Arguments) {
  std::signal(SIGPIPE, SIG_IGN);
  unsigned Most = 100000;
  if (Count > 2 || (Count == 2 && (StringRef(Arguments[1]).getAsInteger(10, Most) || Most < Few ||
                                   Most >= 1000000))) {
    errs() << "usage: jitmem-bench-throws [MOST]    MOST functions: 1000 to 999999\n";
    return 2;
  }
  outs() << formatv(
      "µs from a throw to its catch through {0} functions in a graph each, of so many "
      "that are linked, and through {0} functions of a shared library (least of {1}).\n\n"
      "| | {2} linked | {3} linked | library | {3} / library (to be 1.5 at most) "
      "|\n|---|--:|--:|--:|--:|\n",
      int(HOPS), int(ROUNDS), Few, Most);
  outs().flush();
  for (auto [Manager, Where] : {std::pair(Jitmem, StringRef("this process")),
                                std::pair(JitmemShared, StringRef("jitmem-executor"))})
    if (Error Err = measure(Manager, Where, Most)) {
      logAllUnhandledErrors(std::move(Err), errs(), "jitmem-bench-throws: ");
      return 1;
    }
  return 0;
}
