// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem as the JITLinkMemoryManager of an ORC host. Header only; link jitmem::orc and your LLVM.
// Builds with and without exceptions and RTTI.
//
// Nothing here refers to data of the C library (stderr, errno, environ): a reference from a header
// could make the host's linker copy such data into the executable's image, out of reach of linked
// code that refers to it directly.

#ifndef JITMEM_ORC_HPP
#define JITMEM_ORC_HPP

#include "../jitmem.h"
#include "orc_compat.hpp"
#include "orc_error.hpp"
#include "orc_group.hpp"
#include "orc_label.hpp"
#include "orc_layout.hpp"
#include "orc_transport.hpp"
#include "orc_unwind.hpp"

#include <llvm/ADT/STLFunctionalExtras.h>
#include <llvm/ADT/SmallVector.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/JITLink/JITLinkMemoryManager.h>
#include <llvm/Support/Error.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace jitmem::orc {

/// Choices for a memory manager.
struct Options {
  /// Bytes of address space per window, at most 2 GiB less 2 MiB; 0: 1 GiB.
  /// JITMEM_WINDOW_SIZE_BRANCH_REACH if linked code branches directly.
  uint64_t WindowSize = 0;
  /// An address that must be in reach of everything linked; 0: the executor's own images.
  uint64_t Near = 0;
  /// Further addresses that must be in reach; two that no window reaches are an error.
  std::vector<uint64_t> NearAll;
  /// Exactly where the window goes; 0: not fixed.
  uint64_t Fixed = 0;
  /// Most bytes handed out at a time; 0: no limit.
  uint64_t Quota = 0;
  /// Open another window when one is full. Each JITDylib stays inside one.
  bool AnotherWindow = false;
  /// Take the pages of a chunk when it is made, so that a shortage is an error and not a kill.
  bool Commit = false;
  /// Close the views through which code is written while nothing is being linked; costs system
  /// calls.
  bool CloseWriters = false;
  /// What is deallocated is used again only once reclaim() says so: threads may still run it.
  bool DeferReclamation = false;
  /// Use memory again that forked children may still see, once it is deallocated here.
  bool ReuseAfterFork = false;
  /// Take fresh memory in huge pages where one more is little beside what is in use; see
  /// jitmem_huge_pages. Without it collapse() makes some.
  bool HugePages = false;
  /// One of jitmem_in_process_kind, for managers of this process.
  uint32_t Mapper = JITMEM_IN_PROCESS_AUTO;
  /// Allocations are called after their graph and JITDylib, in errors, events and usage.
  bool Names = false;
  /// Gives allocations a tag, for errors, events and usage; empty: none has one. Called in the
  /// threads that link.
  TagFunction Tag;
  /// Says what the code of a graph is for, so that code that runs often lies together: see
  /// jitmem_code_hint. Called in the threads that link; it must not throw. Empty: the names of the
  /// graph's sections say it, as compilers (.text.hot, .text.unlikely and others) and ORC's stubs
  /// have them.
  HintFunction Hint;
  /// Is told of what comes and goes: jitmem_observer in jitmem.h says when, and in which threads.
  /// It must not throw. Empty: no one is told.
  std::function<void(const jitmem_event &)> Observer;
  /// Events have the time.
  bool EventTimes = false;
  /// How much each JITDylib and each tag has is counted, for usage().
  bool Usage = false;
  /// Load libjitmem.so into executors that do not publish its service.
  bool LoadExecutorLibrary = true;
  /// Its path in the executor; empty: the path of the one that this process runs.
  std::string ExecutorLibrary;
  /// Is told who joins and leaves a group: jitmem_group_observer in jitmem.h says in which threads.
  /// It must not throw. Empty: no one is told.
  std::function<void(const jitmem_group_event &)> GroupObserver;
  /// How long the executor may take; zeros are the defaults, and struct_size need not be set. What
  /// the EPC does by itself has no limit; connectWithin() limits how long it waits to be connected.
  jitmem_limits Limits = {};
  /// The C API's choices, for hosts that have them: in place of all above that it has a field for.
  /// Read while the manager is made.
  const jitmem_manager_options *Exactly = nullptr;
};

