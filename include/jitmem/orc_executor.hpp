// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem's service for an ORC executor, so that controllers need not load libjitmem.so into it, and
// executors that are jitmem's as a whole: serveExecutor.
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
#include "orc_compat.hpp"
#include "orc_error.hpp"

#include <llvm/ADT/StringMap.h>
#include <llvm/ExecutionEngine/Orc/Shared/ExecutorAddress.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/ExecutorBootstrapService.h>
#include <llvm/Support/Error.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

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

/// How an executor goes on when linked code has ended its process; see jitmem_supervision.
struct Supervision {
  /// So many times another process takes its place, at least 1,
  uint32_t Restarts = 10;
  /// in so much time, at least 1 s. Once more ends the executor.
  std::chrono::seconds Within{60};
  /// After so long a call of linked code ends its process. 0: never.
  std::chrono::seconds TimeLimit{0};
  /// What each of these processes does before it serves, such as to bound itself. Empty: nothing.
  /// It must not throw.
  std::function<llvm::Error()> Prepare;
};

/// Choices for serveExecutor.
struct ServeOptions {
  /// What is published beside the services' own names, or in place of them.
  llvm::StringMap<llvm::orc::ExecutorAddr> Symbols;
  /// The controller's LLVM, 14 to 22: this program's own, if nothing else is said.
  uint32_t LLVMVersion = detail::LLVMMajor;
  /// libstdc++, libgcc_s and libm are never loaded.
  bool COnly = false;
  /// Linked code runs in a process of its own, which is replaced when it ends. None: in this one.
  std::optional<Supervision> Supervised;
};

namespace detail {

/// Seconds as C has them; what is below is 0, which is refused where it is wrong.
inline uint32_t toSeconds(std::chrono::seconds Time) {
  constexpr int64_t Most = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(std::clamp<int64_t>(Time.count(), 0, Most));
}

/// The context of jitmem_supervision::prepare; each process has a copy.
struct PrepareCall {
  const std::function<llvm::Error()> &Prepare;
  std::string Why;

  static const char *call(void *Ctx) {
    auto &Call = *static_cast<PrepareCall *>(Ctx);
    if (!Call.Prepare)
      return nullptr;
    llvm::Error E = Call.Prepare();
    if (!E)
      return nullptr;
    Call.Why = llvm::toString(std::move(E));
    return Call.Why.c_str();
  }
};

} // namespace detail

/// Serves the controller that writes to `In` and reads from `Out`, which may be one socket, until
/// it hangs up, without LLVM's server: jitmem_executor_serve. Both stay the caller's. Errors are
/// MemoryErrors. Thread-safe.
inline llvm::Error serveExecutor(int In, int Out, const ServeOptions &Options = {}) {
  std::vector<jitmem_bootstrap_symbol> Symbols;
  std::vector<std::string> Names;
  Names.reserve(Options.Symbols.size());
  for (const auto &Symbol : Options.Symbols) {
    Names.push_back(Symbol.getKey().str());
    Symbols.push_back({Names.back().c_str(), Symbol.getValue().getValue(), {}});
  }
  jitmem_serve_options Chosen{};
  Chosen.struct_size = sizeof(Chosen);
  Chosen.symbols = Symbols.data();
  Chosen.symbol_count = Symbols.size();
  Chosen.llvm_version = Options.LLVMVersion;
  Chosen.c_only = Options.COnly;
  const Supervision None;
  const Supervision &Supervised = Options.Supervised ? *Options.Supervised : None;
  detail::PrepareCall Prepare{Supervised.Prepare, {}};
  jitmem_supervision How{};
  How.struct_size = sizeof(How);
  How.restarts = Supervised.Restarts;
  How.seconds = detail::toSeconds(Supervised.Within);
  How.time_limit = detail::toSeconds(Supervised.TimeLimit);
  How.prepare = detail::PrepareCall::call;
  How.ctx = &Prepare;
  if (Options.Supervised)
    Chosen.supervision = &How;
  detail::OwnedError E;
  jitmem_executor_serve(In, Out, &Chosen, E.out());
  return E.take();
}

} // namespace jitmem::orc

#endif // JITMEM_ORC_EXECUTOR_HPP
