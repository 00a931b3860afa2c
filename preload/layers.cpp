// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Object layers over jitmem for programs that do not know of it. Loaded by preload.c once the
// program uses the LLVM that this is linked against.
#include "layers.h"

#include <jitmem/orc_layer.hpp>
#include <jitmem/rtdyld.hpp>

#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/Support/raw_ostream.h>

#include <atomic>
#include <cerrno>
#include <dlfcn.h>
#include <pthread.h>

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
struct LinkingLayer {
  friend constexpr auto member(LinkingLayer);
};
struct GetManager {
  friend constexpr auto member(GetManager);
};
#if LLVM_VERSION_MAJOR >= 17
struct OwnMapper {
  friend constexpr auto member(OwnMapper);
};
template struct Expose<OwnMapper, &SectionMemoryManager::OwnedMMapper>;
#endif
template struct Expose<CurrentManager, &ExecutorProcessControl::MemMgr>;
template struct Expose<OwnManager, &SelfExecutorProcessControl::OwnedMemMgr>;
template struct Expose<LinkingLayer, &LLJIT::ObjLinkingLayer>;
template struct Expose<GetManager, &RTDyldObjectLinkingLayer::GetMemoryManager>;

/// What jitmem registers when this is loaded, by kind.
void (*AtFork[3])();

/// Those that use jitmem.
std::atomic<uint64_t> Layers{0};

/// Requests that were refused and then made otherwise.
std::atomic<uint64_t> Repeated{0};

