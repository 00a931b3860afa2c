// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images of what LLJITs have linked: stored by one process, loaded by others, which are this
// program again.

#include "image.h"

#include <llvm/Support/TargetSelect.h>

#include <fstream>
#include <map>
#include <sys/wait.h>

namespace {

// The code of objects that is there, as actions of theirs have told.
std::map<uint64_t, uint64_t> CodeToldOf;

compat::ActionResult tellOfCode(const char *Data, size_t Size) {
  using namespace llvm::orc::shared;
  return WrapperFunction<SPSError(SPSExecutorAddrRange, bool)>::handle(
             Data, Size,
             [](ExecutorAddrRange Code, bool Comes) {
               if (Comes)
                 CodeToldOf[Code.Start.getValue()] = Code.End.getValue();
               else
                 CodeToldOf.erase(Code.Start.getValue());
               return Error::success();
             })
      .release();
}

// Adds such an action to each graph.
class TellingPlugin : public compat::StatelessPlugin {
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([](jitlink::LinkGraph &G) {
      jitlink::SectionRange Code(*G.findSectionByName(".text"));
      G.allocActions().push_back({callWith(Code, true), callWith(Code, false)});
      return Error::success();
    });
  }

  static shared::WrapperFunctionCall callWith(const jitlink::SectionRange &Code, bool Comes) {
    using namespace llvm::orc::shared;
    return cantFail(WrapperFunctionCall::Create<SPSArgList<SPSExecutorAddrRange, bool>>(
        ExecutorAddr::fromPtr(&tellOfCode), Code.getRange(), Comes));
  }
};

// What another process does with an image, and where it had it.
uint64_t run(const std::string &Path) {
  Session S;
  must(S.Loader->add(S.main(), Path, Key));
  // Data are as they were linked, and not as the first process has left them. Exceptions pass.
  for (int Call = 0; Call != 3; ++Call)
    if (S.call("useEverything", 5) != 1137 + Call)
      throw std::runtime_error("another answer");
  if (S.call("catchProblem", 1) != 1001)
    throw std::runtime_error("not caught");
  // Code that is linked now refers to it, and it is not linked again.
  S.add("sections.c");
  if (S.call("checkSections", 0) == 0)
    throw std::runtime_error("not linked");
  return S.find("useEverything");
}

TEST_F(Image, RunsInOtherProcesses) {
  store();
  for (int N = 0; N != 4; ++N) {
    int Ends[2];
    ASSERT_EQ(pipe(Ends), 0);
    pid_t Child = fork();
    if (Child == 0) {
      std::string End = std::to_string(Ends[1]);
      execl("/proc/self/exe", "orc-image", "--run", Path.c_str(), End.c_str(), nullptr);
      _exit(126);
    }
    close(Ends[1]);
    uint64_t Address = 0;
    EXPECT_EQ(read(Ends[0], &Address, sizeof(Address)), ssize_t(sizeof(Address)));
    close(Ends[0]);
    int Status = 0;
    ASSERT_EQ(waitpid(Child, &Status, 0), Child);
    EXPECT_EQ(Status, 0);
    Where.insert(Address);
  }
  EXPECT_GT(Where.size(), 1u);
}

#ifdef __x86_64__
TEST_F(Image, HasTheLargeCodeModel) {
  Session S;
  S.add("large.c");
  S.add("large_outside.c");
  EXPECT_EQ(S.call("largeOutside", 5), 46 + 100 + 1001 + 300 + 7);
  must(S.Recorder->store(Path, Key));
  // Somewhere else.
  Session Other;
  must(Other.Loader->add(Other.main(), Path, Key));
  EXPECT_NE(Other.find("largeOutside"), S.find("largeOutside"));
  for (int Call = 0; Call != 3; ++Call)
    EXPECT_EQ(Other.call("largeOutside", 5), 46 + 100 + 1001 + 300 + 7 + 2 * Call);
  EXPECT_EQ(S.call("largeOutside", 5), 46 + 100 + 1001 + 300 + 7 + 2);
}
#endif