namespace detail {

struct FreeManager {
  /// False: the host keeps the manager.
  bool Owned = true;
  void operator()(jitmem_manager *M) const {
    if (Owned)
      jitmem_manager_free(M);
  }
};

} // namespace detail

/// A JITLinkMemoryManager that divides large reservations among many graphs.
///
/// Thread-safe; may be called from inside its own callbacks. Callbacks run in the calling thread
/// before the call returns, or, if an executor must answer first, as tasks of the EPC's dispatcher:
/// with one that runs tasks in place, in a thread that the session does not wait for. Must outlive
/// what it allocated; what is still finalized when it is destroyed is deallocated, its actions last
/// to first. But a remote manager leaves that to the executor, which does it when its connection
/// ends: ORC destroys managers after their EPC has disconnected or together with it. close() does
/// it at once.
class MemoryManager : public llvm::jitlink::JITLinkMemoryManager {
public:
  /// Memory of this process.
  static llvm::Expected<std::unique_ptr<MemoryManager>> CreateInProcess(const Options &O = {}) {
    detail::OwnedError E;
    jitmem_mapper *NewMapper = nullptr;
    if (jitmem_mapper_in_process(O.Mapper, &NewMapper, E.out()) != JITMEM_OK)
      return E.take();
    std::unique_ptr<jitmem_mapper, detail::FreeMapper> Mapper(NewMapper);
    auto MM = create(*Mapper, O);
    if (const auto &Own = detail::ownFrameFunctions(); MM && Own) {
      (*MM)->LlvmFrames = detail::llvmFrameFunctions();
      (*MM)->OwnFrames = *Own;
    }
    return MM;
  }

