// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What differs between LLVM versions, in one place. Hosts include <jitmem/orc.hpp>.

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
#if LLVM_VERSION_MAJOR >= 16
#include <llvm/ExecutionEngine/Orc/Shared/MemoryFlags.h>
#else
#include <llvm/ExecutionEngine/JITLink/MemoryFlags.h>
#endif
#if LLVM_VERSION_MAJOR >= 21 && __has_include(<llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>)
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#endif

#if LLVM_VERSION_MAJOR > 22
#include <llvm/ExecutionEngine/Orc/DylibManager.h>
#endif

#include <cstring>
#include <string>

namespace jitmem::orc::detail {

#if LLVM_VERSION_MAJOR >= 16
using llvm::orc::AllocGroup;
using llvm::orc::MemProt;
#else
using llvm::jitlink::AllocGroup;
using llvm::jitlink::MemProt;
#endif

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

/// The protection and lifetime of a section.
inline AllocGroup groupOf(const llvm::jitlink::Section &Section) {
  return {Section.getMemProt(), lifetimeOf(Section, 0)};
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
/// calls back is the object itself, and a remote executor's is an object of another process.
inline bool isThisProcess(llvm::orc::ExecutorProcessControl &EPC) {
  const auto &Dispatch = EPC.getJITDispatchInfo();
  return Dispatch.JITDispatchContext == llvm::orc::ExecutorAddr::fromPtr(&EPC);
}
#endif

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
  auto One = Dylibs.lookupSymbols(*Library, Names);
  if (!One)
    return One.takeError();
  auto Found = std::make_unique<std::vector<llvm::orc::tpctypes::LookupResult>>(1, std::move(*One));
#else
  auto Found = Dylibs.lookupSymbols({{*Library, Names}});
  if (!Found)
    return Found.takeError();
#endif
  // The executor decides what it answers, so an answer without the symbol is no surprise.
  auto Missing = [&] {
    return llvm::createStringError(llvm::inconvertibleErrorCode(),
                                   "the executor's answer has no address of " + std::string(Name));
  };
  if (Found->size() != 1 || Found->front().size() != 1)
    return Missing();
  const auto &Symbol = Found->front().front();
#if LLVM_VERSION_MAJOR >= 21
  if (!Symbol)
    return Missing();
  return Symbol->getAddress();
#elif LLVM_VERSION_MAJOR >= 18
  return Symbol.getAddress();
#else
  return llvm::orc::ExecutorAddr(Symbol);
#endif
}

/// Whether LLJIT links by JITLink where the host chooses nothing; before, by RuntimeDyld for ELF on
/// x86-64.
constexpr bool JITLinkIsTheDefault = LLVM_VERSION_MAJOR >= 17;

/// Destroys a layer that is not used after all. Those of early releases stay registered with their
/// session, so they are left to that.
template <typename LayerT> void discard(std::unique_ptr<LayerT> Layer) {
  if (LLVM_VERSION_MAJOR < 17)
    (void)Layer.release();
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
  auto EPC = EPCT::Create(nullptr, nullptr, std::move(*MM));
  if (!EPC)
    return EPC.takeError();
  Builder.setExecutorProcessControl(std::move(*EPC));
  return llvm::Error::success();
}

} // namespace jitmem::orc::detail

#endif // JITMEM_ORC_COMPAT_HPP
