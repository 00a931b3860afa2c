// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// How hosts get jitmem's manager, and have tools told of what is linked.

#include "compat_orc.h"
#include "kit.h"

#include <jitmem/orc_debug.hpp>
#include <jitmem/orc_lljit.hpp>
#include <llvm/AsmParser/Parser.h>
#include <llvm/ExecutionEngine/SectionMemoryManager.h>
#include <llvm/Support/SourceMgr.h>
#include <llvm/Support/TargetSelect.h>

#include <csignal>
#include <fstream>
#include <malloc.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

using namespace llvm;
using namespace llvm::orc;
using jitmem::orc::MemoryManager;
using jitmem::orc::detail::PerfMap;

// GDB's JIT interface, in LLVM's library.
struct Entry {
  Entry *Next, *Previous;
  const char *Object;
  uint64_t Size;
};
extern "C" struct {
  uint32_t Version, Action;
  Entry *Relevant, *First;
} __jit_debug_descriptor;

namespace {

TEST(Create, InProcessForTheProcessItself) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  auto MM = must(MemoryManager::Create(*EPC));
  jitmem_stats S = MM->stats();
  EXPECT_TRUE(mentions(S.mapper_name, {"in-process"}));
  // Under valgrind, which does not know how to map memory again, two views are of memfds.
  if (S.fallbacks) {
    EXPECT_TRUE(mentions(S.fallback_reason, {"mremap to the writer view", "Invalid argument"}))
        << S.fallback_reason;
  }
  auto G = compat::makeGraph("code");
  jitlink::Block &B = addContent(*G, addSection(*G, "text", RX), codeReturning(42), {16});
  Placed P(*MM, must(must(MM->allocate(nullptr, *G))->finalize()));
  EXPECT_EQ(call(B.getAddress()), 42);
}

TEST(Create, StatsNameTheChosenMapper) {
  for (Kind K : {Kind::JitmemTwoViews, Kind::JitmemMprotect}) {
    auto MM = must(createManager(K));
    bool SaysMprotect = StringRef(statsOf(*MM).mapper_name).contains("mprotect");
    EXPECT_EQ(SaysMprotect, K == Kind::JitmemMprotect) << statsOf(*MM).mapper_name;
  }
}

TEST(Create, DefaultIsTwoViews) {
  auto Default = must(MemoryManager::CreateInProcess());
  auto TwoViews = must(createManager(Kind::JitmemTwoViews));
  EXPECT_EQ(Default->stats().mapper, statsOf(*TwoViews).mapper);
  EXPECT_STREQ(Default->stats().mapper_name, statsOf(*TwoViews).mapper_name);
}

TEST(Create, WithoutAServiceTheErrorSaysWhatWasTried) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  jitmem::orc::Options O;
  O.ExecutorLibrary = "/nowhere/libjitmem.so";
  for (auto *Create : {MemoryManager::CreateShared, MemoryManager::CreateRemote}) {
    EXPECT_TRUE(mentions(messageOf(Create(*EPC, O)),
                         {"jitmem_service_open", "/nowhere/libjitmem.so", "ExecutorLibrary"}));
    jitmem::orc::Options Forbidden;
    Forbidden.LoadExecutorLibrary = false;
    EXPECT_TRUE(mentions(messageOf(Create(*EPC, Forbidden)),
                         {"jitmem_service_open", "LoadExecutorLibrary", "ExecutorService"}));
  }
}

// Opens the protected member of the base.
struct Published : ExecutorProcessControl {
  using ExecutorProcessControl::BootstrapSymbols;
};

// As SimpleRemoteEPC has it for an executor that was forked from its process, if the object that
// gets the calls back there is where the EPC is here.
TEST(Create, AForkedExecutorIsNotTheProcessItself) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  ((*EPC).*&Published::BootstrapSymbols)["__llvm_orc_SimpleRemoteEPC_dispatch_ctx"] =
      ExecutorAddr::fromPtr(EPC.get());
  jitmem::orc::Options Choices;
  Choices.LoadExecutorLibrary = false;
  EXPECT_TRUE(mentions(messageOf(MemoryManager::Create(*EPC, Choices)), {"jitmem_service_open"}));
  ExecutionSession ES(std::move(EPC));
  EXPECT_TRUE(
      mentions(messageOf(jitmem::orc::DebugPlugin::Create(ES)), {"runs in another process"}));
  must(ES.endSession());
}

