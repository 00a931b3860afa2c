// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An executor of our own: LLVM's server with jitmem's service linked in. `executor
// filedescs=IN,OUT`

#include <jitmem/orc_executor.hpp>
#include <llvm/ADT/StringRef.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/SimpleRemoteEPCServer.h>
#include <llvm/Support/DynamicLibrary.h>
#include <llvm/Support/raw_ostream.h>

using namespace llvm;
using namespace llvm::orc;

int main(int Argc, char *Argv[]) {
  ExitOnError Check("executor: ");
  StringRef Descriptors(Argc > 1 ? Argv[1] : "");
  int In, Out;
  if (!Descriptors.consume_front("filedescs=") || Descriptors.consumeInteger(10, In) ||
      !Descriptors.consume_front(",") || Descriptors.getAsInteger(10, Out)) {
    errs() << "usage: executor filedescs=IN,OUT\n";
    return 2;
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
