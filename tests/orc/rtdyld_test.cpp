// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// RuntimeDyld and MCJIT over jitmem, and beside LLVM's own memory manager. On LLVM 14 and later.

#include "instrumented.h"

#include <jitmem/rtdyld.hpp>

#include <llvm/ExecutionEngine/ExecutionEngine.h>
#include <llvm/ExecutionEngine/MCJIT.h>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/ExecutionEngine/Orc/RTDyldObjectLinkingLayer.h>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/IR/IRBuilder.h>
#include <llvm/IR/Module.h>
#include <llvm/Support/TargetSelect.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

template <typename T> T must(Expected<T> Value) {
  if (!Value)
    report_fatal_error(Value.takeError());
  return std::move(*Value);
}
void must(Error E) {
  if (E)
    report_fatal_error(std::move(E));
}

size_t mappings() {
  std::ifstream Maps("/proc/self/maps");
  size_t Count = 0;
  for (std::string Line; std::getline(Maps, Line);)
    ++Count;
  return Count;
}

// What an address may be used for: "r-xp".
std::string permissions(uint64_t Address) {
  std::ifstream Maps("/proc/self/maps");
  for (std::string Line; std::getline(Maps, Line);) {
    char *End;
    uint64_t First = std::strtoull(Line.c_str(), &End, 16);
    if (First <= Address && Address < std::strtoull(End + 1, &End, 16))
      return std::string(End + 1, 4);
  }
  return "";
}

// `i32 @Name()` that returns Value.
std::unique_ptr<Module> functionReturning(LLVMContext &Context, const std::string &Name,
                                          int Value) {
  auto M = std::make_unique<Module>(Name, Context);
  auto *F = Function::Create(FunctionType::get(Type::getInt32Ty(Context), false),
                             Function::ExternalLinkage, Name, *M);
  IRBuilder<> B(BasicBlock::Create(Context, "", F));
  B.CreateRet(B.getInt32(Value));
  return M;
}

// `i32 @Name()` that reads `@counter` of another object by a 32-bit distance.
std::unique_ptr<Module> functionReadingCounter(LLVMContext &Context, const std::string &Name) {
  auto M = functionReturning(Context, Name, 0);
  auto *Int = Type::getInt32Ty(Context);
  auto *Counter = cast<GlobalVariable>(M->getOrInsertGlobal("counter", Int));
  Counter->setDSOLocal(true);
  auto *Return = M->getFunction(Name)->getEntryBlock().getTerminator();
  Return->setOperand(0, IRBuilder<>(Return).CreateLoad(Int, Counter));
  return M;
}

const uint64_t GiB = uint64_t(1) << 30;

uint64_t distance(uint64_t A, uint64_t B) { return std::max(A, B) - std::min(A, B); }

// Mappings that take all room near an address, so that the system's next one lies out of its reach.
class Obstacles {
public:
  explicit Obstacles(uint64_t Address) {
    for (uint64_t Size = GiB; Size >= 4096; Size /= 64)
      do {
        void *Place =
            mmap(nullptr, Size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (Place == MAP_FAILED)
          report_fatal_error("mmap");
        Taken.emplace_back(Place, Size);
      } while (distance(reinterpret_cast<uintptr_t>(Taken.back().first), Address) < 3 * GiB);
  }
  ~Obstacles() {
    for (auto &[Place, Size] : Taken)
      munmap(Place, Size);
  }
  Obstacles(const Obstacles &) = delete;
  Obstacles &operator=(const Obstacles &) = delete;

private:
  std::vector<std::pair<void *, uint64_t>> Taken;
};

int callAddress(uint64_t Address) {
  return reinterpret_cast<int (*)()>(static_cast<uintptr_t>(Address))();
}

// A manager of each mapper of this process.
class RTDyld : public ::testing::TestWithParam<uint32_t> {
protected:
  RTDyld() {
    InitializeNativeTarget();
    InitializeNativeTargetAsmPrinter();
    EXPECT_EQ(jitmem_mapper_in_process(GetParam(), &Mapper, nullptr), JITMEM_OK);
    EXPECT_EQ(jitmem_manager_create(Mapper, nullptr, &Manager, nullptr), JITMEM_OK);
  }
  ~RTDyld() override {
    J.reset();
    EXPECT_EQ(stats().live, 0U);
    EXPECT_EQ(stats().in_flight, 0U);
    jitmem_manager_free(Manager);
    jitmem_mapper_free(Mapper);
  }

