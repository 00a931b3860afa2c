// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The memory of LLVM's RuntimeDyld and MCJIT over jitmem, LLVM 14 or later.

#ifndef JITMEM_RTDYLD_HPP
#define JITMEM_RTDYLD_HPP

#include "../jitmem.h"

#include <llvm/ExecutionEngine/RTDyldMemoryManager.h>
#include <llvm/ExecutionEngine/RuntimeDyld.h>
#include <llvm/Support/Alignment.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace jitmem {

/// The memory of one object in RTDyldObjectLinkingLayer, or of all objects of an MCJIT engine:
///
///   RTDyldObjectLinkingLayer(ES, [=](auto &&...) {
///     return std::make_unique<jitmem::RTDyldMemoryManager>(Manager); })
///   EngineBuilder(...).setMCJITMemoryManager(
///       std::make_unique<jitmem::RTDyldMemoryManager>(Manager))
///
/// The manager's mapper is one of this process: two views (objects share pages, and finalize makes
/// no system call), mprotect, or in place. With another one every section is refused. Everything of
/// an object, and of a manager of one window, is in reach of each other. The manager is the host's
/// and must stay until the object's memory is gone. One thread at a time uses an object's memory.
///
/// LLVM ends the process where a section is refused. So it gets memory that is never run, and
/// finalizeMemory fails with the reason; MCJIT does not look at that answer and gives addresses out
/// all the same, so its hosts look at error(). The object of such a section is never finalized, and
/// what refers to it must not run; other objects are not affected.
class RTDyldMemoryManager : public llvm::RTDyldMemoryManager {
  template <typename C, typename First, typename Second, typename... Rest>
  static Second secondOf(void (C::*)(First, Second, Rest...));

public:
  /// `Dylib` is the number of what refers to its own code and data, all of which lies in one
  /// window: a JITDylib or an engine. With 0 that holds where the manager has one window, as it
  /// does by default.
  ///
  /// `ConstantsWithCode`: constants share pages with code and are executable like it. With two
  /// views the process has two mappings fewer for each chunk of constants.
  explicit RTDyldMemoryManager(jitmem_manager *Manager, uint64_t Dylib = 0,
                               bool ConstantsWithCode = false)
      : Manager(Manager), Dylib(Dylib), ConstantsWithCode(ConstantsWithCode) {
    jitmem_stats Stats = {};
    Stats.struct_size = sizeof(Stats);
    jitmem_error *E = nullptr;
    if (jitmem_manager_stats(Manager, &Stats, &E) != JITMEM_OK)
      Unfit = std::string("use a manager for RuntimeDyld: ") + jitmem_error_message(E);
    else if (Stats.mapper != JITMEM_MAPPER_TWO_VIEWS && Stats.mapper != JITMEM_MAPPER_MPROTECT &&
             Stats.mapper != JITMEM_MAPPER_IN_PLACE)
      Unfit = std::string("use a manager for RuntimeDyld: its mapper (") + Stats.mapper_name +
              ") has no memory of this process, which RuntimeDyld links for; make the manager over "
              "one of jitmem_mapper_in_process";
    jitmem_error_free(E);
    Copies = Stats.mapper == JITMEM_MAPPER_MPROTECT;
    Failure = Unfit;
  }
  RTDyldMemoryManager(const RTDyldMemoryManager &) = delete;
  RTDyldMemoryManager &operator=(const RTDyldMemoryManager &) = delete;

  ~RTDyldMemoryManager() override {
    RTDyldMemoryManager::deregisterEHFrames();
    for (const auto *Unfinished : {&Objects, &Refused})
      for (const Object &O : *Unfinished)
        for (uint64_t Handle : O.Handles)
          jitmem_manager_abandon(Manager, Handle, nullptr);
    if (!Finalized.empty())
      jitmem_manager_deallocate(Manager, Finalized.data(), Finalized.size(), nullptr);
  }

  /// Why a section was refused or could not be finalized, the first since takeError(); empty if
  /// all went well.
  const std::string &error() const { return Failure; }

  /// The same, which is forgotten: for hosts that go on with the engine.
  std::string takeError() { return std::exchange(Failure, {}); }

  bool needsToReserveAllocationSpace() override { return true; }

  /// What LLVM has for alignments: llvm::Align, or a number before LLVM 16.
  using Alignment = decltype(secondOf(&llvm::RTDyldMemoryManager::reserveAllocationSpace));
  /// One allocation has all sections of an object.
  void reserveAllocationSpace(uintptr_t CodeSize, Alignment CodeAlign, uintptr_t RODataSize,
                              Alignment RODataAlign, uintptr_t RWDataSize,
                              Alignment RWDataAlign) override {
    Part Parts[3];
    size_t Count = 0;
    auto Add = [&](uintptr_t Size, Alignment Align, uint32_t Protection) {
      if (Size != 0)
        Parts[Count++] = {Size, bytes(Align), Protection};
    };
    Add(CodeSize, CodeAlign, Code);
    Add(RODataSize, RODataAlign, Constants);
    Add(RWDataSize, RWDataAlign, Data);
    Objects.emplace_back();
    if (!Unfit.empty())
      return;
    // Without it each section is an allocation, and the one that is refused is named.
    jitmem_error_free(allocate(Parts, Count));
  }