TEST_F(Image, GoesWithItsTracker) {
  store();
  Session S;
  auto Tracker = S.main().createResourceTracker();
  must(S.Loader->add(Tracker, Path, Key));
  EXPECT_EQ(S.call("useEverything", 5), 1137);
  EXPECT_EQ(S.MM->stats().finalized, 1u);
  // Its symbols are there once.
  auto Again = messageOf(S.Loader->add(S.main().createResourceTracker(), Path, Key));
  EXPECT_NE(Again.find("uplicate"), std::string::npos) << Again;
  EXPECT_EQ(S.MM->stats().finalized, 1u);
  must(Tracker->remove());
  EXPECT_EQ(S.MM->stats().live, 0u);
  must(S.Loader->add(S.main(), Path, Key));
  EXPECT_EQ(S.call("useEverything", 6), 1138);
}

TEST_F(Image, DefinesWhatIsAskedFor) {
  store();
  Session S;
  std::vector<std::string> Offered;
  auto Tracker = S.main().createResourceTracker();
  must(S.Loader->add(Tracker, Path, Key, [&](StringRef Name) {
    Offered.push_back(Name.str());
    return Name == "useEverything";
  }));
  EXPECT_EQ(std::count(Offered.begin(), Offered.end(), "useEverything"), 1);
  EXPECT_EQ(std::count(Offered.begin(), Offered.end(), "catchProblem"), 1);
  EXPECT_EQ(S.call("useEverything", 5), 1137);
  auto Message = messageOf(S.J->lookup("catchProblem").takeError());
  EXPECT_NE(Message.find("catchProblem"), std::string::npos) << Message;
  // So another one may have that name.
  must(S.Loader->add(S.main(), Path, Key, [](StringRef Name) { return Name == "catchProblem"; }));
  EXPECT_EQ(S.call("catchProblem", 1), 1001);
  must(Tracker->remove());
  EXPECT_EQ(S.MM->stats().finalized, 1u);
  // With none it is there all the same, as others may refer to it by address.
  must(S.Loader->add(S.main(), Path, Key, [](StringRef) { return false; }));
  EXPECT_EQ(S.MM->stats().finalized, 2u);
}

// Removes a tracker when symbols are looked up, and finds all of them.
class RemovingGenerator : public DefinitionGenerator {
public:
  explicit RemovingGenerator(ResourceTrackerSP RT) : Tracker(std::move(RT)) {}

  Error tryToGenerate(LookupState &, LookupKind, JITDylib &JD, JITDylibLookupFlags,
                      const SymbolLookupSet &Names) override {
    if (auto Err = Tracker->remove())
      return Err;
    SymbolMap Found;
    for (auto &[Name, Flags] : Names)
      Found[Name] = {ExecutorAddr::fromPtr(&HostNumber), JITSymbolFlags::Exported};
    return JD.define(absoluteSymbols(std::move(Found)));
  }

private:
  ResourceTrackerSP Tracker;
};

TEST_F(Image, IsNotLoadedForATrackerThatIsRemovedMeanwhile) {
  store();
  Session S;
  auto &Alone = must(S.J->getExecutionSession().createJITDylib("alone"));
  auto Tracker = Alone.createResourceTracker();
  auto &Generator = Alone.addGenerator(std::make_unique<RemovingGenerator>(Tracker));
  auto Message = messageOf(S.Loader->add(Tracker, Path, Key));
  EXPECT_NE(Message.find("defunct"), std::string::npos) << Message;
  EXPECT_EQ(S.MM->stats().live, 0u);
  Alone.removeGenerator(Generator);
  EXPECT_FALSE(bool(expectedToOptional(S.J->lookup(Alone, "useEverything"))));
}

// What LLJIT's platform gives each JITDylib is each session's own.
TEST_F(Image, HasStaticsOfFunctions) {
  {
    Session S;
    S.add("static_inside.cpp");
    EXPECT_EQ(S.call("firstValue", 7), 7);
    must(S.Recorder->store(Path, Key));
  }
  Session Other;
  must(Other.Loader->add(Other.main(), Path, Key));
  EXPECT_EQ(Other.call("firstValue", 8), 8);
  EXPECT_EQ(Other.call("firstValue", 9), 8);
}