TEST(Create, HandleGivesTheCInterface) {
  auto MM = must(MemoryManager::CreateInProcess());
  ASSERT_NE(MM->handle(), nullptr);
  jitmem_stats S = {};
  S.struct_size = sizeof(S);
  EXPECT_EQ(jitmem_manager_stats(MM->handle(), &S, nullptr), 0);
  EXPECT_EQ(S.windows, MM->stats().windows);
}

TEST(Create, SwappedIntoLLJITByOneLine) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto EPC = must(
      SelfExecutorProcessControl::Create(nullptr, nullptr, must(MemoryManager::CreateInProcess())));
  auto &MM = static_cast<MemoryManager &>(EPC->getMemMgr());
  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(std::move(EPC));
  compat::useJITLink(Builder);
  auto J = must(Builder.create());
  auto G = compat::makeGraph("code", J->getExecutionSession().getSymbolStringPool());
  jitlink::Block &B = addContent(*G, addSection(*G, ".text", RX), codeReturning(42), {16});
  G->addDefinedSymbol(B, 0, "entry", B.getSize(), jitlink::Linkage::Strong, jitlink::Scope::Default,
                      true, true);
  auto &Layer = static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer());
  must(Layer.add(J->getMainJITDylib(), std::move(G)));
  EXPECT_EQ(call(must(compat::lookup(*J, "entry"))), 42);
  EXPECT_GT(MM.stats().finalized, 0u);
}

TEST(Create, ALayerThatLeavesTheManagerUnusedIsRefused) {
  LLJITBuilder Builder;
  compat::setLinkingLayer(Builder, [](ExecutionSession &ES) {
    return std::make_unique<RTDyldObjectLinkingLayer>(
        ES, [](auto &&...) { return std::make_unique<SectionMemoryManager>(); });
  });
  must(jitmem::orc::useInProcess(Builder));
  EXPECT_TRUE(mentions(messageOf(Builder.create()),
                       {"RTDyldObjectLinkingLayer", "setObjectLinkingLayerCreator"}));
}

TEST(Create, ABuilderThatHasAnExecutorIsRefused) {
  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(must(SelfExecutorProcessControl::Create()));
  EXPECT_TRUE(mentions(messageOf(jitmem::orc::useInProcess(Builder)),
                       {"ExecutorProcessControl", "MemoryManager"}));
}

// How many objects debuggers are told of that have this word in them.
size_t objectsWith(StringRef Word) {
  size_t Count = 0;
  for (Entry *E = __jit_debug_descriptor.First; E; E = E->Next)
    Count += StringRef(E->Object, E->Size).contains(Word);
  return Count;
}

std::string contentOf(const std::string &Path) {
  return must(errorOrToExpected(MemoryBuffer::getFile(Path)))->getBuffer().str();
}

// The map of the calling process; that of this program is removed when all tests have run.
std::string mapPath() { return "/tmp/perf-" + std::to_string(getpid()) + ".map"; }
struct MapRemover : ::testing::Environment {
  void TearDown() override { must(errorCodeToError(sys::fs::remove(mapPath()))); }
};
auto *const Remover = ::testing::AddGlobalTestEnvironment(new MapRemover);

// What a jitdump's records are, a digit each. They are behind its header, and begin with that and
// with their size.
std::string kindsOf(StringRef Dump) {
  std::string Kinds;
  for (Dump = Dump.drop_front(40); !Dump.empty();) {
    uint32_t Words[2];
    memcpy(Words, Dump.data(), sizeof(Words));
    Kinds += std::to_string(Words[0]);
    Dump = Dump.drop_front(Words[1]);
  }
  return Kinds;
}

// An LLJIT whose layer has a plugin.
std::unique_ptr<LLJIT> createTold(const jitmem::orc::DebugOptions &Told) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  LLJITBuilder Builder;
  must(jitmem::orc::useInProcess(Builder));
  auto J = must(Builder.create());
  static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer())
      .addPlugin(must(jitmem::orc::DebugPlugin::Create(J->getExecutionSession(), Told)));
  return J;
}

