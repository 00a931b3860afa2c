// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An executor of our own: LLVM's server with jitmem's service linked in, or jitmem's, whose linked
// code runs in a process that is replaced. `executor [--supervise=N] filedescs=IN,OUT`

#include <jitmem/orc_executor.hpp>
#include <llvm/ADT/StringRef.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/SimpleRemoteEPCServer.h>
#include <llvm/Support/DynamicLibrary.h>
#include <llvm/Support/raw_ostream.h>

using namespace llvm;
using namespace llvm::orc;

// Whether this process was prepared, as each shall be in which linked code runs.
static bool Prepared = false;
static int isPrepared(int) { return Prepared; }

static Error superviseWith(unsigned Restarts, int In, int Out) {
  jitmem::orc::ServeOptions Options;
  Options.Symbols["isPrepared"] = ExecutorAddr::fromPtr(&isPrepared);
  Options.Supervised.emplace();
  Options.Supervised->Restarts = Restarts;
  Options.Supervised->Prepare = [] {
    Prepared = true;
    return Error::success();
  };
  return jitmem::orc::serveExecutor(In, Out, Options);
}

int main(int Argc, char *Argv[]) {
  ExitOnError Check("executor: ");
  unsigned Restarts = 0;
  StringRef First(Argc > 1 ? Argv[1] : "");
  bool Supervised =
      First.consume_front("--supervise=") && !First.getAsInteger(10, Restarts) && Argc > 2;
  StringRef Descriptors(Supervised ? Argv[2] : First);
  int In, Out;
  if (!Descriptors.consume_front("filedescs=") || Descriptors.consumeInteger(10, In) ||
      !Descriptors.consume_front(",") || Descriptors.getAsInteger(10, Out)) {
    errs() << "usage: executor [--supervise=N] filedescs=IN,OUT\n";
    return 2;
  }
  if (Supervised) {
    Check(superviseWith(Restarts, In, Out));
    return Prepared; // in this process never
  }
  sys::DynamicLibrary::LoadLibraryPermanently(nullptr);
  auto SetUp = [](SimpleRemoteEPCServer::Setup &S) -> Error {
    S.setDispatcher(std::make_unique<SimpleRemoteEPCServer::ThreadDispatcher>());
    S.bootstrapSymbols() = S.server().defaultBootstrapSymbols();
    auto Service = jitmem::orc::ExecutorService::Create();
    if (!Service)
      return Service.takeError();
    S.services().push_back(std::move(*Service));
    return Error::success();
  };
  auto Server = Check(SimpleRemoteEPCServer::Create<FDSimpleRemoteEPCTransport>(SetUp, In, Out));
  Check(Server->waitForDisconnect());
  return 0;
}