TEST_F(Image, HasActions) {
  std::map<uint64_t, uint64_t> Told;
  {
    Session S(std::make_shared<TellingPlugin>());
    auto Unknown = S.main().createResourceTracker();
    S.add(Unknown, "sections.c");
    EXPECT_NE(S.call("checkSections", 0), 0);
    auto Message = messageOf(S.Recorder->store(Path, Key));
    for (const char *Word : {"sections.c", "finalize actions", "storeCallsOf"})
      EXPECT_NE(Message.find(Word), std::string::npos) << Message;
    must(Unknown->remove());

    auto Function = ExecutorAddr::fromPtr(&tellOfCode);
    for (const std::vector<size_t> &Nowhere : {std::vector<size_t>{10}, {~size_t{0}}}) {
      S.Recorder->storeCallsOf(Function, "tellOfCode", Nowhere);
      auto Tracker = S.main().createResourceTracker();
      S.add(Tracker, "sections.c");
      EXPECT_NE(S.call("checkSections", 0), 0);
      Message = messageOf(S.Recorder->store(Path, Key));
      EXPECT_NE(Message.find("no address at byte"), std::string::npos) << Message;
      must(Tracker->remove());
    }
    // Where a range ends another segment may begin.
    S.Recorder->storeCallsOf(Function, "tellOfCode", {0, 8});
    for (const char *Source : {"sections.c", "throws.cpp", "passes.cpp", "catches.cpp"})
      S.add(Source);
    EXPECT_NE(S.call("checkSections", 0), 0);
    EXPECT_EQ(S.call("catchProblem", 1), 1001);
    must(S.Recorder->store(Path, Key));
    Told = CodeToldOf;
    EXPECT_EQ(Told.size(), 4u);
  }
  EXPECT_TRUE(CodeToldOf.empty());

  Session Other;
  auto Tracker = Other.main().createResourceTracker();
  auto Message = messageOf(Other.Loader->add(Tracker, Path, Key));
  EXPECT_NE(Message.find("tellOfCode"), std::string::npos) << Message;
  must(Other.main().define(
      absoluteSymbols({{Other.J->mangleAndIntern("tellOfCode"),
                        {ExecutorAddr::fromPtr(&tellOfCode), JITSymbolFlags::Exported}}})));
  must(Other.Loader->add(Tracker, Path, Key));
  EXPECT_EQ(CodeToldOf.size(), Told.size());
  auto Sizes = [](const std::map<uint64_t, uint64_t> &Of) {
    std::multiset<uint64_t> All;
    for (auto [Start, End] : Of)
      All.insert(End - Start);
    return All;
  };
  EXPECT_EQ(Sizes(CodeToldOf), Sizes(Told));
  for (const char *Function : {"checkSections", "catchProblem"}) {
    auto Behind = CodeToldOf.upper_bound(Other.find(Function));
    ASSERT_NE(Behind, CodeToldOf.begin());
    EXPECT_LT(Other.find(Function), std::prev(Behind)->second);
  }
  EXPECT_NE(Other.call("checkSections", 0), 0);
  must(Tracker->remove());
  EXPECT_TRUE(CodeToldOf.empty());
}

size_t FramesTold = 0;

compat::ActionResult tellOfFrames(const char *Data, size_t Size) {
  using namespace llvm::orc::shared;
  return WrapperFunction<SPSError(SPSExecutorAddrRange)>::handle(Data, Size,
                                                                 [](ExecutorAddrRange Frames) {
                                                                   FramesTold += Frames.size();
                                                                   return Error::success();
                                                                 })
      .release();
}

// Tells of frames as what registers them does.
class FrameTellingPlugin : public compat::StatelessPlugin {
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([](jitlink::LinkGraph &G) {
      using namespace llvm::orc::shared;
      jitlink::SectionRange Frames(*G.findSectionByName(".eh_frame"));
      auto Call = cantFail(WrapperFunctionCall::Create<SPSArgList<SPSExecutorAddrRange>>(
          ExecutorAddr::fromPtr(&tellOfFrames), Frames.getRange()));
      G.allocActions().push_back({std::move(Call), {}});
      return Error::success();
    });
  }
};