ThreadSafeModule parse(const std::string &Text) {
  SMDiagnostic Diagnostic;
  auto Context = std::make_unique<LLVMContext>();
  auto Module = parseAssemblyString(Text, Diagnostic, *Context);
  return {std::move(Module), std::move(Context)};
}

// Links a function that returns 42.
ExecutorAddr link(LLJIT &J, const std::string &Name) {
  must(J.addIRModule(parse("define i32 @" + Name + "() { ret i32 42 }")));
  ExecutorAddr Function = must(compat::lookup(J, Name));
  EXPECT_EQ(call(Function), 42);
  return Function;
}

#if LLVM_VERSION_MAJOR >= 19
// As it compiles without jitmem: in this thread, or in as many as the host asks for.
TEST(Create, TheHostsThreadsStay) {
  for (unsigned Threads : {0u, 2u}) {
    LLJITBuilder Builder;
    Builder.setNumCompileThreads(Threads);
    must(jitmem::orc::useInProcess(Builder));
    auto J = must(Builder.create());
    EXPECT_EQ(Builder.SupportConcurrentCompilation, Threads != 0);
    link(*J, "threaded");
  }
}
#endif

// Before the other one: a process has one such file.
TEST(DebugPlugin, AFolderThatIsNotThereIsSaid) {
  auto EPC = must(SelfExecutorProcessControl::Create());
  ExecutionSession ES(std::move(EPC));
  jitmem::orc::DebugOptions Told;
  Told.PerfMap = false;
  Told.JITDump = "/nowhere";
  EXPECT_TRUE(mentions(messageOf(jitmem::orc::DebugPlugin::Create(ES, Told)),
                       {"open /nowhere/jit-", "No such file"}));
  must(ES.endSession());
}

TEST(DebugPlugin, ToolsAreToldOfWhatIsThereAndDebuggersOfWhatGoes) {
  SmallString<64> Folder;
  must(errorCodeToError(sys::fs::createUniqueDirectory("jitmem", Folder)));
  jitmem::orc::DebugOptions Told;
  Told.JITDump = Folder.str().str();
  // Two layers, whose plugins tell the same listener of LLVM's.
  auto First = createTold(Told), Second = createTold(Told);
  ExecutorAddr Place = link(*First, "told_first");
  link(*Second, "told_second");
  EXPECT_EQ(objectsWith("told_first"), 1u);
  EXPECT_EQ(objectsWith("told_second"), 1u);
  std::string Process = std::to_string(getpid());
  auto MapPath = mapPath(), DumpPath = Told.JITDump + "/jit-" + Process + ".dump";
  for (const auto &Content : {contentOf(MapPath), contentOf(DumpPath)}) {
    EXPECT_TRUE(StringRef(Content).contains("told_first"));
    EXPECT_TRUE(StringRef(Content).contains("told_second"));
  }
  // Of each function how it is unwound: where only perf has it, and where it is.
  // AddressSanitizer mostly leaves no addresses near enough for perf alone.
  std::string Kinds = kindsOf(contentOf(DumpPath));
  EXPECT_TRUE(Kinds == "40404040" || (Sanitized && (Kinds == "4040" || Kinds == "404040")))
      << Kinds;
  // Removed from the one, and not from the other.
  must(First->getMainJITDylib().clear());
  EXPECT_EQ(objectsWith("told_first"), 0u);
  EXPECT_EQ(objectsWith("told_second"), 1u);
  // Samples of it are still named: perf asks at the end.
  EXPECT_TRUE(StringRef(contentOf(MapPath)).contains("told_first"));
  // Another function at its place takes its line, but not what it was when.
  EXPECT_EQ(link(*First, "told_third"), Place);
  EXPECT_FALSE(StringRef(contentOf(MapPath)).contains("told_first"));
  EXPECT_TRUE(StringRef(contentOf(MapPath)).contains("told_third"));
  EXPECT_TRUE(StringRef(contentOf(DumpPath)).contains("told_first"));
  // A session that ends removes what is left.
  Second.reset();
  EXPECT_EQ(objectsWith("told_second"), 0u);
  EXPECT_EQ(objectsWith("told_third"), 1u);
  must(errorCodeToError(sys::fs::remove_directories(Folder)));
}

