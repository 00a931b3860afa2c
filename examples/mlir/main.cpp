// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// MLIR's ExecutionEngine takes a mapper of sections. This one has them in jitmem's memory: in one
// window, so that everything is in reach of each other, with jitmem's statistics, limits and
// look-ups.
#include <jitmem.h>

#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/Support/Alignment.h>
#include <llvm/Support/Process.h>
#include <llvm/Support/TargetSelect.h>
#include <mlir/Dialect/LLVMIR/LLVMDialect.h>
#include <mlir/ExecutionEngine/ExecutionEngine.h>
#include <mlir/IR/BuiltinOps.h>
#include <mlir/IR/MLIRContext.h>
#include <mlir/Parser/Parser.h>
#include <mlir/Target/LLVMIR/Dialect/Builtin/BuiltinToLLVMIRTranslation.h>
#include <mlir/Target/LLVMIR/Dialect/LLVMIR/LLVMToLLVMIRTranslation.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace {

/// Over a manager with JITMEM_IN_PROCESS_IN_PLACE. Each mapping is a section group of its own, so
/// that it can be given back alone; LLVM's SectionMemoryManager divides it.
class SectionMapper final : public llvm::SectionMemoryManager::MemoryMapper {
public:
  explicit SectionMapper(jitmem_manager *Manager) : Manager(Manager) {}

  llvm::sys::MemoryBlock allocateMappedMemory(llvm::SectionMemoryManager::AllocationPurpose Purpose,
                                              size_t Size, const llvm::sys::MemoryBlock *, unsigned,
                                              std::error_code &Error) override {
    using Kind = llvm::SectionMemoryManager::AllocationPurpose;
    unsigned Page = llvm::sys::Process::getPageSizeEstimate();
    Size = llvm::alignTo(Size, Page);
    void *Group = jitmem_rtdyld_create_context(Manager);
    uint8_t *Section = Purpose == Kind::Code
                           ? jitmem_rtdyld_allocate_code_section(Group, Size, Page, 0, "code")
                           : jitmem_rtdyld_allocate_data_section(Group, Size, Page, 0, "data",
                                                                 Purpose == Kind::ROData);
    if (!Section) {
      jitmem_rtdyld_destroy(Group);
      Error = std::make_error_code(std::errc::not_enough_memory);
      return {};
    }
    Groups[Section] = Group;
    return {Section, Size};
  }

  /// Called for each part of a mapping once all of it is written.
  std::error_code protectMappedMemory(const llvm::sys::MemoryBlock &Block, unsigned) override {
    auto Group = std::prev(Groups.upper_bound(static_cast<uint8_t *>(Block.base())));
    return jitmem_rtdyld_finalize_memory(Group->second, nullptr)
               ? std::make_error_code(std::errc::permission_denied)
               : std::error_code();
  }

  std::error_code releaseMappedMemory(llvm::sys::MemoryBlock &Block) override {
    auto Group = Groups.find(static_cast<uint8_t *>(Block.base()));
    jitmem_rtdyld_destroy(Group->second);
    Groups.erase(Group);
    return {};
  }

private:
  jitmem_manager *Manager;
  /// By the address of their only section.
  std::map<uint8_t *, void *> Groups;
};

const char Source[] = R"(
  llvm.mlir.global internal @calls(0 : i32) : i32
  llvm.func @add_and_count(%a: i32) -> i32 {
    %place = llvm.mlir.addressof @calls : !llvm.ptr
    %one = llvm.mlir.constant(1 : i32) : i32
    %old = llvm.load %place : !llvm.ptr -> i32
    %new = llvm.add %old, %one : i32
    llvm.store %new, %place : i32, !llvm.ptr
    %sum = llvm.add %a, %new : i32
    llvm.return %sum : i32
  })";

/// Answers the sum of both answers of the function above.
int callTwice(SectionMapper &Mapper) {
  mlir::DialectRegistry Registry;
  mlir::registerBuiltinDialectTranslation(Registry);
  mlir::registerLLVMDialectTranslation(Registry);
  mlir::MLIRContext Context(Registry);
  Context.loadDialect<mlir::LLVM::LLVMDialect>();
  auto Module = mlir::parseSourceString<mlir::ModuleOp>(Source, &Context);
  mlir::ExecutionEngineOptions Options;
  Options.sectionMemoryMapper = &Mapper;
  auto Engine = mlir::ExecutionEngine::create(*Module, Options);
  if (!Engine) {
    llvm::errs() << "mlir: " << llvm::toString(Engine.takeError()) << "\n";
    std::exit(1);
  }
  int Sum = 0;
  for (int Argument : {20, 19}) {
    int Answer = 0;
    void *Packed[] = {&Argument, &Answer};
    if (auto Error = (*Engine)->invokePacked("add_and_count", Packed)) {
      llvm::errs() << "mlir: " << llvm::toString(std::move(Error)) << "\n";
      std::exit(1);
    }
    Sum += Answer;
  }
  return Sum;
}

} // namespace

int main() {
  llvm::InitializeNativeTarget();
  llvm::InitializeNativeTargetAsmPrinter();
  jitmem_mapper *Mapper = nullptr;
  jitmem_manager *Manager = nullptr;
  jitmem_error *Error = nullptr;
  if (jitmem_mapper_in_process(JITMEM_IN_PROCESS_IN_PLACE, &Mapper, &Error) ||
      jitmem_manager_create(Mapper, nullptr, &Manager, &Error)) {
    std::fprintf(stderr, "mlir: %s\n", jitmem_error_message(Error));
    return 1;
  }
  int Sum;
  {
    SectionMapper Sections(Manager);
    Sum = callTwice(Sections);
  }
  jitmem_stats Stats = {};
  Stats.struct_size = sizeof(Stats);
  jitmem_manager_stats(Manager, &Stats, nullptr);
  std::printf("20 + 1 + 19 + 2 = %d, from %llu allocations over %s\n", Sum,
              static_cast<unsigned long long>(Stats.allocate_calls), Stats.mapper_name);
  jitmem_manager_free(Manager);
  jitmem_mapper_free(Mapper);
  return Sum != 42 || Stats.allocate_calls == 0 || Stats.live != 0;
}
