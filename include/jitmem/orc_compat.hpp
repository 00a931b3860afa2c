// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs between LLVM versions, in one place: no other header asks for the version. Hosts
// include <jitmem/orc.hpp>.

#ifndef JITMEM_ORC_COMPAT_HPP
#define JITMEM_ORC_COMPAT_HPP

#include <llvm/Config/llvm-config.h>

#if LLVM_VERSION_MAJOR < 14
#error "jitmem's ORC adapter needs LLVM 14 or later"
#elif LLVM_VERSION_MAJOR > 22
#pragma message("jitmem's ORC adapter was tested with LLVM 14 to 22, and this is a later one")
#endif

#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/Orc/Core.h>
#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#if LLVM_VERSION_MAJOR >= 16
#include <llvm/ExecutionEngine/Orc/Shared/MemoryFlags.h>
#else
#include <llvm/ExecutionEngine/JITLink/MemoryFlags.h>
#endif
#if LLVM_VERSION_MAJOR >= 21
#include <llvm/ExecutionEngine/Orc/EHFrameRegistrationPlugin.h>
#include <llvm/ExecutionEngine/Orc/TargetProcess/RegisterEHFrames.h>
#else
#include <llvm/ExecutionEngine/JITLink/EHFrameSupport.h>
#include <llvm/ExecutionEngine/Orc/EPCEHFrameRegistrar.h>
#endif
#if LLVM_VERSION_MAJOR >= 21 && __has_include(<llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>)
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#endif
#if __has_include(<llvm/ExecutionEngine/Orc/AbsoluteSymbols.h>)
#include <llvm/ExecutionEngine/Orc/AbsoluteSymbols.h>
#endif
#if LLVM_VERSION_MAJOR > 22
#include <llvm/ExecutionEngine/Orc/DylibManager.h>
#endif

#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace jitmem::orc::detail {

#if LLVM_VERSION_MAJOR >= 16
using llvm::orc::AllocGroup;
using llvm::orc::MemProt;
#else
using llvm::jitlink::AllocGroup;
using llvm::jitlink::MemProt;
#endif

/// Wrapper functions in the executor that each take an eh-frame section's range.
struct FrameFunctions {
  llvm::orc::ExecutorAddr Register, Deregister;
};

/// The lifetime of a section or of a group of segments; the accessor has had three names, two of
/// them in releases between 16 and 19. An argument `0` prefers the newest.
template <typename T> auto lifetimeOf(const T &Of, int) -> decltype(Of.getMemLifetime()) {
  return Of.getMemLifetime();
}
template <typename T> auto lifetimeOf(const T &Of, long) -> decltype(Of.getMemLifetimePolicy()) {
  return Of.getMemLifetimePolicy();
}
template <typename T> auto lifetimeOf(const T &Of, double) -> decltype(Of.getMemDeallocPolicy()) {
  return Of.getMemDeallocPolicy();
}

/// Whether the memory of a section or group is given back once its finalize actions have run.
template <typename T> bool endsAtFinalize(const T &Of) {
  auto Lifetime = lifetimeOf(Of, 0);
  return Lifetime == decltype(Lifetime)::Finalize;
}

/// Whether a section takes memory: since LLVM 17 one may take none.
inline bool isAllocated(const llvm::jitlink::Section &Section) {
  auto Lifetime = lifetimeOf(Section, 0);
  return Lifetime == decltype(Lifetime)::Standard || endsAtFinalize(Section);
}

/// Whether a section has memory until its allocation goes.
inline bool stays(const llvm::jitlink::Section &Section) {
  return isAllocated(Section) && !endsAtFinalize(Section);
}

/// Where the frames of functions are described.
inline bool describesFrames(const llvm::jitlink::Section &Section) {
  return Section.getName() == ".eh_frame";
}

/// The protection and lifetime of a section. Before LLVM 17 JITLink has everything but code
/// writable. An index of frames names none that code may change, and no program writes to them.
inline AllocGroup groupOf(const llvm::jitlink::Section &Section) {
  bool IsConstant = LLVM_VERSION_MAJOR < 17 && describesFrames(Section);
  return {IsConstant ? MemProt::Read : Section.getMemProt(), lifetimeOf(Section, 0)};
}

#if LLVM_VERSION_MAJOR > 22
/// The virtual tables of the EPCs whose executor is this process. Weak: where one is not linked,
/// there is no such EPC.
extern const char
    SelfExecutorProcessControlTable[] __asm__("_ZTVN4llvm3orc26SelfExecutorProcessControlE")
        __attribute__((weak));
extern const char InProcessEPCTable[] __asm__("_ZTVN4llvm3orc12InProcessEPCE")
    __attribute__((weak));