// A listener that looks at an object later.
struct Keeper : JITEventListener {
  void notifyObjectLoaded(ObjectKey, const object::ObjectFile &Object,
                          const RuntimeDyld::LoadedObjectInfo &Info) override {
    Content = Object.getData().str();
    Copy = Info.clone();
  }

  std::string Content;
  std::unique_ptr<LoadedObjectInfo> Copy;
};

TEST(Listener, ACopyOfWhatItIsToldIsItsOwn) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  Keeper Kept;
  LLJITBuilder Builder;
  must(jitmem::orc::useInProcess(Builder));
  auto J = must(Builder.create());
  static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer())
      .addPlugin(std::make_unique<jitmem::orc::ListenerPlugin>(Kept));
  // What is freed is overwritten, if it is no small block.
  mallopt(M_PERTURB, 0x5a);
  std::string Name = "told_copy" + std::string(2000, 'x');
  ExecutorAddr Function = link(*J, Name);
  mallopt(M_PERTURB, 0);
  auto Object = must(object::ObjectFile::createELFObjectFile({Kept.Content, "copy"}));
  auto &Copy = static_cast<RuntimeDyld::LoadedObjectInfo &>(*Kept.Copy);
  auto Debug = Copy.getObjectForDebug(*Object);
  ASSERT_NE(Debug.getBinary(), nullptr);
  for (object::SymbolRef Symbol : Debug.getBinary()->symbols())
    if (must(Symbol.getName()) == Name) {
      EXPECT_EQ(must(Symbol.getAddress()), Function.getValue());
    }
}

// That of a module in LLVM's language.
std::unique_ptr<MemoryBuffer> objectOf(const std::string &Text) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  InitializeNativeTargetAsmParser();
  auto Machine = must(must(JITTargetMachineBuilder::detectHost()).createTargetMachine());
  return parse(Text).withModuleDo([&](Module &M) { return must(SimpleCompiler(*Machine)(M)); });
}

TEST(DebugPlugin, AFunctionEndsWithItsSection) {
  auto File = objectOf("module asm \".type told_vast, @function\"\n"
                       "module asm \"told_vast: .zero 8\"\n"
                       "module asm \".size told_vast, 1 << 30\"\n"
                       "module asm \".type told_outside, @function\"\n"
                       "module asm \".set told_outside, told_vast + 100\"\n"
                       "module asm \".size told_outside, 8\"\n");
  auto Object = must(object::ObjectFile::createELFObjectFile(*File));
  std::vector<uint64_t> Addresses(10);
  for (object::SectionRef Section : Object->sections())
    if (must(Section.getName()) == ".text")
      Addresses.at(Section.getIndex()) = 0x1000;
  jitmem::orc::detail::DebugListener Tools;
  Tools.Map = must(PerfMap::get<PerfMap>());
  Tools.notifyObjectLoaded(1, *Object, jitmem::orc::detail::LinkedObject(Addresses));
  std::string Content = contentOf(mapPath());
  EXPECT_TRUE(StringRef(Content).contains("1000 8 told_vast\n"));
  EXPECT_FALSE(StringRef(Content).contains("told_outside"));
}

// Whether it has content, but is not loaded.
bool isOneOfThose(uint64_t Type, uint64_t Flags, uint64_t Size) {
  return Type == ELF::SHT_PROGBITS && Flags == 0 && Size != 0;
}

// An object with functions in three sections that are not loaded and have addresses nonetheless,
// two of them under one name.
std::unique_ptr<MemoryBuffer> objectWithAddresses() {
  std::string Text = "define i32 @told_beside() { ret i32 42 }\n";
  for (StringRef Section : {"one", "two", "two,unique,1"}) {
    std::string Name = "told_in_" + std::to_string(Text.size());
    auto [Word, Unique] = Section.split(',');
    for (std::string Line :
         {".section ." + Word.str() + ",\\22\\22,@progbits" + (Unique.empty() ? "" : ",") +
              Unique.str(),
          ".type " + Name + ", @function", Name + ": .zero 64", ".size " + Name + ", 64"})
      Text += "module asm \"" + Line + "\"\n";
  }
  auto File = objectOf(Text);
  auto Copy = WritableMemoryBuffer::getNewUninitMemBuffer(File->getBufferSize());
  std::copy(File->getBufferStart(), File->getBufferEnd(), Copy->getBufferStart());
  using ELFT = object::ELF64LE;
  auto *Header = reinterpret_cast<ELFT::Ehdr *>(Copy->getBufferStart());
  auto *Sections = reinterpret_cast<ELFT::Shdr *>(Copy->getBufferStart() + Header->e_shoff);
  for (unsigned I = 0; I != Header->e_shnum; ++I)
    if (isOneOfThose(Sections[I].sh_type, Sections[I].sh_flags, Sections[I].sh_size))
      Sections[I].sh_addr = 0x1000 * I;
  return Copy;
}

