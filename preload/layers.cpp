// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Object layers over jitmem for programs that do not know of it. Loaded by preload.c once the
// program uses the LLVM that this is linked against.
#include "layers.h"

#include <jitmem/orc_layer.hpp>
#include <jitmem/orc_listener.hpp>

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#include <llvm/Support/raw_ostream.h>

#include <atomic>
#include <dlfcn.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

// Members of LLVM's classes that have no accessor. An explicit instantiation may name them.
template <typename NameT, auto Member> struct Expose {
  friend constexpr auto member(NameT) { return Member; }
};
struct CurrentManager {
  friend constexpr auto member(CurrentManager);
};
struct OwnManager {
  friend constexpr auto member(OwnManager);
};
struct Loaded {
  friend constexpr auto member(Loaded);
};
struct Emitted {
  friend constexpr auto member(Emitted);
};
struct Listeners {
  friend constexpr auto member(Listeners);
};
template struct Expose<CurrentManager, &ExecutorProcessControl::MemMgr>;
template struct Expose<OwnManager, &SelfExecutorProcessControl::OwnedMemMgr>;
template struct Expose<Loaded, &RTDyldObjectLinkingLayer::NotifyLoaded>;
template struct Expose<Emitted, &RTDyldObjectLinkingLayer::NotifyEmitted>;
template struct Expose<Listeners, &RTDyldObjectLinkingLayer::EventListeners>;

std::atomic<uint64_t> Layers{0};

/// The one manager of this process: its layers share pages. It stays until the process ends, since
/// nothing tells when the last layer is gone.
jitmem_manager *manager(const char **Why) {
  struct Made {
    jitmem_manager *Manager = nullptr;
    std::string Error;
    Made() {
      jitmem_manager_options Options = {};
      Options.struct_size = sizeof(Options);
      // A program that knows of no window must not fail at the end of one.
      Options.growth = JITMEM_GROWTH_ANOTHER_WINDOW;
      jitmem_mapper *Mapper = nullptr;
      jitmem_error *E = nullptr;
      if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &Mapper, &E) != JITMEM_OK ||
          jitmem_manager_create(Mapper, &Options, &Manager, &E) != JITMEM_OK)
        Error = jitmem_error_message(E);
      jitmem_error_free(E);
      jitmem_mapper_free(Mapper);
    }
  };
  static const Made &One = *new Made;
  *Why = One.Manager ? nullptr : One.Error.c_str();
  return One.Manager;
}

/// Whether an object's class is one of LLVM's, by where its virtual functions' table lies.
bool isLLVMs(const void *Object) {
  Dl_info Table, LLVM;
  return dladdr(*static_cast<void *const *>(Object), &Table) &&
         dladdr(reinterpret_cast<void *>(&ObjectLinkingLayer::ID), &LLVM) &&
         Table.dli_fbase == LLVM.dli_fbase;
}

/// Gives an EPC of this process jitmem's manager in place of LLVM's: all JITLink layers made over
/// it, by whom ever, use it then, with the plugins that they have.
const char *giveManager(ExecutorProcessControl &EPC) {
  auto &Current = EPC.*member(CurrentManager());
  if (!jitmem::orc::detail::isThisProcess(EPC))
    return "its code runs in another process";
  if (Current && !isLLVMs(Current))
    return "it brings a memory manager of its own";
  const char *Why;
  auto *Manager = manager(&Why);
  if (!Manager)
    return Why;
  auto &Owned = static_cast<SelfExecutorProcessControl &>(EPC).*member(OwnManager());
  Owned = jitmem::orc::MemoryManager::CreateOver(Manager);
  Current = Owned.get();
  return nullptr;
}

/// A JITLink layer in place of RuntimeDyld's.
Expected<std::unique_ptr<ObjectLinkingLayer>>
createLayer(ExecutionSession &ES, std::unique_ptr<jitmem::orc::MemoryManager> MM = nullptr) {
  auto Layer = jitmem::orc::createObjectLayer(ES, std::move(MM));
  if (Layer) {
    // RuntimeDyld takes what an object says of its symbols more lightly than JITLink.
    (*Layer)->setOverrideObjectFlagsWithResponsibilityFlags(true);
    (*Layer)->setAutoClaimResponsibilityForObjectSymbols(true);
    ++Layers;
  }
  return Layer;
}