/// Whether EPC's executor is this process. EPC classes carry no kind of their own, and LLVM may be
/// built without RTTI; so the class is told by its virtual table. Objects refer to what is behind
/// the offset and the type information (Itanium C++ ABI, 2.5.2).
inline bool isThisProcess(llvm::orc::ExecutorProcessControl &EPC) {
  const char *Table;
  memcpy(&Table, static_cast<const void *>(&EPC), sizeof(Table));
  for (const char *Own : {SelfExecutorProcessControlTable, InProcessEPCTable})
    if (Own && Table == Own + 2 * sizeof(void *))
      return true;
  return false;
}
#else
/// Whether EPC's executor is this process. EPC classes carry no kind of their own, and LLVM may be
/// built without RTTI; but the context that a SelfExecutorProcessControl gives its executor for
/// calls back is the object itself. A remote executor's is an object of another process, which may
/// have the same address there if one was forked from the other; only it is published by its name.
inline bool isThisProcess(llvm::orc::ExecutorProcessControl &EPC) {
  const auto &Dispatch = EPC.getJITDispatchInfo();
  return Dispatch.JITDispatchContext == llvm::orc::ExecutorAddr::fromPtr(&EPC) &&
         EPC.getBootstrapSymbolsMap().count("__llvm_orc_SimpleRemoteEPC_dispatch_ctx") == 0;
}
#endif

/// The address in what a look-up in a library answers: that itself, a definition, or what may be
/// one of them; 0: there is none.
inline llvm::orc::ExecutorAddr addressOf(uint64_t Address) {
  return llvm::orc::ExecutorAddr(Address);
}
inline llvm::orc::ExecutorAddr addressOf(llvm::orc::ExecutorAddr Address) { return Address; }
template <typename T> auto addressOf(const T &Definition) -> decltype(Definition.getAddress()) {
  return Definition.getAddress();
}
template <typename T> llvm::orc::ExecutorAddr addressOf(const std::optional<T> &Found) {
  return Found ? addressOf(*Found) : llvm::orc::ExecutorAddr();
}

/// Loads a library into the executor and looks a symbol up in it.
inline llvm::Expected<llvm::orc::ExecutorAddr>
findInLibrary(llvm::orc::ExecutorProcessControl &EPC, const std::string &Path, const char *Name) {
#if LLVM_VERSION_MAJOR > 22
  auto Manager = EPC.createDefaultDylibMgr();
  if (!Manager)
    return Manager.takeError();
  auto &Dylibs = **Manager;
#elif LLVM_VERSION_MAJOR >= 21
  auto &Dylibs = EPC.getDylibMgr();
#else
  auto &Dylibs = EPC;
#endif
  auto Library = Dylibs.loadDylib(Path.c_str());
  if (!Library)
    return Library.takeError();
  llvm::orc::SymbolLookupSet Names(EPC.intern(Name));
#if LLVM_VERSION_MAJOR > 22
  auto Found = Dylibs.lookupSymbols(*Library, Names);
  if (!Found)
    return Found.takeError();
  const auto &Symbols = *Found;
#else
  auto Found = Dylibs.lookupSymbols({{*Library, Names}});
  if (!Found)
    return Found.takeError();
  using LibraryT = std::decay_t<decltype(Found->front())>;
  const auto &Symbols = Found->size() == 1 ? Found->front() : LibraryT();
#endif
  // The executor decides what it answers, so an answer without the symbol is no surprise.
  auto Address = Symbols.size() == 1 ? addressOf(Symbols.front()) : llvm::orc::ExecutorAddr();
  if (!Address)
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   "the executor's answer has no address of " + std::string(Name));
  return Address;
}

/// The release of LLVM that the host is compiled against.
constexpr const char *LLVMRelease = LLVM_VERSION_STRING;
/// Its first number.
constexpr unsigned LLVMMajor = LLVM_VERSION_MAJOR;

/// Whether LLJIT links by JITLink where the host chooses nothing; before, by RuntimeDyld for ELF on
/// x86-64.
constexpr bool JITLinkIsTheDefault = LLVM_VERSION_MAJOR >= 17;

/// Destroys a layer that is not used after all. Those of early releases stay registered with their
/// session, so they are left to that.
template <typename LayerT> void discard(std::unique_ptr<LayerT> Layer) {
  if (LLVM_VERSION_MAJOR < 17)
    (void)Layer.release();
}

/// Has the executor's unwinder know the frames of what a layer links; see orc_unwind.hpp.
inline llvm::Error addFrames(llvm::orc::ObjectLinkingLayer &Layer, llvm::orc::ExecutionSession &ES);