// Has the linker keep what nothing refers to.
struct KeepAll : compat::StatelessPlugin {
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PrePrunePasses.push_back([](jitlink::LinkGraph &G) {
      for (auto *Symbol : G.defined_symbols())
        Symbol->setLive(true);
      return Error::success();
    });
  }
};

TEST(Listener, ASectionThatIsNotLinkedIsNowhere) {
  auto File = objectWithAddresses();
  auto Object = must(object::ObjectFile::createELFObjectFile(*File));
  // How many of those sections there are, and where.
  auto Told = [&](const RuntimeDyld::LoadedObjectInfo &Info) {
    std::vector<std::pair<uint64_t, uint64_t>> Places;
    auto Linked = Info.getObjectForDebug(*Object);
    for (object::ELFSectionRef Section : Linked.getBinary()->sections())
      if (isOneOfThose(Section.getType(), Section.getFlags(), Section.getSize()))
        Places.emplace_back(Info.getSectionLoadAddress(Section), Section.getAddress());
    return Places;
  };
  const std::vector<std::pair<uint64_t, uint64_t>> Nowhere(3);
  EXPECT_EQ(Told(jitmem::orc::detail::LinkedObject(std::vector<uint64_t>(10))), Nowhere);

  Keeper Kept;
  LLJITBuilder Builder;
  must(jitmem::orc::useInProcess(Builder));
  auto J = must(Builder.create());
  auto &Layer = static_cast<ObjectLinkingLayer &>(J->getObjLinkingLayer());
  Layer.addPlugin(std::make_unique<jitmem::orc::ListenerPlugin>(Kept));
  Layer.addPlugin(std::make_unique<KeepAll>());
  must(J->addObjectFile(MemoryBuffer::getMemBuffer(*File)));
  EXPECT_EQ(call(must(compat::lookup(*J, "told_beside"))), 42);
  EXPECT_EQ(Told(static_cast<RuntimeDyld::LoadedObjectInfo &>(*Kept.Copy)), Nowhere);
}

TEST(DebugPlugin, AFunctionIsInASectionThatIsLoaded) {
  auto File = objectWithAddresses();
  auto Object = must(object::ObjectFile::createELFObjectFile(*File));
  jitmem::orc::detail::DebugListener Tools;
  Tools.Map = must(PerfMap::get<PerfMap>());
  Tools.notifyObjectLoaded(1, *Object,
                           jitmem::orc::detail::LinkedObject(std::vector<uint64_t>(10, 0x1000)));
  EXPECT_TRUE(StringRef(contentOf(mapPath())).contains(" told_beside\n"));
  EXPECT_FALSE(StringRef(contentOf(mapPath())).contains("told_in_"));
}

// Whether a forked child does what it should; one that hangs is ended.
template <typename ActionT> bool succeedsInChild(ActionT Action) {
  pid_t Child = fork();
  if (Child == 0) {
    alarm(300);
    _exit([&]() noexcept { return Action() ? 0 : 1; }());
  }
  int Status = -1;
  waitpid(Child, &Status, 0);
  return Status == 0;
}

// What only a child does. A folder of the test's, which goes with it.
struct Child : ::testing::Test {
  void SetUp() override {
    must(errorCodeToError(sys::fs::createUniqueDirectory("jitmem", Folder)));
  }
  void TearDown() override { must(errorCodeToError(sys::fs::remove_directories(Folder))); }