TEST_F(Image, HasActionsThatTakeFrames) {
  size_t Told = 0;
  {
    Session S(std::make_shared<FrameTellingPlugin>());
    S.Recorder->storeCallsOf(ExecutorAddr::fromPtr(&tellOfFrames), "tellOfFrames", {0, 8});
    for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
      S.add(Source);
    EXPECT_EQ(S.call("catchProblem", 1), 1001);
    Told = std::exchange(FramesTold, 0);
    must(S.Recorder->store(Path, Key));
  }
  Session Other;
  must(Other.main().define(
      absoluteSymbols({{Other.J->mangleAndIntern("tellOfFrames"),
                        {ExecutorAddr::fromPtr(&tellOfFrames), JITSymbolFlags::Exported}}})));
  must(Other.Loader->add(Other.main(), Path, Key));
  // Without the three terminators that JITLink adds.
  EXPECT_EQ(FramesTold, Told - 3 * 4);
  EXPECT_EQ(Other.call("catchProblem", 1), 1001);
}

// Adds a section to each graph.
class SectionPlugin : public compat::StatelessPlugin {
public:
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PrePrunePasses.push_back([this](jitlink::LinkGraph &G) {
      auto &Section = G.createSection(Name, MemProt::Read);
      auto &Block = G.createZeroFillBlock(Section, 8, ExecutorAddr(), 8, 0);
      G.addAnonymousSymbol(Block, 0, 8, false, true);
      return Error::success();
    });
  }

  std::string Name;
};

TEST_F(Image, NamesConstructorsOfAnyPriority) {
  auto Plugin = std::make_shared<SectionPlugin>();
  Session S(Plugin);
  for (const char *Name : {".init_array", ".init_array.100", ".fini_array.100", ".ctors.65435",
                           ".dtors", ".dtors.65435", ".init_array_of_others"}) {
    Plugin->Name = Name;
    auto Tracker = S.main().createResourceTracker();
    S.add(Tracker, "sections.c");
    EXPECT_NE(S.find("checkSections"), 0u);
    auto Missing = S.Recorder->notStorable();
    bool IsOthers = Name == std::string(".init_array_of_others");
    ASSERT_EQ(Missing.size(), IsOthers ? 0u : 1u) << Name;
    if (!IsOthers) {
      EXPECT_NE(Missing[0].find(std::string("section ") + Name + " "), std::string::npos)
          << Missing[0];
    }
    must(Tracker->remove());
  }
}

TEST_F(Image, HasGraphsWhoseNamesAreNoText) {
  Session S;
  auto Buffer = MemoryBuffer::getFile(std::string(JIT_OBJECT_DIR) + "/sections.c.o");
  must(errorCodeToError(Buffer.getError()));
  must(S.J->addObjectFile(MemoryBuffer::getMemBufferCopy((*Buffer)->getBuffer(), "na\xffme.o")));
  EXPECT_NE(S.call("checkSections", 0), 0);
  must(S.Recorder->store(Path, Key));
}

TEST_F(Image, HasNoOtherPathThanIsGiven) {
  Session S;
  const std::string Longer = Path + '\0' + "longer";
  for (const std::string &Message :
       {messageOf(S.Recorder->store(Longer, Key)), messageOf(S.Loader->add(S.main(), Longer, Key))})
    EXPECT_NE(Message.find("its path has a NUL"), std::string::npos) << Message;
  EXPECT_FALSE(sys::fs::exists(Path));
}

TEST_F(Image, NamesWhatCannotBeStored) {
  Session S;
  must(S.main().define(absoluteSymbols(
      {{S.J->mangleAndIntern("low"), {ExecutorAddr(0x1234), JITSymbolFlags::Exported}}})));
  auto Tracker = S.main().createResourceTracker();
  S.add(Tracker, "narrow.c");
  EXPECT_NE(S.find("narrow"), 0u);
  auto Message = messageOf(S.Recorder->store(Path, Key));
  for (const char *Word : {"narrow.c", "not storable", "low", "Pointer32"})
    EXPECT_NE(Message.find(Word), std::string::npos) << Message;
  EXPECT_EQ(S.Recorder->notStorable().size(), 1u);
  must(Tracker->remove());
  EXPECT_TRUE(S.Recorder->notStorable().empty());
}

