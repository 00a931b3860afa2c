// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images: what a session has linked, in a file, from which later processes have it without linking.
// For LLVM 19 and later, and x86-64.

#ifndef JITMEM_ORC_IMAGE_HPP
#define JITMEM_ORC_IMAGE_HPP

#include "orc.hpp"
#include "orc_image_graph.hpp"

#include <llvm/ADT/DenseMap.h>
#include <llvm/ADT/StringExtras.h>
#include <llvm/ExecutionEngine/JITLink/x86_64.h>

#include <cassert>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace jitmem::orc {

/// What code depends on besides jitmem's and LLVM's version and the processor, by name: options of
/// the compiler, build-ids of libraries whose structures it knows.
using ImageKey = std::vector<std::pair<std::string, std::string>>;

namespace detail {

/// A key as the C API takes it; valid for as long as the key.
inline llvm::Expected<std::vector<jitmem_image_key>> passed(const ImageKey &Key) {
  std::vector<jitmem_image_key> Parts = {{"LLVM", LLVMRelease, {}}};
  for (auto &[Name, Value] : Key) {
    if (Name.find('\0') != std::string::npos || Value.find('\0') != std::string::npos)
      return llvm::make_error<MemoryError>(JITMEM_INVALID_ARGUMENT, 0,
                                           std::string("make the key of an image: part ") +
                                               Name.c_str() + " has a NUL; give it as hex");
    Parts.push_back({Name.c_str(), Value.c_str(), {}});
  }
  return Parts;
}

struct FreeImageRecorder {
  void operator()(jitmem_image_recorder *R) const { jitmem_image_recorder_free(R); }
};

struct FreeImage {
  void operator()(jitmem_image *I) const { jitmem_image_free(I); }
};

/// A path as the C API takes it.
inline llvm::Expected<std::string> passed(llvm::StringRef Path) {
  if (Path.contains('\0'))
    return llvm::make_error<MemoryError>(JITMEM_INVALID_ARGUMENT, 0,
                                         "image " + Path.str() + ": its path has a NUL");
  return Path.str();
}

} // namespace detail

/// Copies of what layers link, to be stored as an image. It is told of graphs by an ImagePlugin of
/// each layer, and forgets those that are removed. Thread-safe.
class ImageRecorder {
public:
  static llvm::Expected<std::shared_ptr<ImageRecorder>> Create() {
    detail::OwnedError E;
    jitmem_image_recorder *New = nullptr;
    if (jitmem_image_recorder_create(&New, E.out()) != JITMEM_OK)
      return E.take();
    return std::shared_ptr<ImageRecorder>(new ImageRecorder(New));
  }

  /// Writes what is linked now to a file, in the place of one that is there; see
  /// jitmem_image_recorder_store. Fails if something can't be stored or is being linked, and names
  /// the first eight graphs of it.
  ///
  /// Waits for `Limit` at most until nothing is being linked. That includes what is begun
  /// meanwhile, to which the code may refer: a host whose other threads go on linking keeps them
  /// from further look-ups. A call from within a link, such as a plugin's, would wait for itself,
  /// and gives no time.
  llvm::Error store(llvm::StringRef Path, const ImageKey &Key = {},
                    std::chrono::milliseconds Limit = {}) {
    std::unique_lock<std::mutex> Guard(Lock);
    detail::waitFor(LinksEnd, Guard, Limit, [&] { return UnderWay == 0; });
    auto Missing = refused();
    if (!Missing.empty()) {
      constexpr size_t MostNamed = 8;
      if (Missing.size() > MostNamed) {
        size_t More = Missing.size() - MostNamed;
        Missing.resize(MostNamed);
        Missing.push_back("and " + std::to_string(More) + " more; see notStorable()");
      }
      return llvm::make_error<MemoryError>(
          JITMEM_UNSUPPORTED, 0, "store image " + Path.str() + ": " + llvm::join(Missing, "; "));
    }
    auto File = detail::passed(Path);
    if (!File)
      return File.takeError();
    auto Passed = detail::passed(Key);
    if (!Passed)
      return Passed.takeError();
    detail::OwnedError E;
    jitmem_image_recorder_store(Recorder.get(), File->c_str(), Passed->data(), Passed->size(),
                                E.out());
    return E.take();
  }