/// Has LLVM's plugin register them; before LLVM 21 that is a call for each object.
inline llvm::Error addLlvmFrames(llvm::orc::ObjectLinkingLayer &Layer,
                                 llvm::orc::ExecutionSession &ES) {
#if LLVM_VERSION_MAJOR >= 21
  auto Frames = llvm::orc::EHFrameRegistrationPlugin::Create(ES);
  if (!Frames)
    return Frames.takeError();
  Layer.addPlugin(std::move(*Frames));
#else
  std::unique_ptr<llvm::jitlink::EHFrameRegistrar> Registrar;
  if (isThisProcess(ES.getExecutorProcessControl())) {
    // Without a look-up of names, which fails where libLLVM was loaded with RTLD_LOCAL.
    Registrar = std::make_unique<llvm::jitlink::InProcessEHFrameRegistrar>();
  } else {
    auto Remote = llvm::orc::EPCEHFrameRegistrar::Create(ES);
    if (!Remote)
      return Remote.takeError();
    Registrar = std::move(*Remote);
  }
  Layer.addPlugin(std::make_unique<llvm::orc::EHFrameRegistrationPlugin>(ES, std::move(Registrar)));
#endif
  return llvm::Error::success();
}

/// The actions of LLVM's plugin in this process; null before there were any.
#if LLVM_VERSION_MAJOR >= 21
inline FrameFunctions llvmFrameFunctions() {
  using llvm::orc::ExecutorAddr;
  return {ExecutorAddr::fromPtr(&llvm_orc_registerEHFrameSectionAllocAction),
          ExecutorAddr::fromPtr(&llvm_orc_deregisterEHFrameSectionAllocAction)};
}
#else
inline FrameFunctions llvmFrameFunctions() { return {}; }
#endif

/// Makes a layer of `Rest`: a memory manager, or nothing that counts, as the triple that creators
/// were given before LLVM 21; then that of the session's EPC, which has one until LLVM 22.
template <typename LayerT = llvm::orc::ObjectLinkingLayer, typename... RestT>
llvm::Expected<std::unique_ptr<LayerT>> makeLayer(llvm::orc::ExecutionSession &ES,
                                                  RestT &&...Rest) {
  std::unique_ptr<LayerT> Layer;
  if constexpr (std::is_constructible_v<LayerT, llvm::orc::ExecutionSession &, RestT...>)
    Layer = std::make_unique<LayerT>(ES, std::forward<RestT>(Rest)...);
  else if constexpr (std::is_constructible_v<LayerT, llvm::orc::ExecutionSession &>)
    Layer = std::make_unique<LayerT>(ES);
  else
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   "make an object layer: this LLVM's EPCs have no memory "
                                   "manager; pass the one that the layer is to use");
  if (auto Err = addFrames(*Layer, ES))
    return Err;
  return Layer;
}

/// A plugin that is told which resources go, and which are another key's now.
class ResourcePlugin : public llvm::orc::ObjectLinkingLayer::Plugin {
public:
  virtual llvm::Error remove(llvm::orc::ResourceKey Key) = 0;
  virtual void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) = 0;

#if LLVM_VERSION_MAJOR >= 16
  llvm::Error notifyRemovingResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey Key) final {
    return remove(Key);
  }
  void notifyTransferringResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey To,
                                   llvm::orc::ResourceKey From) final {
    transfer(To, From);
  }
#else
  llvm::Error notifyRemovingResources(llvm::orc::ResourceKey Key) final { return remove(Key); }
  void notifyTransferringResources(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) final {
    transfer(To, From);
  }
#endif
};

#if LLVM_VERSION_MAJOR >= 19
/// The name of a symbol; empty: it has none.
inline std::string nameOf(const llvm::jitlink::Symbol &Sym) {
  if (!Sym.hasName())
    return {};
#if LLVM_VERSION_MAJOR >= 20
  return (*Sym.getName()).str();
#else
  return Sym.getName().str();
#endif
}

/// Owns what belongs to resource keys of a session. The class that derives from it registers it
/// with the session once it is made, and deregisters it before it goes.
class ResourceOwner : public llvm::orc::ResourceManager {
public:
  explicit ResourceOwner(llvm::orc::ExecutionSession &ES) : ES(ES) {}
  ResourceOwner(const ResourceOwner &) = delete;
  ResourceOwner &operator=(const ResourceOwner &) = delete;

  virtual llvm::Error remove(llvm::orc::ResourceKey Key) = 0;
  virtual void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) = 0;

  llvm::Error handleRemoveResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey Key) final {
    return remove(Key);
  }
  void handleTransferResources(llvm::orc::JITDylib &, llvm::orc::ResourceKey To,
                               llvm::orc::ResourceKey From) final {
    transfer(To, From);
  }

protected:
  llvm::orc::ExecutionSession &ES;
};
#endif

