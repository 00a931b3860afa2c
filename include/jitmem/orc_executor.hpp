// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem's service for an ORC executor, so that controllers need not load libjitmem.so into it.
// Header only; link jitmem::orc and your LLVM. Builds with and without exceptions and RTTI.
//
//   SimpleRemoteEPCServer::Create<FDSimpleRemoteEPCTransport>(
//       [](SimpleRemoteEPCServer::Setup &S) -> Error {
//         S.bootstrapSymbols() = S.server().defaultBootstrapSymbols();
//         auto Service = jitmem::orc::ExecutorService::Create();
//         if (!Service)
//           return Service.takeError();
//         S.services().push_back(std::move(*Service));
//         ...

#ifndef JITMEM_ORC_EXECUTOR_HPP
#define JITMEM_ORC_EXECUTOR_HPP

#include "../jitmem.h"
#include "orc_error.hpp"

#include <llvm/ADT/StringMap.h>
#include <llvm/ExecutionEngine/Orc/Shared/ExecutorAddress.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/ExecutorBootstrapService.h>
#include <llvm/Support/Error.h>

#include <memory>

namespace jitmem::orc {

/// Memory in this process for the controllers that are connected to it.
class ExecutorService : public llvm::orc::ExecutorBootstrapService {
public:
  static llvm::Expected<std::unique_ptr<ExecutorService>> Create() {
    detail::OwnedError E;
    jitmem_service *Service = nullptr;
    if (jitmem_service_create(&Service, E.out()) != JITMEM_OK)
      return E.take();
    return std::unique_ptr<ExecutorService>(new ExecutorService(Service));
  }

  /// What is published already stays.
  void addBootstrapSymbols(llvm::StringMap<llvm::orc::ExecutorAddr> &Symbols) override {
    jitmem_service_symbols(
        Service.get(),
        [](void *Ctx, const char *Name, uint64_t Address) {
          static_cast<llvm::StringMap<llvm::orc::ExecutorAddr> *>(Ctx)->try_emplace(
              Name, llvm::orc::ExecutorAddr(Address));
        },
        &Symbols, nullptr);
  }

  /// Runs the deallocation actions that are left, last to first, and frees all memory: no linked
  /// code may run any more.
  llvm::Error shutdown() override {
    Service.reset();
    return llvm::Error::success();
  }

private:
  explicit ExecutorService(jitmem_service *Service) : Service(Service) {}

  struct FreeService {
    void operator()(jitmem_service *S) const { jitmem_service_free(S); }
  };
  std::unique_ptr<jitmem_service, FreeService> Service;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_EXECUTOR_HPP