  /// Which of what is linked now can't be stored, or not yet, and why.
  std::vector<std::string> notStorable() {
    std::lock_guard<std::mutex> Guard(Lock);
    return refused();
  }

  /// Has finalize actions that call a wrapper function stored with their graphs, from now on;
  /// without this a graph with such an action can't be stored. Later processes find the function by
  /// Symbol, a name as linkers have it. Its arguments have addresses inside the graph, or 0, at
  /// these bytes, and nothing else that differs between processes; behind the start of a range may
  /// be its end.
  void storeCallsOf(llvm::orc::ExecutorAddr Function, llvm::StringRef Symbol,
                    std::vector<size_t> Addresses) {
    std::lock_guard<std::mutex> Guard(Lock);
    Storable[Function.getValue()] = {Symbol.str(), std::move(Addresses)};
  }

private:
  friend class ImagePlugin;
  using Owner = const llvm::orc::MaterializationResponsibility *;

  struct Graph {
    std::string Name;
    bool IsLinked = false;
    uint64_t Id = 0; // 0: not recorded
    std::string Why = {};
  };
  using Place = std::list<Graph>::iterator;

  explicit ImageRecorder(jitmem_image_recorder *New) : Recorder(New) {}

  // A graph that refers to this one may be recorded before it.
  void begin(Owner Link, llvm::StringRef Name) {
    std::lock_guard<std::mutex> Guard(Lock);
    auto New = Graphs.insert(Graphs.end(), {detail::toName(Name)});
    ++UnderWay;
    auto [Known, IsNew] = Linking.try_emplace(Link, New);
    // A link that was dropped, and told nothing of that.
    if (!IsNew)
      drop(std::exchange(Known->second, New));
  }

  llvm::Error record(Owner Link, llvm::jitlink::LinkGraph &G) {
    detail::ImageGraph Read;
    std::lock_guard<std::mutex> Guard(Lock);
    auto Begun = Linking.find(Link);
    if (Begun == Linking.end())
      return llvm::make_error<MemoryError>(
          JITMEM_INVALID_ARGUMENT, 0,
          "record graph " + detail::toName(G.getName()) +
              " for an image: its link has failed, as the recorder was told, and goes on; tell "
              "plugins of a failure when it is one");
    auto Err = Read.read(G, Storable, CallsStart);
    if (!Err) {
      if (auto Id = Read.record(Recorder.get()))
        Begun->second->Id = *Id;
      else
        Err = Id.takeError();
    }
    Begun->second->Why = llvm::toString(std::move(Err)); // empty if there is none
    end(*Begun->second);
    return llvm::Error::success();
  }

  void emitted(Owner Link, llvm::orc::ResourceKey Key) {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Found = Linking.find(Link);
    if (Found == Linking.end())
      return;
    Emitted[Key].push_back(Found->second);
    Linking.erase(Found);
  }

  void failed(Owner Link) {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Found = Linking.find(Link);
    if (Found == Linking.end())
      return;
    drop(Found->second);
    Linking.erase(Found);
  }