  jitmem_stats stats() {
    jitmem_stats S = {};
    S.struct_size = sizeof(S);
    EXPECT_EQ(jitmem_manager_stats(Manager, &S, nullptr), JITMEM_OK);
    return S;
  }

  static std::unique_ptr<LLJIT>
  session(std::function<std::unique_ptr<RuntimeDyld::MemoryManager>()> Memory) {
    LLJITBuilder Builder;
    // As compilers do for programs: RuntimeDyld's default are addresses of 64 bits.
    auto Target = must(JITTargetMachineBuilder::detectHost());
    Target.setCodeModel(CodeModel::Small).setRelocationModel(Reloc::PIC_);
    Builder.setJITTargetMachineBuilder(std::move(Target));
    Builder.setObjectLinkingLayerCreator([=](ExecutionSession &ES, auto &&...) {
      auto Layer =
          std::make_unique<RTDyldObjectLinkingLayer>(ES, [=](auto &&...) { return Memory(); });
      Layer->setProcessAllSections(true);
      return Expected<std::unique_ptr<ObjectLayer>>(std::move(Layer));
    });
    auto J = must(Builder.create());
    J->getMainJITDylib().addGenerator(must(
        DynamicLibrarySearchGenerator::GetForCurrentProcess(J->getDataLayout().getGlobalPrefix())));
    return J;
  }
  void start() {
    J = session([this] { return std::make_unique<jitmem::RTDyldMemoryManager>(Manager); });
  }

  static uint64_t find(LLJIT &J, const std::string &Name) {
#if LLVM_VERSION_MAJOR >= 15
    return must(J.lookup(Name)).getValue();
#else
    return must(J.lookup(Name)).getAddress();
#endif
  }

  static void add(LLJIT &J, const std::string &Source) {
    auto Buffer = MemoryBuffer::getFile(JIT_OBJECT_DIR "/" + Source + ".o");
    ASSERT_TRUE(Buffer) << Source;
    must(J.addObjectFile(std::move(*Buffer)));
  }

  static void addModule(LLJIT &J, function_ref<std::unique_ptr<Module>(LLVMContext &)> Make) {
    auto Context = std::make_unique<LLVMContext>();
    auto M = Make(*Context);
    must(J.addIRModule(ThreadSafeModule(std::move(M), std::move(Context))));
  }
  static void addFunction(LLJIT &J, const std::string &Name, int Value) {
    addModule(J, [&](LLVMContext &Context) { return functionReturning(Context, Name, Value); });
  }

  // Links objects, calls some, and gives how many mappings they took.
  static size_t mappingsOfObjects(LLJIT &J, int Count) {
    addFunction(J, "first", 0);
    find(J, "first");
    size_t Before = mappings();
    for (int I = 0; I != Count; ++I) {
      std::string Name = "f" + std::to_string(I);
      addFunction(J, Name, I);
      uint64_t Address = find(J, Name);
      if (I % 100 == 0) {
        EXPECT_EQ(callAddress(Address), I);
      }
    }
    size_t After = mappings();
    return After > Before ? After - Before : 0;
  }

