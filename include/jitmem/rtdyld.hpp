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
/// no system call), mprotect, or in place. Everything of an object, and of a manager of one window,
/// is in reach of each other. The manager is the host's and must stay until the object's memory is
/// gone. One thread at a time uses an object's memory.
///
/// LLVM ends the process where a section is refused. So it gets memory that is never run, and
/// finalizeMemory fails with the reason; MCJIT does not look at that answer, so its hosts look at
/// error().
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
    Copies = jitmem_manager_stats(Manager, &Stats, nullptr) == JITMEM_OK &&
             Stats.mapper == JITMEM_MAPPER_MPROTECT;
  }
  RTDyldMemoryManager(const RTDyldMemoryManager &) = delete;
  RTDyldMemoryManager &operator=(const RTDyldMemoryManager &) = delete;

  ~RTDyldMemoryManager() override {
    RTDyldMemoryManager::deregisterEHFrames();
    for (uint64_t Handle : Pending)
      jitmem_manager_abandon(Manager, Handle, nullptr);
    if (!Finalized.empty())
      jitmem_manager_deallocate(Manager, Finalized.data(), Finalized.size(), nullptr);
  }

  /// Why sections were refused or could not be finalized; empty if all went well.
  const std::string &error() const { return Failure; }

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
    for (const Block &B : std::exchange(Blocks, {}))
      if (B.Written != B.Content)
        std::memcpy(B.Content, B.Written, B.Used);
    for (uint64_t Handle : std::exchange(Pending, {})) {
      jitmem_error *E = nullptr;
      if (jitmem_manager_finalize(Manager, Handle, nullptr, 0, &E) == JITMEM_OK)
        Finalized.push_back(Handle);
      else
        fail(E, "finalize");
    }
    if (!Failure.empty()) {
      // What was not finalized has no frames.
      Frames.clear();
      if (Message)
        *Message = Failure;
      return true;
    }
    for (const EHFrame &F : std::exchange(Frames, {})) {
      registerEHFramesInProcess(F.Addr, F.Size);
      EHFrames.push_back(F);
    }
    return false;
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

  static uint64_t bytes(uint64_t Align) { return Align ? Align : 1; }
  static uint64_t bytes(llvm::Align Align) { return Align.value(); }

  static uint64_t alignTo(uint64_t Offset, uint64_t Align) {
    return (Offset + Align - 1) & ~(Align - 1);
  }

  void fail(jitmem_error *E, const std::string &What) {
    if (Failure.empty())
      Failure = What + ": " + jitmem_error_message(E);
    jitmem_error_free(E);
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
    Pending.push_back(Handle);
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
        Blocks.push_back({Parts[I].Protection, Written, Content, Address, Parts[I].Size, 0});
    }
    return nullptr;
  }

  uint8_t *place(uint64_t Size, uint64_t Align, uint32_t Protection) {
    for (Block &B : Blocks) {
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
    Part Alone = {Size, Align, Protection};
    jitmem_error *E = allocate(&Alone, 1);
    if (!E)
      return place(Size, Align, Protection);
    fail(E, "section " + Name.str() + " of " + std::to_string(Size) + " bytes");
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
  std::vector<uint64_t> Pending;
  std::vector<uint64_t> Finalized;
  std::vector<Block> Blocks;
  /// Since the last object was loaded.
  std::vector<Section> Loaded;
  /// To be registered by finalizeMemory.
  EHFrameInfos Frames;
  std::vector<std::unique_ptr<void, decltype(&std::free)>> Kept;
  std::string Failure;
};

} // namespace jitmem

#endif // JITMEM_RTDYLD_HPP