  // The calling process's jitdump.
  std::string dumpPath() const {
    return (Folder + "/jit-" + std::to_string(getpid()) + ".dump").str();
  }
  // What a plugin says that writes it.
  std::string messageOfDump() const {
    jitmem::orc::DebugOptions Told;
    Told.PerfMap = false;
    Told.JITDump = Folder.str().str();
    ExecutionSession ES(must(SelfExecutorProcessControl::Create()));
    std::string Message = messageOf(jitmem::orc::DebugPlugin::Create(ES, Told));
    must(ES.endSession());
    return Message;
  }

  SmallString<64> Folder;
};

// A child has a map with nothing in it.
bool mapOfChildIs(StringRef Expected) {
  std::string Content = contentOf(mapPath());
  EXPECT_EQ(Content, Expected.str());
  return Content == Expected;
}

using Functions = std::vector<jitmem::orc::detail::LinkedFunction>;

TEST(DebugPlugin, FunctionsOfAnObjectMayOverlap) {
  EXPECT_TRUE(succeedsInChild([] {
    auto &Map = *must(PerfMap::get<PerfMap>());
    Map.add(Functions{{0x1000, 8, "low"}, {0x1010, 32, "outer"}, {0x1018, 8, "inner"}});
    bool All = mapOfChildIs("1000 8 low\n1010 20 outer\n1018 8 inner\n");
    // Behind the inner one, and in the place of both.
    Map.add(Functions{{0x1028, 8, "next"}});
    All &= mapOfChildIs("1000 8 low\n" + std::string(27, '\n') + "1028 8 next\n");
    return !remove(mapPath().c_str()) && All;
  }));
}

TEST(DebugPlugin, ANameIsNoLineOfItsOwn) {
  EXPECT_TRUE(succeedsInChild([] {
    auto &Map = *must(PerfMap::get<PerfMap>());
    Map.add(Functions{{0x1000, 8, "n\u00e4me\n2000 8 other"}});
    bool One = mapOfChildIs("1000 8 n\u00e4me?2000 8 other\n");
    return !remove(mapPath().c_str()) && One;
  }));
}

void limitFiles(rlim_t Size) {
  rlimit Limit;
  getrlimit(RLIMIT_FSIZE, &Limit);
  Limit.rlim_cur = Size;
  setrlimit(RLIMIT_FSIZE, &Limit);
}

using jitmem::orc::detail::JITDump;

TEST_F(Child, LeavesOutAsAWholeWhatAProcessMayNotWrite) {
  EXPECT_TRUE(succeedsInChild([&] {
    auto &Map = *must(PerfMap::get<PerfMap>());
    Map.add(Functions{{0x1000, 8, "before"}});
    limitFiles(contentOf(mapPath()).size() + 4);
    Map.add(Functions{{0x2000, 8, "full"}});
    // Its line is not emptied either.
    limitFiles(4);
    Map.add(Functions{{0x1000, 8, "none"}});
    limitFiles(RLIM_INFINITY);
    Map.add(Functions{{0x3000, 8, "after"}});
    bool All = mapOfChildIs("1000 8 before\n3000 8 after\n");
    Map.add(Functions{{0x3000, 8, "last"}});
    All &= mapOfChildIs("1000 8 before\n" + std::string(13, '\n') + "3000 8 last\n");

    auto &Dump = *must(JITDump::get<JITDump>(Folder.str().str(), uint16_t(ELF::EM_X86_64)));
    Functions One = {{reinterpret_cast<uintptr_t>("code"), 4, "dumped"}};
    size_t Header = contentOf(dumpPath()).size();
    limitFiles(Header + 60);
    Dump.add(One);
    All &= contentOf(dumpPath()).size() == Header;
    limitFiles(RLIM_INFINITY);
    Dump.add(One);
    return !remove(mapPath().c_str()) && All && contentOf(dumpPath()).size() > Header + 60;
  }));
}

// Puts a disk of two pages in the place of /tmp for the calling process, which has one thread.
bool fillDisk() {
  uid_t User = getuid();
  gid_t Group = getgid();
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
    return false;
  std::ofstream("/proc/self/setgroups") << "deny";
  std::ofstream("/proc/self/uid_map") << "0 " << User << " 1";
  std::ofstream("/proc/self/gid_map") << "0 " << Group << " 1";
  std::string Size = "size=" + std::to_string(2 * sysconf(_SC_PAGESIZE));
  return mount("none", "/tmp", "tmpfs", 0, Size.c_str()) == 0;
}