/// The one manager of this process: its layers share pages. It stays until the process ends, since
/// nothing tells when the last layer is gone. A child of a raw clone has none: it is refused there.
jitmem_manager *manager(const char **Why) {
  struct Made {
    jitmem_manager *Manager = nullptr;
    std::string Error;
    Made() {
      jitmem_manager_options Options = {};
      Options.struct_size = sizeof(Options);
      // A program that knows of no window must not fail at the end of one, nor with an object that
      // a smaller one could not hold. This is the largest.
      Options.growth = JITMEM_GROWTH_ANOTHER_WINDOW;
      Options.window_size = (uint64_t(2) << 30) - (uint64_t(2) << 20);
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
  *Why = One.Error.c_str();
  if (!One.Manager)
    return nullptr;
  jitmem_stats Stats = {};
  Stats.struct_size = sizeof(Stats);
  jitmem_error *E = nullptr;
  if (jitmem_manager_stats(One.Manager, &Stats, &E) == JITMEM_OK)
    return One.Manager;
  static const std::string &Refused = *new std::string(jitmem_error_message(E));
  jitmem_error_free(E);
  *Why = Refused.c_str();
  return nullptr;
}

/// jitmem's manager for a program that knows of no window: a JITDylib goes on in another one where
/// its own is full. LLVM's managers do not promise either that its graphs reach each other.
class AnyWindow final : public jitlink::JITLinkMemoryManager {
public:
  explicit AnyWindow(jitmem_manager *Manager)
      : Memory(jitmem::orc::MemoryManager::CreateOver(Manager)) {}

  using JITLinkMemoryManager::allocate;
  using JITLinkMemoryManager::deallocate;

  void allocate(const jitlink::JITLinkDylib *JD, jitlink::LinkGraph &G,
                OnAllocatedFunction OnAllocated) override {
    Memory->allocate(
        JD, G, [this, &G, OnAllocated = std::move(OnAllocated)](AllocResult Result) mutable {
          if (Result)
            return OnAllocated(std::move(Result));
          auto Other = handleErrors(
              Result.takeError(), [](std::unique_ptr<jitmem::orc::MemoryError> E) -> Error {
                return E->status() == JITMEM_WINDOW_FULL ? Error::success() : Error(std::move(E));
              });
          if (Other)
            return OnAllocated(std::move(Other));
          ++Repeated;
          Memory->allocate(nullptr, G, std::move(OnAllocated));
        });
  }

  void deallocate(std::vector<FinalizedAlloc> Allocs,
                  OnDeallocatedFunction OnDeallocated) override {
    Memory->deallocate(std::move(Allocs), std::move(OnDeallocated));
  }

private:
  std::unique_ptr<jitmem::orc::MemoryManager> Memory;
};

/// In which file an object's class is, by its first virtual function. Tables and other data may be
/// copies in the program, which its linker has made.
const void *fileOf(const void *Object) {
  Dl_info File;
  auto *Function = **static_cast<void *const *const *>(Object);
  return dladdr(Function, &File) ? File.dli_fbase : nullptr;
}

/// Gives an EPC of this process jitmem's manager in place of LLVM's: all JITLink layers made over
/// it, by whom ever, use it then, with the plugins that they have.
const char *giveManager(ExecutorProcessControl &EPC) {
  auto &Current = EPC.*member(CurrentManager());
  if (!jitmem::orc::detail::isThisProcess(EPC))
    return "its code runs in another process";
  // The EPC's class is LLVM's.
  if (Current && fileOf(Current) != fileOf(&EPC))
    return "it brings a memory manager of its own";
  const char *Why;
  auto *Manager = manager(&Why);
  if (!Manager)
    return Why;
  auto &Owned = static_cast<SelfExecutorProcessControl &>(EPC).*member(OwnManager());
  // Layers that the program has made over it stay with it.
  (void)Owned.release();
  Owned = std::make_unique<AnyWindow>(Manager);
  Current = Owned.get();
  return nullptr;
}

/// Whether a manager is LLVM's SectionMemoryManager over LLVM's own mapper.
bool isSectionManager(const RuntimeDyld::MemoryManager &MM) {
  static const SectionMemoryManager &One = *new SectionMemoryManager;
  if (*reinterpret_cast<void *const *>(&MM) != *reinterpret_cast<void *const *>(&One))
    return false; // another class
#if LLVM_VERSION_MAJOR >= 17
  return (static_cast<const SectionMemoryManager &>(MM).*member(OwnMapper())) != nullptr;
#else
  // The last member refers to the mapper, and a reference can't be named so.
  auto Mapper = [](const RuntimeDyld::MemoryManager &Of) {
    return reinterpret_cast<void *const *>(&static_cast<const SectionMemoryManager &>(Of) + 1)[-1];
  };
  return Mapper(MM) == Mapper(One);
#endif
}

} // namespace

/// The C library's, for what is linked into this file: jitmem's handlers are called by
/// jitmem_preload_at_fork.
extern "C" int pthread_atfork(void (*Prepare)(), void (*Parent)(), void (*Child)()) noexcept {
  if (AtFork[JITMEM_PRELOAD_BEFORE_FORK])
    return ENOMEM;
  AtFork[JITMEM_PRELOAD_BEFORE_FORK] = Prepare;
  AtFork[JITMEM_PRELOAD_IN_PARENT] = Parent;
  AtFork[JITMEM_PRELOAD_IN_CHILD] = Child;
  return 0;
}

void jitmem_preload_at_fork(jitmem_preload_fork when) {
  if (AtFork[when])
    AtFork[when]();
}

const char *jitmem_preload_configure(void *builder_state) {
  auto &State = *static_cast<LLJITBuilderState *>(builder_state);
  if (!State.EPC && !State.ES) {
    auto Made =
        SelfExecutorProcessControl::Create(nullptr, jitmem::orc::detail::takeDispatcher(State, 0));
    if (!Made) {
      consumeError(Made.takeError());
      return "it has no control over its own process";
    }
    State.EPC = std::move(*Made);
  }
  auto &EPC = State.ES ? State.ES->getExecutorProcessControl() : *State.EPC;
  return giveManager(EPC);
}

const char *jitmem_preload_adopt(void *layer) {
  auto *Layer = dyn_cast<RTDyldObjectLinkingLayer>(static_cast<ObjectLayer *>(layer));
  if (!Layer)
    return nullptr;
  const char *Why;
  if (!manager(&Why))
    return Why;
  auto &Get = Layer->*member(GetManager());
  Get = [Former = std::move(Get), New = std::make_shared<std::atomic<bool>>(true)](
            auto &&...Object) mutable -> std::unique_ptr<RuntimeDyld::MemoryManager> {
    auto Made = Former(Object...);
    const char *Why;
    auto *Manager = Made && isSectionManager(*Made) ? manager(&Why) : nullptr;
    if (!Manager)
      return Made;
    if (New->exchange(false))
      ++Layers;
    // All of an object lies in one window, for which jitmem wants a number of it; two objects need
    // not, as with LLVM's manager. Fewer mappings than with constants in pages of their own.
    static std::atomic<uint64_t> Objects{0};
    return std::make_unique<jitmem::RTDyldMemoryManager>(Manager, ++Objects, true);
  };
  return nullptr;
}

const char *jitmem_preload_made(void *jit) {
  auto *Layer = (static_cast<LLJIT *>(jit)->*member(LinkingLayer())).get();
  if (Layer && isa<ObjectLinkingLayer>(Layer))
    ++Layers;
  return Layer ? jitmem_preload_adopt(Layer) : nullptr;
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
  auto Layer = jitmem::orc::detail::makeLayer(
      ES, std::unique_ptr<jitlink::JITLinkMemoryManager>(std::make_unique<AnyWindow>(Manager)));
  if (Layer) {
    ++Layers;
    return static_cast<ObjectLayer *>(Layer->release());
  }
  auto Text = toString(Layer.takeError());
  static const std::string &Error = *new std::string(std::move(Text));
  *why = Error.c_str();
  return nullptr;
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
  report->failures = Stats.failures - Repeated;
  report->live_bytes = Stats.live;
  report->committed_bytes = Stats.committed;
  report->mapper = Stats.mapper_name;
}