  void remove(llvm::orc::ResourceKey Key) {
    std::lock_guard<std::mutex> Guard(Lock);
    for (auto Gone : take(Key))
      drop(Gone);
  }

  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Moved = take(From);
    if (Moved.empty())
      return;
    auto &All = Emitted[To];
    All.insert(All.end(), Moved.begin(), Moved.end());
  }

  std::vector<Place> take(llvm::orc::ResourceKey Key) {
    auto Found = Emitted.find(Key);
    if (Found == Emitted.end())
      return {};
    auto Taken = std::move(Found->second);
    Emitted.erase(Found);
    return Taken;
  }

  void drop(Place Gone) {
    end(*Gone);
    if (Gone->Id != 0)
      jitmem_image_recorder_forget(Recorder.get(), Gone->Id, nullptr);
    Graphs.erase(Gone);
  }

  // Its content stays as it is.
  void end(Graph &G) {
    if (!std::exchange(G.IsLinked, true) && --UnderWay == 0)
      LinksEnd.notify_all();
  }

  std::vector<std::string> refused() const {
    std::vector<std::string> All;
    for (auto &G : Graphs) {
      if (!G.IsLinked)
        All.push_back("graph " + G.Name +
                      " is not storable: it is being linked; store it behind that, or give store() "
                      "time for it");
      else if (!G.Why.empty())
        All.push_back("graph " + G.Name + " is not storable: " + G.Why);
    }
    return All;
  }

  std::mutex Lock;
  std::unique_ptr<jitmem_image_recorder, detail::FreeImageRecorder> Recorder;
  std::list<Graph> Graphs; // in the order in which their links began
  llvm::DenseMap<Owner, Place> Linking;
  llvm::DenseMap<llvm::orc::ResourceKey, std::vector<Place>> Emitted;
  size_t UnderWay = 0; // graphs that are not linked yet
  std::condition_variable LinksEnd;
  detail::StorableCalls Storable;
  uint64_t CallsStart = UINT64_C(1) << 63; // no program has memory there
};

/// Tells an ImageRecorder of what a layer links. It keeps calls and loads of what is outside of a
/// graph indirect, through the GOT. To be added to the layer behind all other plugins, whose
/// actions it is to see.
class ImagePlugin : public detail::ResourcePlugin {
public:
  explicit ImagePlugin(std::shared_ptr<ImageRecorder> R) : Recorder(std::move(R)) {}

  void modifyPassConfig(llvm::orc::MaterializationResponsibility &MR, llvm::jitlink::LinkGraph &G,
                        llvm::jitlink::PassConfiguration &Config) override {
    // Of LLJIT's platform each JITDylib has its own, in each session.
    if (llvm::StringRef(G.getName()).starts_with("__standard_lib"))
      return;
    Recorder->begin(&MR, G.getName());
    Config.PostAllocationPasses.push_back(keepIndirect);
    Config.PostFixupPasses.push_back(
        [this, Link = &MR](llvm::jitlink::LinkGraph &G) { return Recorder->record(Link, G); });
  }

  llvm::Error notifyEmitted(llvm::orc::MaterializationResponsibility &MR) override {
    auto Err =
        MR.withResourceKeyDo([&](llvm::orc::ResourceKey Key) { Recorder->emitted(&MR, Key); });
    // Its tracker was removed meanwhile: layers tell of that by no notifyFailed.
    if (Err)
      Recorder->failed(&MR);
    return Err;
  }
  llvm::Error notifyFailed(llvm::orc::MaterializationResponsibility &MR) override {
    Recorder->failed(&MR);
    return llvm::Error::success();
  }
  llvm::Error remove(llvm::orc::ResourceKey Key) override {
    Recorder->remove(Key);
    return llvm::Error::success();
  }
  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) override {
    Recorder->transfer(To, From);
  }

private:
  /// JITLink makes direct what is in reach here, and need not be in later processes.
  static llvm::Error keepIndirect(llvm::jitlink::LinkGraph &G) {
    namespace x86 = llvm::jitlink::x86_64;
    if (G.getTargetTriple().getArch() != llvm::Triple::x86_64)
      return llvm::Error::success();
    for (auto *B : G.blocks())
      for (auto &E : B->edges())
        switch (E.getKind()) {
        case x86::BranchPCRel32ToPtrJumpStubBypassable:
          E.setKind(x86::BranchPCRel32ToPtrJumpStub);
          break;
        case x86::PCRel32GOTLoadRelaxable:
        case x86::PCRel32GOTLoadREXRelaxable:
          E.setKind(x86::PCRel32);
          break;
        default:
          break;
        }
    return llvm::Error::success();
  }

  std::shared_ptr<ImageRecorder> Recorder;
};