  /// Memory of another process on this machine, through shared pages. The executor publishes
  /// jitmem's service (see orc_executor.hpp), or libjitmem.so is loaded there. Waits for the
  /// executor. EPC must be there for as long as the manager is used, not while it is destroyed.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  CreateShared(llvm::orc::ExecutorProcessControl &EPC, const Options &O = {}) {
    auto S = detail::Service::find(EPC, O.LoadExecutorLibrary, O.ExecutorLibrary, O.Limits);
    return S ? createOver(*S, jitmem_mapper_shared, O) : S.takeError();
  }

  /// Memory of a process on any machine: content travels in EPC's messages. Otherwise as
  /// CreateShared.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  CreateRemote(llvm::orc::ExecutorProcessControl &EPC, const Options &O = {}) {
    auto S = detail::Service::find(EPC, O.LoadExecutorLibrary, O.ExecutorLibrary, O.Limits);
    return S ? createOver(*S, jitmem_mapper_remote, O) : S.takeError();
  }

  /// The best that works for this EPC: this process; shared pages with jitmem's service, or with
  /// LLVM's; messages with jitmem's service, or with LLVM's. stats() says which, and why nothing
  /// better.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  Create(llvm::orc::ExecutorProcessControl &EPC, const Options &O = {}) {
    if (detail::isThisProcess(EPC))
      return CreateInProcess(O);
    std::string Why;
    jitmem_status Status = JITMEM_UNSUPPORTED;
    auto Note = [&](const char *What, llvm::Error Err) {
      llvm::handleAllErrors(std::move(Err), [&](const llvm::ErrorInfoBase &Info) {
        if (Info.isA<MemoryError>())
          Status = static_cast<const MemoryError &>(Info).status();
        Why += (Why.empty() ? "" : "; ") + std::string(What) + Info.message();
      });
    };
    // Of an executor that is gone other ways say less, and one that is stopped is waited for once.
    auto Ended = [&] { return Status == JITMEM_DISCONNECTED || Status == JITMEM_TIMED_OUT; };
    std::unique_ptr<MemoryManager> MM;
    auto Works = [&](const char *What, auto &Through, auto MakeMapper) {
      if (Ended())
        return false;
      auto Tried = createOver(Through, MakeMapper, O, Why.empty() ? nullptr : Why.c_str());
      if (Tried)
        MM = std::move(*Tried);
      else
        Note(What, Tried.takeError());
      return MM != nullptr;
    };
    auto Ours = detail::Service::find(EPC, O.LoadExecutorLibrary, O.ExecutorLibrary, O.Limits);
    auto Link = detail::ExecutorLink::to(EPC, O.Limits);
    if (!Link) {
      llvm::consumeError(Ours.takeError());
      return Link.takeError();
    }
    bool HasOurs = bool(Ours);
    if (!HasOurs)
      Note("jitmem's service: ", Ours.takeError());
    if ((HasOurs && Works("shared memory: ", *Ours, jitmem_mapper_shared)) ||
        Works("LLVM's shared memory: ", *Link, jitmem_mapper_llvm_shared) ||
        (HasOurs && Works("remote: ", *Ours, jitmem_mapper_remote)) ||
        Works("LLVM's memory manager: ", *Link, jitmem_mapper_llvm_simple))
      return MM;
    return llvm::make_error<MemoryError>(Ended() ? Status : JITMEM_UNSUPPORTED, 0, Why);
  }

  /// Memory of several executors on this machine, each with an EPC of its own, which are linked for
  /// once: jitmem_mapper_group in jitmem.h says what holds. A session runs on one of the EPCs,
  /// which answers its look-ups; calls into another go through that one's EPC. Executors are
  /// numbered from 1 on. Waits for them.
  ///
  /// Each EPC must be there for as long as its executor belongs to the group. Callbacks run by the
  /// dispatcher of the first one that belongs to it, so that is best the session's. When all have
  /// left, that of the last one goes on, and must be there for as long as anything is asked of the
  /// manager, unless removeExecutor() was called for it. None is needed while the manager is
  /// destroyed.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  CreateGroup(llvm::ArrayRef<llvm::orc::ExecutorProcessControl *> EPCs, const Options &O = {}) {
    auto G = detail::Group::create(EPCs, {O.LoadExecutorLibrary, O.ExecutorLibrary, O.Limits},
                                   O.GroupObserver);
    if (!G)
      return G.takeError();
    auto MM = create((*G)->mapper(), O);
    if (MM)
      (*MM)->Group = std::move(*G);
    return MM;
  }

  /// Has an executor join a group, and waits until it has all that the others have; nothing is
  /// linked for it. Gives its number. See jitmem_mapper_add_executor.
  llvm::Expected<uint64_t> addExecutor(llvm::orc::ExecutorProcessControl &EPC,
                                       const std::string &Name = "") {
    if (!Group)
      return noGroup();
    return Group->add(EPC, Name);
  }

  /// Has an executor leave a group: its deallocation actions run. See
  /// jitmem_mapper_remove_executor.
  llvm::Error removeExecutor(uint64_t Number) { return Group ? Group->remove(Number) : noGroup(); }

  /// Over a manager that the host has made by the C API and keeps, for instance because several
  /// layers share it. The manager must outlive this object and what that allocated.
  static std::unique_ptr<MemoryManager> CreateOver(jitmem_manager *Manager) {
    std::unique_ptr<MemoryManager> MM(new MemoryManager(Manager, {}));
    MM->Manager.get_deleter().Owned = false;
    return MM;
  }

  ~MemoryManager() override {
    if (EPC)
      EPC->cut();
    if (Group)
      Group->cut();
  }

  /// Deallocates what is still finalized and gives all memory back, in the executor too, which must
  /// be connected. Nothing but destruction may follow.
  void close() { Manager.reset(); }

  using JITLinkMemoryManager::allocate;
  using JITLinkMemoryManager::deallocate;

  void allocate(const llvm::jitlink::JITLinkDylib *JD, llvm::jitlink::LinkGraph &G,
                OnAllocatedFunction OnAllocated) override {
    detail::GraphLayout Layout(G);
    auto Request = Layout.request(HintOf ? HintOf(JD, G) : Layout.hint());
    auto Dylib = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(JD));
    std::optional<detail::Label> Label;
    jitmem_allocation_request Labelled = {};
    if (Names || TagOf) {
      Label.emplace(Names, TagOf, JD, G);
      Labelled = {sizeof(Labelled), Request.data(), Request.size(), Dylib, 0, nullptr, nullptr};
      Label->addTo(Labelled);
    }
    detail::OwnedError E;
    llvm::SmallVector<jitmem_segment_memory, 4> Memory(Request.size());
    uint64_t Handle = 0;
    switch (Label ? jitmem_manager_try_request(handle(), &Labelled, Memory.data(), &Handle, E.out())
                  : jitmem_manager_try_allocate(handle(), Request.data(), Request.size(), Dylib,
                                                Memory.data(), &Handle, E.out())) {
    case JITMEM_OK:
      Layout.apply(Memory.data());
      OnAllocated(std::make_unique<InFlight>(*this, G, Handle));
      return;
    case JITMEM_WOULD_BLOCK:
      break;
    default:
      OnAllocated(E.take());
      return;
    }
    detail::submit(
        std::make_unique<Allocating>(*this, G, std::move(Layout), std::move(OnAllocated)),
        [&](void *Passed, jitmem_error **E) {
          if (Label)
            return jitmem_manager_request_async(handle(), &Labelled, &Allocating::done, Passed,
                                                nullptr, E);
          return jitmem_manager_allocate_async(handle(), Request.data(), Request.size(), Dylib,
                                               &Allocating::done, Passed, nullptr, E);
        },
        [](Allocating &A, llvm::Error E) { A.OnAllocated(std::move(E)); });
  }

  void deallocate(std::vector<FinalizedAlloc> Allocs,
                  OnDeallocatedFunction OnDeallocated) override {
    llvm::SmallVector<uint64_t, 8> Handles;
    for (auto &Alloc : Allocs)
      if (Alloc) // a default-constructed one has nothing to deallocate
        Handles.push_back(Alloc.release().getValue());
    detail::OwnedError E;
    auto Status = jitmem_manager_try_deallocate(handle(), Handles.data(), Handles.size(), E.out());
    if (Status != JITMEM_WOULD_BLOCK) {
      OnDeallocated(E.take());
      return;
    }
    detail::submit(
        std::make_unique<OnDeallocatedFunction>(std::move(OnDeallocated)),
        [&](void *Passed, jitmem_error **E) {
          return jitmem_manager_deallocate_async(handle(), Handles.data(), Handles.size(),
                                                 &done<OnDeallocatedFunction>, Passed, nullptr, E);
        },
        [](OnDeallocatedFunction &Refused, llvm::Error E) { Refused(std::move(E)); });
  }

  /// Ends an epoch, with Options::DeferReclamation: what was deallocated before belongs to it or to
  /// one before it. See jitmem_manager_advance_epoch.
  llvm::Expected<uint64_t> advanceEpoch() {
    detail::OwnedError E;
    uint64_t Epoch = 0;
    if (jitmem_manager_advance_epoch(handle(), &Epoch, E.out()) != JITMEM_OK)
      return E.take();
    return Epoch;
  }

  /// Gives back what was deallocated up to an epoch that has ended, and answers its bytes. Every
  /// thread has been outside of linked code since. Waits for the executor, so it must not be called
  /// where its answers come from.
  llvm::Expected<uint64_t> reclaim(uint64_t Epoch) {
    detail::OwnedError E;
    uint64_t Bytes = 0;
    if (jitmem_manager_reclaim(handle(), Epoch, &Bytes, E.out()) != JITMEM_OK)
      return E.take();
    return Bytes;
  }

  /// Gives everything back to the system that holds nothing, and answers how many bytes of memory
  /// that was; see jitmem_manager_trim.
  llvm::Expected<uint64_t> trim() {
    uint64_t Bytes = 0;
    detail::OwnedError E;
    if (jitmem_manager_trim(handle(), &Bytes, E.out()) != JITMEM_OK)
      return E.take();
    return Bytes;
  }

  /// Has memory that is nearly full put into huge pages, and answers how many bytes that is; see
  /// jitmem_manager_collapse.
  llvm::Expected<uint64_t> collapse() {
    uint64_t Bytes = 0;
    detail::OwnedError E;
    if (jitmem_manager_collapse(handle(), &Bytes, E.out()) != JITMEM_OK)
      return E.take();
    return Bytes;
  }

  /// Changes Options::Quota; 0: no limit. It may be below what is in use: nothing more is handed
  /// out then until enough is deallocated.
  llvm::Error setQuota(uint64_t Quota) {
    detail::OwnedError E;
    if (jitmem_manager_set_quota(handle(), Quota, E.out()) != JITMEM_OK)
      return E.take();
    return llvm::Error::success();
  }

  /// Figures of this moment; see jitmem.h.
  jitmem_stats stats() const {
    jitmem_stats Stats = {};
    Stats.struct_size = sizeof(Stats);
    jitmem_manager_stats(handle(), &Stats, nullptr);
    return Stats;
  }

  /// What the allocations of a JITDylib have; null: of those that have none. An error if
  /// Options::Usage was not set. By tag: jitmem_manager_usage.
  llvm::Expected<jitmem_usage> usage(const llvm::jitlink::JITLinkDylib *JD) const {
    jitmem_usage Usage = {};
    Usage.struct_size = sizeof(Usage);
    auto Key = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(JD));
    detail::OwnedError E;
    if (jitmem_manager_usage(handle(), JITMEM_USAGE_BY_DYLIB, Key, &Usage, E.out()) != JITMEM_OK)
      return E.take();
    return Usage;
  }

  /// The allocation of this manager that an executor address lies in, if any: async-signal-safe
  /// and lock-free. See jitmem_manager_lookup.
  std::optional<jitmem_location> lookup(llvm::orc::ExecutorAddr Addr) const {
    jitmem_location Found = {};
    Found.struct_size = sizeof(Found);
    if (jitmem_manager_lookup(handle(), Addr.getValue(), &Found) != JITMEM_LOOKUP_FOUND)
      return std::nullopt;
    return Found;
  }

  /// The allocation that an address of this process lies in, whichever manager has it:
  /// async-signal-safe and lock-free. See jitmem_lookup.
  static std::optional<jitmem_location> lookupHere(const void *Address) {
    jitmem_location Found = {};
    Found.struct_size = sizeof(Found);
    if (jitmem_lookup(static_cast<uint64_t>(reinterpret_cast<uintptr_t>(Address)), &Found) !=
        JITMEM_LOOKUP_FOUND)
      return std::nullopt;
    return Found;
  }

  /// Shows every segment of every live allocation; see jitmem_manager_walk.
  llvm::Error walk(llvm::function_ref<void(const jitmem_location &)> See) const {
    jitmem_location_fn Passed = [](void *Ctx, const jitmem_location *Location) {
      (*static_cast<llvm::function_ref<void(const jitmem_location &)> *>(Ctx))(*Location);
    };
    detail::OwnedError E;
    jitmem_manager_walk(handle(), Passed, &See, E.out());
    return E.take();
  }

  /// The C API's handle, owned by this object.
  jitmem_manager *handle() const { return Manager.get(); }

