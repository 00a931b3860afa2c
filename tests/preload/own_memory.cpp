// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A host of RuntimeDyld whose memory is LLVM's SectionMemoryManager (plain), that over a mapper of
// the host's own (mapper), or a class of the host's own (derived); or a host of JITLink with the
// memory that LLJIT gives it (jitlink), or that the host has taken from an EPC before (early).
// Prints what linked code answers, and how often the host's own code was called for memory.

#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#if __has_include(<llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>)
#include <llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h>
#endif
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/IR/LLVMContext.h>
#include <llvm/IR/Module.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <cstring>
#include <memory>

using namespace llvm;
using namespace llvm::orc;

namespace {

int Calls = 0;

class OwnMapper : public SectionMemoryManager::MemoryMapper {
public:
  sys::MemoryBlock allocateMappedMemory(SectionMemoryManager::AllocationPurpose, size_t Size,
                                        const sys::MemoryBlock *Near, unsigned Flags,
                                        std::error_code &Error) override {
    ++Calls;
    return sys::Memory::allocateMappedMemory(Size, Near, Flags, Error);
  }
  std::error_code protectMappedMemory(const sys::MemoryBlock &Block, unsigned Flags) override {
    return sys::Memory::protectMappedMemory(Block, Flags);
  }
  std::error_code releaseMappedMemory(sys::MemoryBlock &Block) override {
    return sys::Memory::releaseMappedMemory(Block);
  }
};

class OwnManager : public SectionMemoryManager {
public:
  uint8_t *allocateCodeSection(uintptr_t Size, unsigned Alignment, unsigned Number,
                               StringRef Name) override {
    ++Calls;
    return SectionMemoryManager::allocateCodeSection(Size, Alignment, Number, Name);
  }
};

std::unique_ptr<SectionMemoryManager> makeManager(const char *Kind) {
  static OwnMapper Mapper;
  if (!std::strcmp(Kind, "mapper"))
    return std::make_unique<SectionMemoryManager>(&Mapper);
  if (!std::strcmp(Kind, "derived"))
    return std::make_unique<OwnManager>();
  return std::make_unique<SectionMemoryManager>();
}

#if LLVM_VERSION_MAJOR >= 19
void useEarly(LLJITBuilder &Builder, std::unique_ptr<ExecutorProcessControl> EPC) {
  auto &MM = EPC->getMemMgr();
  Builder.setExecutorProcessControl(std::move(EPC));
  Builder.setObjectLinkingLayerCreator(
      [&MM](ExecutionSession &ES, auto &&...) -> Expected<std::unique_ptr<ObjectLayer>> {
        return std::make_unique<ObjectLinkingLayer>(ES, MM);
      });
}
#endif

const char *nameOf(ObjectLayer &Layer) {
  if (isa<RTDyldObjectLinkingLayer>(Layer))
    return "RuntimeDyld";
  return isa<ObjectLinkingLayer>(Layer) ? "JITLink" : "another layer";
}

} // namespace

int main(int Count, char **Arguments) {
  if (Count != 2)
    return 2;
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  ExitOnError Exit("own_memory: ");
  LLJITBuilder Builder;
  StringRef Kind = Arguments[1];
#if LLVM_VERSION_MAJOR >= 19
  if (Kind == "early")
    useEarly(Builder, Exit(SelfExecutorProcessControl::Create()));
#endif
  if (Kind != "early" && Kind != "jitlink")
    Builder.setObjectLinkingLayerCreator(
        [&](ExecutionSession &ES, auto &&...) -> Expected<std::unique_ptr<ObjectLayer>> {
          auto Make = [Kind = Arguments[1]](auto &&...) { return makeManager(Kind); };
          return std::make_unique<RTDyldObjectLinkingLayer>(ES, std::move(Make));
        });
  auto J = Exit(Builder.create());
  auto Context = std::make_unique<LLVMContext>();
  SMDiagnostic Problem;
  auto M = parseAssemblyString("define i32 @answer() { ret i32 42 }", Problem, *Context);
  Exit(J->addIRModule(ThreadSafeModule(std::move(M), std::move(Context))));
  auto Found = Exit(J->lookup("answer"));
#if LLVM_VERSION_MAJOR >= 15
  const uint64_t Address = Found.getValue();
#else
  const uint64_t Address = Found.getAddress();
#endif
  std::printf("%d, %s, %d\n", reinterpret_cast<int (*)()>(Address)(),
              nameOf(J->getObjLinkingLayer()), Calls);
  return 0;
}