  uint8_t *allocateCodeSection(uintptr_t Size, unsigned Align, unsigned,
                               llvm::StringRef Name) override {
    return section(Size, Align, Code, Name);
  }

  uint8_t *allocateDataSection(uintptr_t Size, unsigned Align, unsigned, llvm::StringRef Name,
                               bool IsReadOnly) override {
    return section(Size, Align, IsReadOnly ? Constants : Data, Name);
  }

  using llvm::RTDyldMemoryManager::notifyObjectLoaded;
  /// Tells the linker where sections run that are written elsewhere.
  void notifyObjectLoaded(llvm::RuntimeDyld &Linker, const llvm::object::ObjectFile &) override {
    for (const Section &S : Loaded)
      if (reinterpret_cast<uintptr_t>(S.Written) != S.Address)
        Linker.mapSectionAddress(S.Written, S.Address);
    Loaded.clear();
  }

  /// Frames are registered when they can be read where they run.
  void registerEHFrames(uint8_t *, uint64_t Address, size_t Size) override {
    Frames.push_back({reinterpret_cast<uint8_t *>(static_cast<uintptr_t>(Address)), Size});
  }

  void deregisterEHFrames() override {
    for (const EHFrame &F : EHFrames)
      deregisterEHFramesInProcess(F.Addr, F.Size);
    EHFrames.clear();
  }

  bool finalizeMemory(std::string *Message = nullptr) override {
    std::vector<Object> Usable;
    for (Object &O : std::exchange(Objects, {}))
      if (O.Refused)
        Refused.push_back(std::move(O));
      else if (finalize(O))
        Usable.push_back(std::move(O));
    for (const EHFrame &F : std::exchange(Frames, {})) {
      auto Holds = [&](const Object &O) { return O.holds(reinterpret_cast<uintptr_t>(F.Addr)); };
      // Others describe what was not finalized, or lie there.
      if (std::none_of(Usable.begin(), Usable.end(), Holds))
        continue;
      registerEHFramesInProcess(F.Addr, F.Size);
      EHFrames.push_back(F);
    }
    std::string Why = std::exchange(RoundFailure, {});
    if (Message && !Why.empty())
      *Message = Why;
    return !Why.empty();
  }

private:
  enum : uint32_t {
    Code = JITMEM_PROT_READ | JITMEM_PROT_EXEC,
    Constants = JITMEM_PROT_READ,
    Data = JITMEM_PROT_READ | JITMEM_PROT_WRITE
  };

  /// What an allocation is asked for.
  struct Part {
    uint64_t Size, Align;
    uint32_t Protection;
  };

  /// A part of a segment that sections are being put into.
  struct Block {
    uint32_t Protection;
    /// Where the linker writes, and where the manager wants its content.
    uint8_t *Written, *Content;
    uint64_t Address, Size, Used;
  };
  struct Section {
    uint8_t *Written;
    uint64_t Address;
  };

  /// What an object has since the last finalizeMemory.
  struct Object {
    std::vector<uint64_t> Handles;
    std::vector<Block> Blocks;
    /// Some section of it was.
    bool Refused = false;

    bool holds(uint64_t Address) const {
      return std::any_of(Blocks.begin(), Blocks.end(), [&](const Block &B) {
        return B.Address <= Address && Address - B.Address < B.Size;
      });
    }
  };

  static uint64_t bytes(uint64_t Align) { return Align ? Align : 1; }
  static uint64_t bytes(llvm::Align Align) { return Align.value(); }

  static uint64_t alignTo(uint64_t Offset, uint64_t Align) {
    return (Offset + Align - 1) & ~(Align - 1);
  }

  void fail(const std::string &Why) {
    if (RoundFailure.empty())
      RoundFailure = Why;
    if (Failure.empty())
      Failure = Why;
  }

  /// Whether all of an object is where it runs.
  bool finalize(const Object &O) {
    for (const Block &B : O.Blocks)
      if (B.Written != B.Content)
        std::memcpy(B.Content, B.Written, B.Used);
    bool All = true;
    for (uint64_t Handle : O.Handles) {
      jitmem_error *E = nullptr;
      if (jitmem_manager_finalize(Manager, Handle, nullptr, 0, &E) == JITMEM_OK) {
        Finalized.push_back(Handle);
      } else {
        fail(std::string("finalize: ") + jitmem_error_message(E));
        All = false;
      }
      jitmem_error_free(E);
    }
    return All;
  }

