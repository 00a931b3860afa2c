// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// LLVM's JITEventListeners, which RuntimeDyld's layers have, for JITLink's: gdb's and perf's work
// as before when a host changes its layer. For ELF objects linked in this process. Header only;
// link jitmem::orc and your LLVM.

#ifndef JITMEM_ORC_LISTENER_HPP
#define JITMEM_ORC_LISTENER_HPP

#include "orc_compat.hpp"

#include <llvm/ADT/DenseMap.h>
#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/StringMap.h>
#include <llvm/ExecutionEngine/JITEventListener.h>
#include <llvm/ExecutionEngine/JITLink/JITLink.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/RuntimeDyld.h>
#include <llvm/Object/ELFObjectFile.h>
#include <llvm/Support/MemoryBuffer.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace jitmem::orc {

namespace detail {

/// From one address to another; nothing if they are one.
struct AddressRange {
  uint64_t Start = 0, End = 0;
};

/// An object and where the linker has put its sections, as listeners want it: by section index, and
/// in the headers of a copy.
class LinkedObject : public llvm::RuntimeDyld::LoadedObjectInfo {
  using ELFT = llvm::object::ELF64LE;

public:
  /// Nothing of the base but its type is used: its functions that ask a RuntimeDyld are overridden.
  explicit LinkedObject(std::vector<uint64_t> Addresses, AddressRange Frames = {})
      : LoadedObjectInfo(reinterpret_cast<llvm::RuntimeDyldImpl &>(NoLinker), {}),
        Addresses(std::move(Addresses)), Frames(Frames) {}

  /// Where its `.eh_frame` sections are, which are one.
  AddressRange frames() const { return Frames; }

  std::unique_ptr<llvm::LoadedObjectInfo> clone() const override {
    return std::make_unique<LinkedObject>(*this);
  }

  uint64_t getSectionLoadAddress(const llvm::object::SectionRef &Section) const override {
    uint64_t Index = Section.getIndex();
    return Index < Addresses.size() ? Addresses[Index] : 0;
  }

  llvm::object::OwningBinary<llvm::object::ObjectFile>
  getObjectForDebug(const llvm::object::ObjectFile &Object) const override {
    llvm::StringRef Content = Object.getData();
    auto Copy =
        llvm::WritableMemoryBuffer::getNewUninitMemBuffer(Content.size(), Object.getFileName());
    if (!Copy)
      return {};
    std::copy(Content.begin(), Content.end(), Copy->getBufferStart());
    auto *Header = reinterpret_cast<ELFT::Ehdr *>(Copy->getBufferStart());
    auto *Sections = reinterpret_cast<ELFT::Shdr *>(Copy->getBufferStart() + Header->e_shoff);
    // What was not linked may have an address of its own in the object.
    for (const auto &Section : Object.sections())
      Sections[Section.getIndex()].sh_addr = getSectionLoadAddress(Section);
    std::unique_ptr<llvm::MemoryBuffer> Buffer = std::move(Copy);
    auto Debug = llvm::object::ObjectFile::createELFObjectFile(Buffer->getMemBufferRef());
    if (!Debug) {
      llvm::consumeError(Debug.takeError());
      return {};
    }
    return {std::move(*Debug), std::move(Buffer)};
  }

private:
  static inline char NoLinker = 0;
  std::vector<uint64_t> Addresses;
  AddressRange Frames;
};

} // namespace detail

/// Tells a listener of what an ObjectLinkingLayer links and removes. The listener must outlive the
/// layer: LLVM's own are static objects, made when they are first asked for, so a static LLJIT that
/// is older must be destroyed before the process exits. It is called in the threads that link, one
/// at a time. What is no ELF object for 64-bit little-endian machines is passed over.
class ListenerPlugin : public detail::ResourcePlugin {
  using Responsibility = llvm::orc::MaterializationResponsibility;
  using Object = llvm::object::ObjectFile;
  using ELFObject = llvm::object::ELF64LEObjectFile;
  /// What the listener was told of. Its address is the number: several plugins may tell one.
  using ToldObject = std::unique_ptr<char>;

public:
  explicit ListenerPlugin(llvm::JITEventListener &Listener) : Listener(Listener) {}

  /// Objects that are there when the layer ends were not removed one by one.
  ~ListenerPlugin() override {
    for (auto &Removed : Told)
      for (auto &Freed : Removed.second)
        Listener.notifyFreeingObject(numberOf(Freed));
  }

  void notifyMaterializing(Responsibility &MR, llvm::jitlink::LinkGraph &,
                           llvm::jitlink::JITLinkContext &, llvm::MemoryBufferRef Input) override {
    auto Parsed = Object::createELFObjectFile(Input);
    if (!Parsed) {
      llvm::consumeError(Parsed.takeError());
      return;
    }
    if (!llvm::isa<ELFObject>(**Parsed))
      return;
    // Who gave the object may take its memory back as soon as it is linked.
    auto Copy =
        llvm::MemoryBuffer::getMemBufferCopy(Input.getBuffer(), Input.getBufferIdentifier());
    std::lock_guard<std::mutex> Lock(M);
    Linking[&MR].Content = std::move(Copy);
  }

