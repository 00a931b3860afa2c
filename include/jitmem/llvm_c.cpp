// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The functions of jitmem/llvm_c.h, to be compiled with the LLVM that the host uses.
#include "llvm_c.h"

#include "orc_layer.hpp"
#include "orc_listener.hpp"

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>
#include <llvm/ExecutionEngine/Orc/SimpleRemoteEPC.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>

using namespace llvm;
using namespace llvm::orc;

namespace {

// LLVM defines these conversions inside its library, where no header has them.
ExecutionSession &unwrapped(LLVMOrcExecutionSessionRef Session) {
  return *reinterpret_cast<ExecutionSession *>(Session);
}
LLVMOrcObjectLayerRef wrapped(std::unique_ptr<ObjectLinkingLayer> Layer) {
  ObjectLayer *Base = Layer.release();
  return reinterpret_cast<LLVMOrcObjectLayerRef>(Base);
}

Error refused(const Twine &Why, int OSCode = 0) {
  return make_error<jitmem::orc::MemoryError>(OSCode ? JITMEM_SYSTEM : JITMEM_INVALID_ARGUMENT,
                                              OSCode, Why.str());
}

/// Whether a manager's memory is where a session's code runs.
Error checkFits(jitmem_manager *Manager, bool IsThisProcess) {
  if (!Manager)
    return IsThisProcess ? refused("make an object layer: the manager is NULL and the session's "
                                   "code runs in this process, where NULL would be LLVM's own "
                                   "memory; pass a jitmem_manager as the creator's context")
                         : Error::success();
  jitmem_stats Stats = {};
  Stats.struct_size = sizeof(Stats);
  jitmem_error *E = nullptr;
  if (jitmem_manager_stats(Manager, &Stats, &E) != JITMEM_OK) {
    auto Err = refused(Twine("make an object layer: ") + jitmem_error_message(E) +
                       "; pass a jitmem_manager as the creator's context");
    jitmem_error_free(E);
    return Err;
  }
  bool IsOfThisProcess = Stats.mapper == JITMEM_MAPPER_TWO_VIEWS ||
                         Stats.mapper == JITMEM_MAPPER_MPROTECT ||
                         Stats.mapper == JITMEM_MAPPER_IN_PLACE;
  // Of a custom mapper the host alone knows.
  if (Stats.mapper == JITMEM_MAPPER_CUSTOM || IsOfThisProcess == IsThisProcess)
    return Error::success();
  if (IsThisProcess)
    return refused(Twine("make an object layer: the session's code runs in this process, and the "
                         "manager's memory is in another one (") +
                   Stats.mapper_name + "); make the manager over jitmem_mapper_in_process");
  return refused(Twine("make an object layer: the session's code runs in another process, and the "
                       "manager's memory is in this one (") +
                 Stats.mapper_name +
                 "); pass NULL, which is the manager of jitmem_llvm_connect's connection");
}

/// Whether two descriptors are open and of two files.
Error checkDescriptors(int In, int Out) {
  struct stat Files[2];
  const int Descriptors[] = {In, Out};
  for (int I : {0, 1})
    if (::fstat(Descriptors[I], &Files[I]) != 0) {
      int Why = errno;
      return refused(Twine(I ? "out" : "in") + ": " + ::strerror(Why) +
                         "; pass the ends of two pipes to the executor",
                     Why);
    }
  if (Files[0].st_dev == Files[1].st_dev && Files[0].st_ino == Files[1].st_ino)
    return refused("both are of one file, and LLVM's transport can't end a connection over one "
                   "while it reads from it; pass the ends of two pipes");
  return Error::success();
}

/// Closes both: for what has not been taken over by LLVM's transport.
void closeBoth(int In, int Out) {
  if (In >= 0)
    ::close(In);
  if (Out >= 0 && Out != In)
    ::close(Out);
}

/// Puts the operation in front of an error; what LLVM says has no remedy.
LLVMErrorRef notConnected(int In, int Out, Error Err) {
  bool IsOurs = Err.isA<jitmem::orc::MemoryError>();
  int OSCode = 0;
  jitmem_status Status = JITMEM_DISCONNECTED;
  std::string Text;
  handleAllErrors(std::move(Err), [&](const ErrorInfoBase &Info) {
    if (Info.isA<jitmem::orc::MemoryError>()) {
      const auto &Ours = static_cast<const jitmem::orc::MemoryError &>(Info);
      Status = Ours.status();
      OSCode = Ours.osCode();
    }
    Text += (Text.empty() ? "" : "; ") + Info.message();
  });
  std::string Message = "connect to an executor over descriptors " + std::to_string(In) +
                        " (in) and " + std::to_string(Out) + " (out): " + Text;
  if (!IsOurs)
    Message += "; see that the executor runs and has the other ends, as jitmem-executor "
               "filedescs=IN,OUT, and that this process has closed those";
  return wrap(make_error<jitmem::orc::MemoryError>(Status, OSCode, std::move(Message)));
}

/// Whether `main` can be called with these.
Error checkMain(LLVMOrcExecutionSessionRef Session, LLVMOrcExecutorAddress Address, int Count,
                const char *const *Strings, const int32_t *Result) {
  if (!Session)
    return refused("run as main: the session is NULL");
  if (Address == 0)
    return refused("run as main: the address is 0; pass what LLVMOrcLLJITLookup gave");
  if (!Result)
    return refused("run as main: the result is NULL; pass a place for it");
  if (Count < 0 || (Count > 0 && !Strings))
    return refused("run as main: argc is " + Twine(Count) + " and argv is " +
                   (Strings ? "not NULL" : "NULL") + "; pass as many strings as argc says");
  for (int I = 0; I < Count; ++I)
    if (!Strings[I])
      return refused("run as main: argv[" + Twine(I) + "] of " + Twine(Count) +
                     " is NULL; pass as many strings as argc says");
  return Error::success();
}

} // namespace