/// Says by name which symbols of an image its JITDylib gets; a name is valid during the call. To
/// define a symbol and look it up takes LLVM longer than it takes to load what it names.
using ImageSymbolFilter = llvm::function_ref<bool(llvm::StringRef)>;

/// Links images into JITDylibs of a session, which must outlive it, as the manager must. The
/// session ends before it goes, as for LLVM's layers: the memory is given back then. Thread-safe.
class ImageLoader final : public detail::ResourceOwner {
public:
  ImageLoader(llvm::orc::ExecutionSession &ES, MemoryManager &MM) : ResourceOwner(ES), MM(MM) {
    ES.registerResourceManager(*this);
  }
  ~ImageLoader() override {
    assert(Allocations.empty() && "end the session before its ImageLoader goes");
    ES.deregisterResourceManager(*this);
  }

  /// Links an image and defines its symbols, as part of RT: its memory goes when that is removed.
  /// What it imports is looked up as by code of that JITDylib. Waits for look-ups and the executor.
  /// With a filter, which is called for each symbol before this returns, only some are defined.
  ///
  /// Fails as jitmem_image_open, _link and _finalize, and where a symbol is not found or is defined
  /// already; nothing is left of it then.
  llvm::Error add(const llvm::orc::ResourceTrackerSP &RT, llvm::StringRef Path,
                  const ImageKey &Key = {}, ImageSymbolFilter Defines = nullptr) {
    auto &JD = RT->getJITDylib();
    auto File = detail::passed(Path);
    if (!File)
      return File.takeError();
    auto Passed = detail::passed(Key);
    if (!Passed)
      return Passed.takeError();
    detail::OwnedError E;
    jitmem_image *Opened = nullptr;
    if (jitmem_image_open(File->c_str(), Passed->data(), Passed->size(), &Opened, E.out()) !=
        JITMEM_OK)
      return E.take();
    std::unique_ptr<jitmem_image, detail::FreeImage> Image(Opened);
    auto Addresses = lookUp(JD, *Image);
    if (!Addresses)
      return Addresses.takeError();
    const std::string Name = detail::toName(Path), DylibName = detail::toName(JD.getName());
    jitmem_image_link_request Request = {};
    Request.struct_size = sizeof(Request);
    Request.addresses = Addresses->data();
    Request.address_count = Addresses->size();
    Request.dylib = reinterpret_cast<uintptr_t>(static_cast<llvm::jitlink::JITLinkDylib *>(&JD));
    Request.name = Name.c_str();
    Request.dylib_name = DylibName.c_str();
    uint64_t Allocation = 0;
    if (jitmem_image_link(Image.get(), MM.handle(), &Request, E.out()) != JITMEM_OK ||
        jitmem_image_finalize(Image.get(), nullptr, 0, &Allocation, E.out()) != JITMEM_OK)
      return E.take();
    auto Symbols = exportsOf(*Image, Defines);
    if (!Symbols)
      return llvm::joinErrors(Symbols.takeError(), deallocate({Allocation}));
    // A tracker that is removed meanwhile takes symbols and memory with it, or neither is there.
    auto Err = ES.runSessionLocked([&]() -> llvm::Error {
      llvm::orc::ResourceKey Key = 0;
      if (auto Gone = RT->withResourceKeyDo([&](llvm::orc::ResourceKey RK) { Key = RK; }))
        return Gone;
      if (!Symbols->empty())
        if (auto Refused = JD.define(llvm::orc::absoluteSymbols(std::move(*Symbols)), RT))
          return Refused;
      std::lock_guard<std::mutex> Guard(Lock);
      Allocations[Key].push_back(Allocation);
      return llvm::Error::success();
    });
    if (Err)
      return llvm::joinErrors(std::move(Err), deallocate({Allocation}));
    return llvm::Error::success();
  }