/// The dispatcher that an LLJIT without an EPC of its host's would have. With an EPC a builder
/// refuses a number of threads and compiles for several, so that is settled here. An argument `0`
/// prefers builders that ask whether there are several.
template <typename BuilderT>
auto takeDispatcher(BuilderT &Builder, int)
    -> decltype(*Builder.SupportConcurrentCompilation,
                std::unique_ptr<llvm::orc::TaskDispatcher>()) {
  auto &Concurrent = Builder.SupportConcurrentCompilation;
  if (!Concurrent)
    Concurrent = Builder.NumCompileThreads != 0;
  if (!*Concurrent)
    return std::make_unique<llvm::orc::InPlaceTaskDispatcher>();
  auto Threads = std::exchange(Builder.NumCompileThreads, 0);
  return std::make_unique<llvm::orc::DynamicThreadPoolTaskDispatcher>(
      Threads ? std::optional<size_t>(Threads) : std::nullopt);
}
template <typename BuilderT>
std::unique_ptr<llvm::orc::TaskDispatcher> takeDispatcher(BuilderT &, long) {
  return nullptr;
}

/// Gives an LLJIT's builder the memory manager that Create makes: after LLVM 22 what makes it,
/// before an EPC that has it. An argument `0` prefers the former.
template <typename BuilderT, typename CreateT>
auto giveManager(BuilderT &Builder, CreateT Create, int)
    -> decltype(Builder.setMemoryManagerCreator(nullptr), llvm::Error(llvm::Error::success())) {
  Builder.setMemoryManagerCreator(
      [Create](llvm::orc::ExecutionSession &)
          -> llvm::Expected<std::unique_ptr<llvm::jitlink::JITLinkMemoryManager>> {
        return Create();
      });
  return llvm::Error::success();
}
template <typename BuilderT, typename CreateT,
          typename EPCT = llvm::orc::SelfExecutorProcessControl>
auto giveManager(BuilderT &Builder, CreateT Create, long)
    -> decltype(EPCT::Create(nullptr, nullptr, nullptr), llvm::Error(llvm::Error::success())) {
  auto MM = Create();
  if (!MM)
    return MM.takeError();
  auto EPC = EPCT::Create(nullptr, takeDispatcher(Builder, 0), std::move(*MM));
  if (!EPC)
    return EPC.takeError();
  Builder.setExecutorProcessControl(std::move(*EPC));
  return llvm::Error::success();
}

/// Connects an LLJIT's builder to an executor over two descriptors, and has its layers made over
/// the memory manager that Create makes for that. An argument `0` prefers the form after LLVM 22.
template <typename EPCT, typename TransportT, typename BuilderT, typename CreateT>
auto connect(BuilderT &Builder, CreateT Create, int In, int Out, int)
    -> decltype(Builder.setMemoryManagerCreator(nullptr), llvm::Error(llvm::Error::success())) {
  auto EPC = EPCT::template Create<TransportT>(
      std::make_unique<llvm::orc::DynamicThreadPoolTaskDispatcher>(std::nullopt), In, Out);
  if (!EPC)
    return EPC.takeError();
  auto MM = Create(**EPC);
  if (!MM)
    return llvm::joinErrors(MM.takeError(), (*EPC)->disconnect());
  Builder.setExecutorProcessControl(std::move(*EPC));
  auto Made = std::make_shared<std::decay_t<decltype(*MM)>>(std::move(*MM));
  if (auto Err = giveManager(
          Builder,
          [Made]() -> llvm::Expected<std::decay_t<decltype(*MM)>> { return std::move(*Made); }, 0))
    return Err;
  Builder.setObjectLinkingLayerCreator(
      [](llvm::orc::ExecutionSession &ES, llvm::jitlink::JITLinkMemoryManager &MM) {
        return makeLayer(ES, MM);
      });
  return llvm::Error::success();
}
template <typename EPCT, typename TransportT, typename BuilderT, typename CreateT,
          typename SetupT = typename EPCT::Setup>
llvm::Error connect(BuilderT &Builder, CreateT Create, int In, int Out, long) {
  SetupT Setup;
  Setup.CreateMemoryManager = Create;
#if LLVM_VERSION_MAJOR >= 17
  auto Dispatcher = std::make_unique<llvm::orc::DynamicThreadPoolTaskDispatcher>(std::nullopt);
#else
  auto Dispatcher = std::make_unique<llvm::orc::DynamicThreadPoolTaskDispatcher>();
#endif
  auto EPC = EPCT::template Create<TransportT>(std::move(Dispatcher), std::move(Setup), In, Out);
  if (!EPC)
    return EPC.takeError();
  Builder.setExecutorProcessControl(std::move(*EPC));
  Builder.setObjectLinkingLayerCreator(
      [](llvm::orc::ExecutionSession &ES, auto &&...) { return makeLayer(ES); });
  return llvm::Error::success();
}

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_COMPAT_HPP