// Has data point to an address of this process that a graph knows by itself, as LLVM's redirectable
// symbols do.
class PointingPlugin : public compat::StatelessPlugin {
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([](jitlink::LinkGraph &G) {
      auto &Here = G.addAbsoluteSymbol("here$", ExecutorAddr::fromPtr(&HostNumber), 4,
                                       jitlink::Linkage::Strong, jitlink::Scope::Local, true);
      for (auto *B : G.findSectionByName(".text")->blocks())
        B->addEdge(jitlink::x86_64::Pointer64, 0, Here, 0);
      return Error::success();
    });
  }
};

TEST_F(Image, NamesAddressesOfThisProcess) {
  Session S(std::make_shared<PointingPlugin>());
  S.add("sections.c");
  EXPECT_NE(S.find("checkSections"), 0u);
  auto Message = messageOf(S.Recorder->store(Path, Key));
  for (const char *Word : {"sections.c", "not storable", "here$", "Pointer64"})
    EXPECT_NE(Message.find(Word), std::string::npos) << Message;
}

TEST_F(Image, NamesSymbolsBehindTheirSegment) {
  Session S;
  S.add("blob.c");
  EXPECT_EQ(S.call("blobSize", 1), 15);
  auto Message = messageOf(S.Recorder->store(Path, Key));
  for (const char *Word : {"blob.c", "not storable", "blobEnd", "end of its segment"})
    EXPECT_NE(Message.find(Word), std::string::npos) << Message;
}

TEST_F(Image, RefusesOtherKeysAndDamage) {
  store();
  Session S;
  auto Other = messageOf(S.Loader->add(S.main(), Path, {{"options", "others"}}));
  EXPECT_NE(Other.find("options is \"others\" here and \"of this test\" in it"), std::string::npos)
      << Other;
  std::fstream File(Path, std::ios::in | std::ios::out | std::ios::binary);
  File.seekg(-100, std::ios::end);
  char Byte = char(File.get());
  File.seekp(-100, std::ios::end);
  File.put(char(Byte ^ 1));
  File.close();
  auto Damaged = messageOf(S.Loader->add(S.main(), Path, Key));
  EXPECT_NE(Damaged.find("checksum"), std::string::npos) << Damaged;
  EXPECT_EQ(S.MM->stats().live, 0u);
}

TEST_F(Image, RefusesKeysThatWouldBeCut) {
  store();
  Session S;
  const ImageKey Cut = {{"build-id", std::string("a\0b", 3)}};
  for (auto &Message :
       {messageOf(S.Recorder->store(Path, Cut)), messageOf(S.Loader->add(S.main(), Path, Cut))})
    for (const char *Word : {"build-id", "NUL", "hex"})
      EXPECT_NE(Message.find(Word), std::string::npos) << Message;
  // The file is the one of before.
  must(S.Loader->add(S.main(), Path, Key));
}

TEST_F(Image, LoaderGoesBehindItsSession) {
  store();
  Session S;
  must(S.Loader->add(S.main(), Path, Key));
  EXPECT_DEATH(S.Loader.reset(), "end the session before");
}

TEST_F(Image, NamesWhatIsNotFound) {
  Session S;
  for (const char *Source : {"catches.cpp", "throws.cpp", "passes.cpp"})
    S.add(Source);
  EXPECT_EQ(S.call("catchProblem", 1), 1001);
  must(S.Recorder->store(Path, Key));
  Session Other;
  auto &Alone = must(Other.J->getExecutionSession().createJITDylib("alone"));
  auto Message = messageOf(Other.Loader->add(Alone, Path, Key));
  EXPECT_NE(Message.find("__cxa_begin_catch"), std::string::npos) << Message;
  EXPECT_EQ(Other.MM->stats().live, 0u);
}

} // namespace

int main(int Count, char **Arguments) {
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  if (Count == 4 && std::string(Arguments[1]) == "--run") {
    uint64_t Address = run(Arguments[2]);
    return write(std::stoi(Arguments[3]), &Address, sizeof(Address)) == sizeof(Address) ? 0 : 1;
  }
  ::testing::InitGoogleTest(&Count, Arguments);
  return RUN_ALL_TESTS();
}