/// What a builder's creator has made, or a layer of JITLink's in its place.
Expected<std::unique_ptr<ObjectLayer>> replace(std::unique_ptr<ObjectLayer> Made,
                                               ExecutionSession &ES) {
  auto *Old = dyn_cast<RTDyldObjectLinkingLayer>(Made.get());
  if (!Old) {
    ++Layers;
    return Made;
  }
  if (!isLLVMs(Old) || Old->*member(Loaded()) || Old->*member(Emitted()))
    return Made; // the host is told what RuntimeDyld does, which JITLink does not do
  auto New = createLayer(ES);
  if (!New)
    return New.takeError();
  for (auto *Listener : Old->*member(Listeners()))
    (*New)->addPlugin(std::make_unique<jitmem::orc::ListenerPlugin>(*Listener));
  // Its destructor does not do so. The base is private, past which only this cast goes.
  ES.deregisterResourceManager((ResourceManager &)*Old);
  return std::move(*New);
}

} // namespace

const char *jitmem_preload_configure(void *builder_state) {
  auto &State = *static_cast<LLJITBuilderState *>(builder_state);
  if (!State.EPC && !State.ES) {
    auto Made = SelfExecutorProcessControl::Create();
    if (!Made) {
      consumeError(Made.takeError());
      return "it has no control over its own process";
    }
    State.EPC = std::move(*Made);
  }
  auto &EPC = State.ES ? State.ES->getExecutorProcessControl() : *State.EPC;
  if (const char *Why = giveManager(EPC))
    return Why;
  auto Create = std::move(State.CreateObjectLinkingLayer);
#if LLVM_VERSION_MAJOR >= 21
  State.CreateObjectLinkingLayer =
      [Create](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
    if (!Create)
      return createLayer(ES);
    auto Made = Create(ES);
#else
  State.CreateObjectLinkingLayer =
      [Create](ExecutionSession &ES,
               const Triple &Target) -> Expected<std::unique_ptr<ObjectLayer>> {
    if (!Create)
      return createLayer(ES);
    auto Made = Create(ES, Target);
#endif
    return Made ? replace(std::move(*Made), ES) : std::move(Made);
  };
  return nullptr;
}

void *jitmem_preload_layer(void *session, const char **why) {
  auto &ES = *static_cast<ExecutionSession *>(session);
  if (!jitmem::orc::detail::isThisProcess(ES.getExecutorProcessControl())) {
    *why = "its code runs in another process";
    return nullptr;
  }
  auto *Manager = manager(why);
  if (!Manager)
    return nullptr;
  auto Layer = createLayer(ES, jitmem::orc::MemoryManager::CreateOver(Manager));
  if (Layer)
    return static_cast<ObjectLayer *>(Layer->release());
  static const std::string &Error = *new std::string(toString(Layer.takeError()));
  *why = Error.c_str();
  return nullptr;
}

int jitmem_preload_listen(void *layer, void *listener) {
  auto *Layer = dyn_cast<ObjectLinkingLayer>(static_cast<ObjectLayer *>(layer));
  if (!Layer)
    return 0;
  Layer->addPlugin(
      std::make_unique<jitmem::orc::ListenerPlugin>(*static_cast<JITEventListener *>(listener)));
  return 1;
}

void jitmem_preload_figures(jitmem_preload_report *report) {
  *report = {};
  report->layers = Layers;
  report->mapper = "none";
  const char *Why;
  auto *Manager = Layers ? manager(&Why) : nullptr;
  if (!Manager)
    return;
  jitmem_stats Stats = {};
  Stats.struct_size = sizeof(Stats);
  jitmem_manager_stats(Manager, &Stats, nullptr);
  report->allocations = Stats.allocate_calls;
  report->deallocations = Stats.deallocate_calls;
  report->failures = Stats.failures;
  report->live_bytes = Stats.live;
  report->committed_bytes = Stats.committed;
  report->mapper = Stats.mapper_name;
}
