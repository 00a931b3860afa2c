// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// How the executor's unwinder finds the frames of linked objects: by an action of each, which
// jitmem's managers recognize. Where the unwinder asks an index, nothing is registered for it.

#ifndef JITMEM_ORC_UNWIND_HPP
#define JITMEM_ORC_UNWIND_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"

#include <llvm/ExecutionEngine/Orc/Shared/AllocationActions.h>

#include <memory>
#include <optional>
#include <utility>

namespace jitmem::orc {

namespace detail {

/// Those of this process, if its unwinder asks jitmem: the program is linked with jitmem::unwind.
inline const std::optional<FrameFunctions> &ownFrameFunctions() {
  static const auto Own = []() -> std::optional<FrameFunctions> {
    uint64_t Register = 0, Deregister = 0;
    if (jitmem_eh_frame_functions(&Register, &Deregister, nullptr) != JITMEM_OK)
      return std::nullopt;
    return FrameFunctions{llvm::orc::ExecutorAddr(Register), llvm::orc::ExecutorAddr(Deregister)};
  }();
  return Own;
}

/// Those of an executor that publishes jitmem's service.
inline std::optional<FrameFunctions>
publishedFrameFunctions(llvm::orc::ExecutorProcessControl &EPC) {
  const auto &Published = EPC.getBootstrapSymbolsMap();
  auto Register = Published.find("__llvm_orc_bootstrap_register_ehframe_section_wrapper");
  auto Deregister = Published.find("__llvm_orc_bootstrap_deregister_ehframe_section_wrapper");
  if (Published.find("jitmem_service_open") == Published.end() || Register == Published.end() ||
      Deregister == Published.end())
    return std::nullopt;
  return FrameFunctions{Register->second, Deregister->second};
}

} // namespace detail

/// A plugin that makes the frames of each object a part of its finalize request, in all releases of
/// LLVM: in place of LLVM's EHFrameRegistrationPlugin, which before LLVM 21 calls the executor for
/// each object, and of which memory managers know nothing. Layers that jitmem makes have it where
/// that pays.
class UnwindInfo : public detail::ResourcePlugin {
public:
  /// For a session whose executor has jitmem's service or is this process, if the unwinder asks
  /// jitmem there; null where LLVM's plugin serves as well.
  static std::unique_ptr<UnwindInfo> Create(llvm::orc::ExecutionSession &ES) {
    auto &EPC = ES.getExecutorProcessControl();
    auto Functions = detail::isThisProcess(EPC) ? detail::ownFrameFunctions()
                                                : detail::publishedFrameFunctions(EPC);
    return Functions ? std::unique_ptr<UnwindInfo>(new UnwindInfo(*Functions)) : nullptr;
  }

  void modifyPassConfig(llvm::orc::MaterializationResponsibility &, llvm::jitlink::LinkGraph &,
                        llvm::jitlink::PassConfiguration &Config) override {
    Config.PostFixupPasses.push_back([F = Functions](llvm::jitlink::LinkGraph &G) {
      if (auto *Frames = G.findSectionByName(".eh_frame")) {
        llvm::jitlink::SectionRange Range(*Frames);
        if (Range.getSize() != 0)
          G.allocActions().push_back({callOf(F.Register, Range), callOf(F.Deregister, Range)});
      }
      return llvm::Error::success();
    });
  }

  llvm::Error notifyFailed(llvm::orc::MaterializationResponsibility &) override {
    return llvm::Error::success();
  }
  llvm::Error remove(llvm::orc::ResourceKey) override { return llvm::Error::success(); }
  void transfer(llvm::orc::ResourceKey, llvm::orc::ResourceKey) override {}

private:
  explicit UnwindInfo(const detail::FrameFunctions &F) : Functions(F) {}

  static llvm::orc::shared::WrapperFunctionCall callOf(llvm::orc::ExecutorAddr Function,
                                                       const llvm::jitlink::SectionRange &Range) {
    using namespace llvm::orc::shared;
    return llvm::cantFail(
        WrapperFunctionCall::Create<SPSArgList<SPSExecutorAddrRange>>(Function, Range.getRange()));
  }

  detail::FrameFunctions Functions;
};

namespace detail {

inline llvm::Error addFrames(llvm::orc::ObjectLinkingLayer &Layer,
                             llvm::orc::ExecutionSession &ES) {
  auto Ours = UnwindInfo::Create(ES);
  if (!Ours)
    return addLlvmFrames(Layer, ES);
  Layer.addPlugin(std::move(Ours));
  return llvm::Error::success();
}

} // namespace detail

} // namespace jitmem::orc

#endif // JITMEM_ORC_UNWIND_HPP