  void modifyPassConfig(Responsibility &MR, llvm::jitlink::LinkGraph &,
                        llvm::jitlink::PassConfiguration &Config) override {
    std::lock_guard<std::mutex> Lock(M);
    auto Found = Linking.find(&MR);
    if (Found == Linking.end())
      return;
    Config.PostAllocationPasses.push_back([this, &MR](llvm::jitlink::LinkGraph &G) {
      std::lock_guard<std::mutex> Lock(M);
      auto &L = Linking[&MR];
      for (auto &Section : llvm::make_filter_range(G.sections(), detail::stays))
        for (auto *Block : Section.blocks()) {
          uint64_t Address = addressOf(*Block);
          auto [Place, First] = L.Sections.try_emplace(Section.getName(), Address);
          if (!First && Address < Place->second)
            Place->second = Address;
          if (Section.getName() == ".eh_frame")
            L.Frames = {Place->second, std::max(L.Frames.End, Address + Block->getSize())};
        }
      for (auto *Symbol : G.defined_symbols())
        if (Symbol->hasName() && detail::stays(Symbol->getBlock().getSection()))
          L.Symbols.try_emplace(nameOf(Symbol->getName()), addressOf(*Symbol));
      return llvm::Error::success();
    });
  }

  llvm::Error notifyEmitted(Responsibility &MR) override {
    ToldObject One = std::make_unique<char>();
    {
      std::lock_guard<std::mutex> Lock(M);
      auto Found = Linking.find(&MR);
      if (Found == Linking.end())
        return llvm::Error::success();
      auto L = std::move(Found->second);
      Linking.erase(Found);
      auto Input = Object::createELFObjectFile(L.Content->getMemBufferRef());
      if (!Input)
        return Input.takeError();
      auto Addresses = L.addresses(llvm::cast<ELFObject>(**Input));
      if (!Addresses)
        return Addresses.takeError();
      Listener.notifyObjectLoaded(numberOf(One), **Input,
                                  detail::LinkedObject(std::move(*Addresses), L.Frames));
    }
    // Takes the session's lock, under which notifyTransferringResources waits for this one.
    auto Err = MR.withResourceKeyDo([&](llvm::orc::ResourceKey Key) {
      std::lock_guard<std::mutex> Lock(M);
      Told[Key].push_back(std::move(One));
    });
    if (Err) {
      std::lock_guard<std::mutex> Lock(M);
      Listener.notifyFreeingObject(numberOf(One));
    }
    return Err;
  }

  llvm::Error notifyFailed(Responsibility &MR) override {
    std::lock_guard<std::mutex> Lock(M);
    Linking.erase(&MR);
    return llvm::Error::success();
  }

  llvm::Error remove(llvm::orc::ResourceKey Key) override {
    std::lock_guard<std::mutex> Lock(M);
    for (auto &Freed : Told[Key])
      Listener.notifyFreeingObject(numberOf(Freed));
    Told.erase(Key);
    return llvm::Error::success();
  }

  void transfer(llvm::orc::ResourceKey To, llvm::orc::ResourceKey From) override {
    std::lock_guard<std::mutex> Lock(M);
    auto Moved = std::move(Told[From]);
    Told.erase(From);
    auto &There = Told[To];
    std::move(Moved.begin(), Moved.end(), std::back_inserter(There));
  }

private:
  /// An object between being taken up and being linked.
  struct Linked {
    std::unique_ptr<llvm::MemoryBuffer> Content;
    llvm::StringMap<uint64_t> Sections, Symbols;
    detail::AddressRange Frames;

    /// Where each section of the object is; 0: nowhere. Sections of one name are one in the graph:
    /// there a symbol says where each is.
    llvm::Expected<std::vector<uint64_t>> addresses(const ELFObject &Object) const {
      std::vector<uint64_t> Addresses;
      llvm::StringMap<unsigned> Count;
      for (auto &Section : Object.sections()) {
        auto Name = Section.getName();
        if (!Name)
          return Name.takeError();
        ++Count[*Name];
        auto Found = Sections.find(*Name);
        if (Section.getIndex() >= Addresses.size())
          Addresses.resize(Section.getIndex() + 1);
        if (Found != Sections.end())
          Addresses[Section.getIndex()] = Found->second;
      }
      for (auto &Section : Object.sections())
        if (Count[llvm::cantFail(Section.getName())] > 1)
          Addresses[Section.getIndex()] = 0;
      for (auto &Symbol : Object.symbols()) {
        auto Name = Symbol.getName();
        if (!Name)
          return Name.takeError();
        auto Section = Symbol.getSection();
        if (!Section)
          return Section.takeError();
        if (*Section == Object.section_end())
          continue;
        auto In = (*Section)->getName();
        if (!In)
          return In.takeError();
        auto Found = Symbols.find(*Name);
        if (Found == Symbols.end() || Count[*In] < 2)
          continue;
        auto Offset = Symbol.getValue();
        if (!Offset)
          return Offset.takeError();
        Addresses[(*Section)->getIndex()] = Found->second - *Offset;
      }
      return Addresses;
    }
  };

  static llvm::JITEventListener::ObjectKey numberOf(const ToldObject &Object) {
    return static_cast<uint64_t>(reinterpret_cast<uintptr_t>(Object.get()));
  }

  template <typename T> static uint64_t addressOf(const T &Of) {
    return Of.getAddress().getValue();
  }

  /// Interned since LLVM 20.
  static llvm::StringRef nameOf(const llvm::orc::SymbolStringPtr &Name) { return *Name; }
  static llvm::StringRef nameOf(llvm::StringRef Name) { return Name; }

  llvm::JITEventListener &Listener;
  std::mutex M;
  llvm::DenseMap<Responsibility *, Linked> Linking;
  llvm::DenseMap<llvm::orc::ResourceKey, std::vector<ToldObject>> Told;
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_LISTENER_HPP