LLVMOrcObjectLayerRef jitmem_llvm_object_layer(void *manager, LLVMOrcExecutionSessionRef session,
                                               const char *) {
  auto &ES = unwrapped(session);
  auto *Manager = static_cast<jitmem_manager *>(manager);
  if (auto Err =
          checkFits(Manager, jitmem::orc::detail::isThisProcess(ES.getExecutorProcessControl()))) {
    ES.reportError(std::move(Err));
    return nullptr;
  }
  std::unique_ptr<jitmem::orc::MemoryManager> MM;
  if (Manager)
    MM = jitmem::orc::MemoryManager::CreateOver(Manager);
  auto Layer = jitmem::orc::createObjectLayer(ES, std::move(MM));
  if (Layer)
    return wrapped(std::move(*Layer));
  ES.reportError(Layer.takeError());
  return nullptr;
}

LLVMErrorRef jitmem_llvm_connect(LLVMOrcLLJITBuilderRef builder, int in, int out,
                                 const jitmem_manager_options *options, jitmem_manager **manager) {
  auto Unusable = builder ? checkDescriptors(in, out) : refused("the builder is NULL");
  if (Unusable) {
    closeBoth(in, out);
    return notConnected(in, out, std::move(Unusable));
  }
  jitmem_manager *Handle = nullptr;
  auto Create =
      [&](SimpleRemoteEPC &EPC) -> Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>> {
    jitmem::orc::Options Choices;
    Choices.Exactly = options;
    auto MM = jitmem::orc::MemoryManager::Create(EPC, Choices);
    if (!MM)
      return MM.takeError();
    Handle = (*MM)->handle();
    return std::move(*MM);
  };
  auto &Builder = *reinterpret_cast<LLJITBuilder *>(builder);
  if (auto Err = jitmem::orc::detail::connect<SimpleRemoteEPC, FDSimpleRemoteEPCTransport>(
          Builder, Create, in, out, 0))
    return notConnected(in, out, std::move(Err));
  Builder.setPlatformSetUp(setUpInactivePlatform);
  if (manager)
    *manager = Handle;
  return LLVMErrorSuccess;
}

LLVMErrorRef jitmem_llvm_run_as_main(LLVMOrcExecutionSessionRef session,
                                     LLVMOrcExecutorAddress address, int argc,
                                     const char *const *argv, int32_t *result) {
  if (auto Err = checkMain(session, address, argc, argv, result))
    return wrap(std::move(Err));
  auto &EPC = unwrapped(session).getExecutorProcessControl();
  auto Result = EPC.runAsMain(ExecutorAddr(address), std::vector<std::string>(argv, argv + argc));
  if (!Result)
    return wrap(Result.takeError());
  *result = *Result;
  return LLVMErrorSuccess;
}

void jitmem_llvm_register_listener(LLVMOrcObjectLayerRef layer, LLVMJITEventListenerRef listener) {
  // jitmem_llvm_object_layer has told why there is none.
  if (!layer)
    return;
  auto *Base = reinterpret_cast<ObjectLayer *>(layer);
  auto *Layer = dyn_cast<ObjectLinkingLayer>(Base);
  if (Layer && listener)
    Layer->addPlugin(std::make_unique<jitmem::orc::ListenerPlugin>(*unwrap(listener)));
  else
    Base->getExecutionSession().reportError(
        Layer ? refused("register a listener: it is NULL, as LLVM's functions give where it is "
                        "built without that listener; ask for another one")
              : refused("register a listener: the layer is not JITLink's; pass one of "
                        "jitmem_llvm_object_layer, and for RuntimeDyld's call "
                        "LLVMOrcRTDyldObjectLinkingLayerRegisterJITEventListener"));
}