  llvm::Error add(llvm::orc::JITDylib &JD, llvm::StringRef Path, const ImageKey &Key = {},
                  ImageSymbolFilter Defines = nullptr) {
    return add(JD.getDefaultResourceTracker(), Path, Key, Defines);
  }

private:
  llvm::Expected<std::vector<uint64_t>> lookUp(llvm::orc::JITDylib &JD, jitmem_image &Image) {
    size_t Count = 0;
    detail::OwnedError E;
    if (jitmem_image_imports(&Image, nullptr, 0, &Count, E.out()) != JITMEM_OK)
      return E.take();
    std::vector<const char *> Names(Count);
    std::vector<uint64_t> Addresses(Count);
    if (Count == 0)
      return Addresses;
    jitmem_image_imports(&Image, Names.data(), Count, &Count, nullptr);
    auto &ES = JD.getExecutionSession();
    std::vector<llvm::orc::SymbolStringPtr> Symbols;
    Symbols.reserve(Count);
    for (auto *Name : Names)
      Symbols.push_back(ES.intern(Name));
    llvm::orc::SymbolLookupSet Wanted{llvm::ArrayRef<llvm::orc::SymbolStringPtr>(Symbols)};
    llvm::orc::JITDylibSearchOrder Order;
    JD.withLinkOrderDo([&](const llvm::orc::JITDylibSearchOrder &O) { Order = O; });
    auto Found = ES.lookup(Order, std::move(Wanted));
    if (!Found)
      return Found.takeError();
    for (size_t I = 0; I != Count; ++I)
      Addresses[I] = (*Found)[Symbols[I]].getAddress().getValue();
    return Addresses;
  }

  llvm::Expected<llvm::orc::SymbolMap> exportsOf(jitmem_image &Image, ImageSymbolFilter Defines) {
    size_t Count = 0;
    detail::OwnedError E;
    if (jitmem_image_exports(&Image, nullptr, 0, &Count, E.out()) != JITMEM_OK)
      return E.take();
    std::vector<jitmem_image_export> Exports(Count);
    if (Count != 0)
      jitmem_image_exports(&Image, Exports.data(), Count, &Count, nullptr);
    llvm::orc::SymbolMap Symbols(Defines ? 0 : static_cast<unsigned>(Count));
    for (auto &One : Exports) {
      if (Defines && !Defines(One.symbol))
        continue;
      auto Raw = static_cast<llvm::JITSymbolFlags::UnderlyingType>(One.flags);
      auto Flags = static_cast<llvm::JITSymbolFlags::FlagNames>(Raw);
      llvm::orc::ExecutorSymbolDef Definition(llvm::orc::ExecutorAddr(One.address), Flags);
      auto [Known, IsNew] = Symbols.try_emplace(ES.intern(One.symbol), Definition);
      if (IsNew || Definition.getFlags().isWeak())
        continue;
      if (!Known->second.getFlags().isWeak())
        return llvm::make_error<llvm::StringError>(
            llvm::Twine("load an image into one JITDylib: two of its graphs define ") + One.symbol,
            llvm::inconvertibleErrorCode());
      Known->second = Definition;
    }
    return Symbols;
  }

  llvm::Error deallocate(const std::vector<uint64_t> &Gone) {
    if (Gone.empty())
      return llvm::Error::success();
    detail::OwnedError E;
    jitmem_manager_deallocate(MM.handle(), Gone.data(), Gone.size(), E.out());
    return E.take();
  }

  llvm::Error remove(llvm::orc::ResourceKey Key) override {
    std::vector<uint64_t> Gone;
    {
      std::lock_guard<std::mutex> Guard(Lock);
      auto Found = Allocations.find(Key);
      if (Found == Allocations.end())
        return llvm::Error::success();
      Gone = std::move(Found->second);
      Allocations.erase(Found);
    }
    return deallocate(Gone);
  }

  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) override {
    std::lock_guard<std::mutex> Guard(Lock);
    auto Found = Allocations.find(From);
    if (Found == Allocations.end())
      return;
    auto Moved = std::move(Found->second);
    Allocations.erase(Found);
    auto &All = Allocations[To];
    All.insert(All.end(), Moved.begin(), Moved.end());
  }

  MemoryManager &MM;
  std::mutex Lock;
  llvm::DenseMap<llvm::orc::ResourceKey, std::vector<uint64_t>> Allocations;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_IMAGE_HPP