  Object &current() {
    if (Objects.empty())
      Objects.emplace_back();
    return Objects.back();
  }

  /// NULL, or why there is no such memory.
  jitmem_error *allocate(const Part *Parts, size_t Count) {
    if (Count == 0)
      return nullptr;
    jitmem_segment Segments[3] = {};
    // Where each part lies.
    struct {
      size_t Segment;
      uint64_t Offset;
    } Places[3];
    size_t Used = 0;
    for (size_t I = 0; I != Count; ++I) {
      const Part &P = Parts[I];
      uint32_t Protection = ConstantsWithCode && P.Protection == Constants ? Code : P.Protection;
      if (Used == 0 || Segments[Used - 1].protection != Protection)
        Segments[Used++].protection = Protection;
      jitmem_segment &S = Segments[Used - 1];
      Places[I] = {Used - 1, alignTo(S.content_size, P.Align)};
      S.content_size = Places[I].Offset + P.Size;
      S.alignment = std::max(S.alignment, P.Align);
    }
    jitmem_segment_memory Memory[3];
    uint64_t Handle;
    jitmem_error *E = nullptr;
    if (jitmem_manager_allocate(Manager, Segments, Used, Dylib, Memory, &Handle, &E) != JITMEM_OK)
      return E;
    Object &O = current();
    O.Handles.push_back(Handle);
    for (size_t I = 0; I != Count; ++I) {
      const jitmem_segment_memory &M = Memory[Places[I].Segment];
      uint64_t Address = M.address + Places[I].Offset;
      auto *Content = static_cast<uint8_t *>(M.working_memory) + Places[I].Offset;
      uint8_t *Written = Content;
      // The manager frees its buffers at finalize, and RuntimeDyld knows the sections of earlier
      // objects by where they were written.
      if (Copies && reinterpret_cast<uintptr_t>(Content) != Address)
        Written = keep(Parts[I].Size, Parts[I].Align);
      if (Written)
        O.Blocks.push_back({Parts[I].Protection, Written, Content, Address, Parts[I].Size, 0});
    }
    return nullptr;
  }

  uint8_t *place(uint64_t Size, uint64_t Align, uint32_t Protection) {
    for (Block &B : current().Blocks) {
      uint64_t Offset = alignTo(B.Address + B.Used, Align) - B.Address;
      if (B.Protection != Protection || Offset > B.Size || Size > B.Size - Offset)
        continue;
      B.Used = Offset + Size;
      Loaded.push_back({B.Written + Offset, B.Address + Offset});
      return Loaded.back().Written;
    }
    return nullptr;
  }

  uint8_t *section(uint64_t Size, uint64_t Align, uint32_t Protection, llvm::StringRef Name) {
    Align = bytes(Align);
    Size = std::max<uint64_t>(Size, 1); // each section has an address of its own
    if (uint8_t *Placed = place(Size, Align, Protection))
      return Placed;
    std::string Why = Unfit;
    if (Why.empty()) {
      Part Alone = {Size, Align, Protection};
      jitmem_error *E = allocate(&Alone, 1);
      if (!E)
        return place(Size, Align, Protection);
      Why = "section " + Name.str() + " of " + std::to_string(Size) +
            " bytes: " + jitmem_error_message(E);
      jitmem_error_free(E);
    }
    fail(Why);
    current().Refused = true;
    return keep(Size, Align);
  }

  /// Memory of the heap that stays until this object goes; NULL if there is none.
  uint8_t *keep(uint64_t Size, uint64_t Align) {
    void *Memory = nullptr;
    if (posix_memalign(&Memory, std::max<uint64_t>(Align, sizeof(void *)), Size) != 0)
      return nullptr;
    Kept.emplace_back(Memory, &std::free);
    return static_cast<uint8_t *>(Memory);
  }

  jitmem_manager *Manager;
  uint64_t Dylib;
  bool ConstantsWithCode;
  /// Its mapper copies content at finalize.
  bool Copies;
  /// Those since the last finalizeMemory.
  std::vector<Object> Objects;
  /// Those that are never finalized: their memory stays as it is, for their addresses are known.
  std::vector<Object> Refused;
  std::vector<uint64_t> Finalized;
  /// Since the last object was loaded.
  std::vector<Section> Loaded;
  /// To be registered by finalizeMemory.
  EHFrameInfos Frames;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> Kept;
  /// Why the manager can't be used; else empty.
  std::string Unfit;
  std::string Failure;
  /// The first since the last finalizeMemory.
  std::string RoundFailure;
};

} // namespace jitmem

#endif // JITMEM_RTDYLD_HPP