  jitmem_mapper *Mapper = nullptr;
  jitmem_manager *Manager = nullptr;
  std::unique_ptr<LLJIT> J;
};

TEST_P(RTDyld, ManyObjectsTakeFewMappings) {
  start();
  // The others do what RuntimeDyld does at each object all the same.
  const int Count = rounds(GetParam() == JITMEM_IN_PROCESS_TWO_VIEWS ? 2000 : 300);
  size_t Ours = mappingsOfObjects(*J, Count);
  jitmem_stats S = stats();
  EXPECT_EQ(S.finalized, Count + 1U);
  EXPECT_EQ(S.windows, 1U);
  auto Stock = session([] { return std::make_unique<SectionMemoryManager>(); });
  size_t Theirs = mappingsOfObjects(*Stock, std::min(Count, 200));
  RecordProperty("mappings", std::to_string(Ours) + " of " + std::to_string(Theirs));
  EXPECT_LE(Ours, 64U);
  EXPECT_LT(Ours, Theirs);
}

// RuntimeDyld writes 32 bits of a distance, whether it has more or not.
TEST_P(RTDyld, ObjectsReachEachOtherWhereOtherMappingsTakeAllRoomNear) {
  start();
  addModule(*J, [](LLVMContext &Context) {
    auto M = std::make_unique<Module>("counter", Context);
    auto *Int = Type::getInt32Ty(Context);
    auto *Counter = cast<GlobalVariable>(M->getOrInsertGlobal("counter", Int));
    Counter->setInitializer(ConstantInt::get(Int, 41));
    return M;
  });
  uint64_t Counter = find(*J, "counter");
  Obstacles Near(Counter);
  for (int I = 0; I != 4; ++I) {
    std::string Name = "reader" + std::to_string(I);
    addModule(*J, [&](LLVMContext &Context) { return functionReadingCounter(Context, Name); });
    uint64_t Reader = find(*J, Name);
    ASSERT_LT(distance(Reader, Counter), GiB);
    EXPECT_EQ(callAddress(Reader), 41);
  }
}

TEST_P(RTDyld, ExceptionsPassThroughSeveralObjects) {
  start();
  for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
    add(*J, Source);
  auto *Catch = reinterpret_cast<int (*)(int)>(static_cast<uintptr_t>(find(*J, "catchProblem")));
  EXPECT_EQ(Catch(42), 1042);
  EXPECT_EQ(callAddress(find(*J, "framesUnwound")), 1);
}

TEST_P(RTDyld, ConstantsLieWithCodeIfTheHostSaysSo) {
  for (bool WithCode : {false, true}) {
    J = session(
        [=] { return std::make_unique<jitmem::RTDyldMemoryManager>(Manager, 0, WithCode); });
    addModule(*J, [](LLVMContext &Context) {
      auto M = functionReadingCounter(Context, "read");
      auto *Constant = M->getGlobalVariable("counter");
      Constant->setInitializer(ConstantInt::get(Type::getInt32Ty(Context), 41));
      Constant->setConstant(true);
      Constant->setAlignment(Align(256));
      return M;
    });
    EXPECT_EQ(callAddress(find(*J, "read")), 41);
    uint64_t Constant = find(*J, "counter");
    EXPECT_EQ(Constant % 256, 0U);
    EXPECT_EQ(permissions(Constant).substr(0, 3), WithCode ? "r-x" : "r--");
    for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
      add(*J, Source);
    auto *Catch = reinterpret_cast<int (*)(int)>(static_cast<uintptr_t>(find(*J, "catchProblem")));
    EXPECT_EQ(Catch(42), 1042);
    EXPECT_EQ(stats().in_flight, 0U);
    J.reset();
  }
}

TEST_P(RTDyld, ARefusedSectionFailsTheLookupWithItsReason) {
  start();
  addFunction(*J, "before", 1);
  EXPECT_EQ(callAddress(find(*J, "before")), 1);
  ASSERT_EQ(jitmem_manager_set_quota(Manager, stats().live, nullptr), JITMEM_OK);
  std::string Reported;
  J->getExecutionSession().setErrorReporter(
      [&](Error E) { Reported += toString(std::move(E)) + "\n"; });
  addFunction(*J, "refused", 2);
  auto Found = J->lookup("refused");
  ASSERT_FALSE(Found);
  Reported += toString(Found.takeError());
  EXPECT_NE(Reported.find("section ."), std::string::npos) << Reported;
  EXPECT_NE(Reported.find("quota"), std::string::npos) << Reported;
  // Lifted, the session goes on.
  ASSERT_EQ(jitmem_manager_set_quota(Manager, 0, nullptr), JITMEM_OK);
  addFunction(*J, "after", 3);
  EXPECT_EQ(callAddress(find(*J, "after")), 3);
}

std::unique_ptr<ExecutionEngine> engineOf(std::unique_ptr<Module> M,
                                          std::unique_ptr<jitmem::RTDyldMemoryManager> Memory) {
  std::string Message;
  std::unique_ptr<ExecutionEngine> Engine(EngineBuilder(std::move(M))
                                              .setEngineKind(EngineKind::JIT)
                                              .setErrorStr(&Message)
                                              .setMCJITMemoryManager(std::move(Memory))
                                              .create());
  EXPECT_EQ(Message, "");
  return Engine;
}

TEST_P(RTDyld, AnEngineOfMCJITAddsModulesAndFreesThem) {
  LLVMContext Context;
  auto Memory = std::make_unique<jitmem::RTDyldMemoryManager>(Manager);
  auto *Kept = Memory.get();
  auto Engine = engineOf(functionReturning(Context, "one", 1), std::move(Memory));
  ASSERT_TRUE(Engine);
  EXPECT_EQ(callAddress(Engine->getFunctionAddress("one")), 1);
  Engine->addModule(functionReturning(Context, "two", 2));
  EXPECT_EQ(callAddress(Engine->getFunctionAddress("two")), 2);
  EXPECT_EQ(Kept->error(), "");
  EXPECT_GT(stats().live, 0U);
  ASSERT_EQ(jitmem_manager_set_quota(Manager, stats().live, nullptr), JITMEM_OK);
  Engine->addModule(functionReturning(Context, "three", 3));
  Engine->getFunctionAddress("three");
  EXPECT_NE(Kept->error().find("quota"), std::string::npos) << Kept->error();
}

void throwsInTheHost() { throw 5; }

// `void @Name()` that calls `@thrower`.
std::unique_ptr<Module> functionCallingThrower(LLVMContext &Context, const std::string &Name) {
  auto M = std::make_unique<Module>(Name, Context);
  auto *Type = FunctionType::get(Type::getVoidTy(Context), false);
  auto *F = Function::Create(Type, Function::ExternalLinkage, Name, *M);
#if LLVM_VERSION_MAJOR >= 15
  F->setUWTableKind(UWTableKind::Default);
#else
  F->setHasUWTable();
#endif
  IRBuilder<> B(BasicBlock::Create(Context, "", F));
  B.CreateCall(M->getOrInsertFunction("thrower", Type));
  B.CreateRetVoid();
  return M;
}

// `i32 @Name()`, and a table of 4 MiB.
std::unique_ptr<Module> functionWithTable(LLVMContext &Context, const std::string &Name) {
  auto M = functionReturning(Context, Name, 0);
  auto *Array = ArrayType::get(Type::getInt32Ty(Context), 1 << 20);
  auto *Table = cast<GlobalVariable>(M->getOrInsertGlobal("table", Array));
  Table->setInitializer(ConstantAggregateZero::get(Array));
  return M;
}

TEST_P(RTDyld, ModulesOfMCJITGoOnBesideAndAfterOneThatIsRefused) {
  LLVMContext Context;
  auto Memory = std::make_unique<jitmem::RTDyldMemoryManager>(Manager);
  auto *Kept = Memory.get();
  auto Engine = engineOf(functionReturning(Context, "one", 1), std::move(Memory));
  ASSERT_TRUE(Engine);
  Engine->addGlobalMapping("thrower", reinterpret_cast<uintptr_t>(&throwsInTheHost));
  EXPECT_EQ(callAddress(Engine->getFunctionAddress("one")), 1);
  // Without frames the exception ends the process.
  auto Thrown = [&](const std::string &Name) {
    try {
      reinterpret_cast<void (*)()>(static_cast<uintptr_t>(Engine->getFunctionAddress(Name)))();
    } catch (int Value) {
      return Value;
    }
    return 0;
  };

  uint64_t Room = stats().live + 64 * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  ASSERT_EQ(jitmem_manager_set_quota(Manager, Room, nullptr), JITMEM_OK);
  Engine->addModule(functionCallingThrower(Context, "beside"));
  Engine->addModule(functionWithTable(Context, "refused"));
  Engine->finalizeObject();
  EXPECT_NE(Kept->error().find("quota"), std::string::npos) << Kept->error();
  EXPECT_EQ(Thrown("beside"), 5);
  // What is never finalized stays, since its address may be known.
  EXPECT_GT(stats().in_flight, 0U);

  ASSERT_EQ(jitmem_manager_set_quota(Manager, 0, nullptr), JITMEM_OK);
  Engine->addModule(functionCallingThrower(Context, "after"));
  EXPECT_EQ(Thrown("after"), 5);
  std::string Why;
  EXPECT_FALSE(Kept->finalizeMemory(&Why)) << Why;
  // The host takes it when it likes.
  EXPECT_NE(Kept->takeError().find("quota"), std::string::npos);
  EXPECT_EQ(Kept->error(), "");
}

// RuntimeDyld links for this process, and would hand out addresses of another one.
TEST(RTDyldMapper, MemoryOfAnotherProcessIsRefused) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  int Ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, Ends), 0);
  std::string Descriptors = "filedescs=" + std::to_string(Ends[1]) + "," + std::to_string(Ends[1]);
  pid_t Executor = fork();
  ASSERT_GE(Executor, 0);
  if (Executor == 0) {
    close(Ends[0]);
    execl(JITMEM_EXECUTOR, JITMEM_EXECUTOR, Descriptors.c_str(), nullptr);
    _exit(127);
  }
  close(Ends[1]);
  jitmem_transport *Transport = nullptr;
  jitmem_mapper *Mapper = nullptr;
  jitmem_manager *Manager = nullptr;
  ASSERT_EQ(jitmem_transport_socket(Ends[0], &Transport, nullptr), JITMEM_OK);
  ASSERT_EQ(jitmem_mapper_shared(Transport, nullptr, &Mapper, nullptr), JITMEM_OK);
  ASSERT_EQ(jitmem_manager_create(Mapper, nullptr, &Manager, nullptr), JITMEM_OK);
  {
    LLVMContext Context;
    auto Memory = std::make_unique<jitmem::RTDyldMemoryManager>(Manager);
    auto *Kept = Memory.get();
    EXPECT_NE(Kept->error().find("jitmem_mapper_in_process"), std::string::npos) << Kept->error();
    Kept->takeError();
    auto Engine = engineOf(functionReturning(Context, "one", 1), std::move(Memory));
    ASSERT_TRUE(Engine);
    Engine->getFunctionAddress("one");
    EXPECT_NE(Kept->error().find("jitmem_mapper_in_process"), std::string::npos) << Kept->error();
    jitmem_stats Stats = {};
    Stats.struct_size = sizeof(Stats);
    EXPECT_EQ(jitmem_manager_stats(Manager, &Stats, nullptr), JITMEM_OK);
    EXPECT_EQ(Stats.allocate_calls, 0U);
  }
  jitmem_manager_free(Manager);
  jitmem_mapper_free(Mapper);
  jitmem_transport_free(Transport);
  int Status = 0;
  EXPECT_EQ(waitpid(Executor, &Status, 0), Executor);
  EXPECT_EQ(Status, 0);

  jitmem::RTDyldMemoryManager Nothing(nullptr);
  EXPECT_NE(Nothing.error().find("NULL"), std::string::npos) << Nothing.error();
}

std::string nameOf(const ::testing::TestParamInfo<uint32_t> &Info) {
  switch (Info.param) {
  case JITMEM_IN_PROCESS_TWO_VIEWS:
    return "TwoViews";
  case JITMEM_IN_PROCESS_MPROTECT:
    return "Mprotect";
  default:
    return "InPlace";
  }
}

INSTANTIATE_TEST_SUITE_P(Mappers, RTDyld,
                         ::testing::Values(uint32_t(JITMEM_IN_PROCESS_TWO_VIEWS),
                                           uint32_t(JITMEM_IN_PROCESS_MPROTECT),
                                           uint32_t(JITMEM_IN_PROCESS_IN_PLACE)),
                         nameOf);

} // namespace