private:
  using LinkGraph = llvm::jitlink::LinkGraph;

  MemoryManager(jitmem_manager *Manager, const Options &O)
      : Names(O.Names), TagOf(O.Tag), HintOf(O.Hint), Manager(Manager) {}

  static llvm::Expected<std::unique_ptr<MemoryManager>> create(const jitmem_mapper &Mapper,
                                                               const Options &O) {
    jitmem_manager_options Chosen = {};
    Chosen.struct_size = sizeof(Chosen);
    Chosen.window_size = O.WindowSize;
    Chosen.quota = O.Quota;
    Chosen.growth = O.AnotherWindow ? JITMEM_GROWTH_ANOTHER_WINDOW : JITMEM_GROWTH_ERROR;
    Chosen.commit = O.Commit;
    Chosen.close_writers = O.CloseWriters;
    Chosen.defer_reclamation = O.DeferReclamation;
    Chosen.fork_policy = O.ReuseAfterFork ? JITMEM_FORK_REUSE : JITMEM_FORK_FREEZE;
    Chosen.huge_pages = O.HugePages ? JITMEM_HUGE_PAGES_WHERE_LARGE : JITMEM_HUGE_PAGES_ON_CALL;
    if (O.Fixed) {
      Chosen.placement = JITMEM_PLACEMENT_FIXED;
      Chosen.address = O.Fixed;
    } else if (O.Near || !O.NearAll.empty()) {
      Chosen.placement = JITMEM_PLACEMENT_NEAR;
      Chosen.address = O.Near;
      Chosen.addresses = O.NearAll.data();
      Chosen.address_count = O.NearAll.size();
    }
    if (O.Fixed && (O.Near || !O.NearAll.empty()))
      return llvm::make_error<MemoryError>(
          JITMEM_INVALID_ARGUMENT, 0,
          "create a memory manager: both Options::Fixed and Options::Near are set; choose one");
    Chosen.usage = O.Usage;
    jitmem_observer Observer = {};
    if (O.Observer && !O.Exactly) {
      using FunctionT = std::function<void(const jitmem_event &)>;
      Observer.struct_size = sizeof(Observer);
      Observer.fn = [](void *Ctx, const jitmem_event *Event) {
        (*static_cast<const FunctionT *>(Ctx))(*Event);
      };
      Observer.ctx = new FunctionT(O.Observer);
      Observer.destroy = [](void *Ctx) { delete static_cast<FunctionT *>(Ctx); };
      Observer.times = O.EventTimes;
      Chosen.observer = &Observer;
    }
    detail::OwnedError E;
    jitmem_manager *Manager = nullptr;
    if (jitmem_manager_create(&Mapper, O.Exactly ? O.Exactly : &Chosen, &Manager, E.out()) !=
        JITMEM_OK)
      return E.take();
    return std::unique_ptr<MemoryManager>(new MemoryManager(Manager, O));
  }

  /// Over jitmem's service in an executor; `InsteadOf` says why nothing better was taken.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  createOver(const detail::Service &S, decltype(&jitmem_mapper_shared) Make, const Options &O,
             const char *InsteadOf = nullptr) {
    jitmem_executor_options Chosen = {};
    Chosen.struct_size = sizeof(Chosen);
    Chosen.service = S.Open;
    Chosen.instance = S.Instance;
    Chosen.instead_of = InsteadOf;
    return createOver(S.Link, O, [&](jitmem_mapper **Mapper, jitmem_error **E) {
      return Make(S.Link.Handle.get(), &Chosen, Mapper, E);
    });
  }

  /// Over a service of LLVM's.
  static llvm::Expected<std::unique_ptr<MemoryManager>>
  createOver(const detail::ExecutorLink &Link, decltype(&jitmem_mapper_llvm_shared) Make,
             const Options &O, const char *InsteadOf) {
    return createOver(Link, O, [&](jitmem_mapper **Mapper, jitmem_error **E) {
      return Make(Link.Handle.get(), InsteadOf, Mapper, E);
    });
  }

  static llvm::Expected<std::unique_ptr<MemoryManager>>
  createOver(const detail::ExecutorLink &Link, const Options &O,
             llvm::function_ref<jitmem_status(jitmem_mapper **, jitmem_error **)> Make) {
    detail::OwnedError E;
    jitmem_mapper *NewMapper = nullptr;
    if (Make(&NewMapper, E.out()) != JITMEM_OK)
      return E.take();
    std::unique_ptr<jitmem_mapper, detail::FreeMapper> Mapper(NewMapper);
    auto MM = create(*Mapper, O);
    if (MM)
      (*MM)->EPC = Link.EPC;
    return MM;
  }

  static llvm::Error noGroup() {
    return llvm::make_error<MemoryError>(
        JITMEM_INVALID_ARGUMENT, 0,
        "this memory manager is over no group; make one by MemoryManager::CreateGroup");
  }

  /// The callback of requests that end in an error or nothing.
  template <typename FunctionT> static void done(void *Ctx, const jitmem_error *E) {
    std::unique_ptr<FunctionT> F(static_cast<FunctionT *>(Ctx));
    (*F)(detail::toError(E));
  }

  /// An allocation between allocate and finalize or abandon. Must not outlive its manager.
  class InFlight : public InFlightAlloc {
  public:
    InFlight(MemoryManager &MM, LinkGraph &G, uint64_t Handle) : MM(MM), G(G), Handle(Handle) {}

    ~InFlight() override {
      if (!Handle)
        return;
      // Not to be waited for: this may be the thread in which the executor's answers arrive.
      jitmem_done_fn Nothing = [](void *, const jitmem_error *) {};
      jitmem_manager_abandon_async(MM.handle(), Handle, Nothing, nullptr, nullptr, nullptr);
    }

    void abandon(OnAbandonedFunction OnAbandoned) override {
      uint64_t Taken = std::exchange(Handle, 0);
      detail::submit(
          std::make_unique<OnAbandonedFunction>(std::move(OnAbandoned)),
          [&](void *Passed, jitmem_error **E) {
            return jitmem_manager_abandon_async(MM.handle(), Taken, &done<OnAbandonedFunction>,
                                                Passed, nullptr, E);
          },
          [](OnAbandonedFunction &Refused, llvm::Error E) { Refused(std::move(E)); });
    }

    void finalize(OnFinalizedFunction OnFinalized) override {
      uint64_t Taken = std::exchange(Handle, 0);
      if (G.allocActions().empty()) {
        detail::OwnedError E;
        auto Status = jitmem_manager_try_finalize(MM.handle(), Taken, E.out());
        if (Status == JITMEM_OK) {
          OnFinalized(FinalizedAlloc(llvm::orc::ExecutorAddr(Taken)));
          return;
        }
        if (Status != JITMEM_WOULD_BLOCK) {
          OnFinalized(E.take());
          return;
        }
      }
      llvm::SmallVector<jitmem_action, 4> Actions;
      for (auto &Pair : G.allocActions())
        Actions.push_back({MM.toCall(Pair.Finalize), MM.toCall(Pair.Dealloc), {}});
      detail::submit(
          std::make_unique<Finalizing>(Finalizing{Taken, std::move(OnFinalized)}),
          [&](void *Passed, jitmem_error **E) {
            return jitmem_manager_finalize_async(MM.handle(), Taken, Actions.data(), Actions.size(),
                                                 &Finalizing::done, Passed, nullptr, E);
          },
          [](Finalizing &Refused, llvm::Error E) { Refused.OnFinalized(std::move(E)); });
    }

  private:
    struct Finalizing {
      uint64_t Handle;
      OnFinalizedFunction OnFinalized;

      static void done(void *Ctx, const jitmem_error *E) {
        std::unique_ptr<Finalizing> F(static_cast<Finalizing *>(Ctx));
        if (E)
          F->OnFinalized(detail::toError(E));
        else
          F->OnFinalized(FinalizedAlloc(llvm::orc::ExecutorAddr(F->Handle)));
      }
    };

    MemoryManager &MM;
    LinkGraph &G;
    uint64_t Handle;
  };

  jitmem_wrapper_call toCall(const llvm::orc::shared::WrapperFunctionCall &Call) const {
    const auto &Args = Call.getArgData(); // by reference: the action points into it
    auto Callee = Call.getCallee();
    if (Callee && Callee == LlvmFrames.Register)
      Callee = OwnFrames.Register;
    else if (Callee && Callee == LlvmFrames.Deregister)
      Callee = OwnFrames.Deregister;
    return {Callee.getValue(), Args.data(), Args.size()};
  }

  /// A request for memory under way.
  struct Allocating {
    Allocating(MemoryManager &MM, LinkGraph &G, detail::GraphLayout Layout,
               OnAllocatedFunction OnAllocated)
        : MM(MM), G(G), Layout(std::move(Layout)), OnAllocated(std::move(OnAllocated)) {}

    static void done(void *Ctx, uint64_t Handle, const jitmem_segment_memory *Memory, size_t,
                     const jitmem_error *E) {
      std::unique_ptr<Allocating> A(static_cast<Allocating *>(Ctx));
      if (E) {
        A->OnAllocated(detail::toError(E));
        return;
      }
      A->Layout.apply(Memory);
      A->OnAllocated(std::make_unique<InFlight>(A->MM, A->G, Handle));
    }

    MemoryManager &MM;
    LinkGraph &G;
    detail::GraphLayout Layout;
    OnAllocatedFunction OnAllocated;
  };

  bool Names;
  TagFunction TagOf;
  HintFunction HintOf;
  /// Actions of LLVM's plugin, and jitmem's own that stand for them, which enter an index.
  detail::FrameFunctions LlvmFrames, OwnFrames;
  /// Of a manager over a group; outlives the manager's handle.
  std::unique_ptr<detail::Group> Group;
  std::unique_ptr<jitmem_manager, detail::FreeManager> Manager;
  /// The connection to the executor, if that is not this process.
  std::shared_ptr<detail::Connection> EPC;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_HPP