TEST_F(Child, LeavesOutAsAWholeWhatAFullDiskDoesNotTake) {
  if (!succeedsInChild(fillDisk))
    GTEST_SKIP() << "this system allows no mounts: unshare or mount was refused";
  EXPECT_TRUE(succeedsInChild([&] {
    std::string Long(3 * sysconf(_SC_PAGESIZE), 'x');
    fillDisk();
    auto &Map = *must(PerfMap::get<PerfMap>());
    Map.add(Functions{{0x1000, 8, "before"}});
    Map.add(Functions{{0x2000, 8, Long}});
    bool All = mapOfChildIs("1000 8 before\n");
    Map.add(Functions{{0x3000, 8, "after"}});
    return mapOfChildIs("1000 8 before\n3000 8 after\n") && All;
  }));
}

TEST_F(Child, SaysWhyThereIsNoJITDumpAndKeepsNothingOfIt) {
  EXPECT_TRUE(succeedsInChild([&] {
    limitFiles(8);
    bool Said = mentions(messageOfDump(), {"write", dumpPath().c_str(), "File too large"});
    limitFiles(RLIM_INFINITY);
    return Said && !StringRef(contentOf("/proc/self/maps")).contains(dumpPath());
  }));
  // The first thing that went wrong, and not what did thereafter.
  EXPECT_TRUE(succeedsInChild([&] {
    return mkfifo(dumpPath().c_str(), 0600) == 0 &&
           mentions(messageOfDump(), {"write", dumpPath().c_str(), "Illegal seek"});
  }));
}

TEST(DebugPlugin, AForkedChildHasAFileOfItsOwn) {
  auto J = createTold({});
  link(*J, "told_parent");
  EXPECT_TRUE(succeedsInChild([&] {
    auto Own = createTold({});
    link(*Own, "told_child");
    // By its parent's plugin it is not told.
    link(*J, "told_of_parents");
    J.reset();
    std::string Content = contentOf(mapPath());
    must(errorCodeToError(sys::fs::remove(mapPath())));
    return StringRef(Content).contains("told_child") && !StringRef(Content).contains("parent");
  }));
  std::string Content = contentOf(mapPath());
  EXPECT_TRUE(StringRef(Content).contains("told_parent"));
  EXPECT_FALSE(StringRef(Content).contains("told_of_parents"));
}

// Opens protected members of the base.
struct Opened : jitmem::orc::detail::ProfileFile {
  using ProfileFile::M;
};

TEST(DebugPlugin, AForkedChildWaitsForNoThreadOfItsParent) {
  auto &Map = *must(PerfMap::get<PerfMap>());
  std::lock_guard<std::mutex> Held(Map.*&Opened::M);
  EXPECT_TRUE(succeedsInChild([&] {
    Map.add(std::vector<jitmem::orc::detail::LinkedFunction>());
    return bool(must(PerfMap::get<PerfMap>()));
  }));
}

// Made before LLVM's listener for debuggers is, so destroyed after it.
std::unique_ptr<LLJIT> StaticJIT;

TEST(DebugPlugin, AStaticJITIsDestroyedAtExit) {
  auto Exit = [] {
    // In the table of a listener that is destroyed nothing is found then, and a search has no end.
    mallopt(M_PERTURB, 0x5a);
    alarm(300);
    StaticJIT = createTold({});
    for (int I = 0; I != 100; ++I)
      link(*StaticJIT, "told_static" + std::to_string(I));
    exit(0);
  };
  EXPECT_EXIT(Exit(), ::testing::ExitedWithCode(0), "");
}

TEST(Create, ManagersAreIndependent) {
  auto A = must(MemoryManager::CreateInProcess()), B = must(MemoryManager::CreateInProcess());
  auto G = compat::makeGraph("data");
  jitlink::Block &Data = addContent(*G, addSection(*G, "data", RW), "kept");
  Placed P(*A, must(must(A->allocate(nullptr, *G))->finalize()));
  EXPECT_EQ(B->stats().live, 0u);
  B.reset();
  EXPECT_EQ(StringRef(bytesAt(Data.getAddress()), 4), "kept");
}

} // namespace
