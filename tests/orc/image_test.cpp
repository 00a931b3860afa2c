// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images of what LLJITs have linked: stored by one process, loaded by others, which are this
// program again.

#include "compat.h"
#include "compat_orc.h"

#include <gtest/gtest.h>
#include <jitmem/orc_image.hpp>
#include <jitmem/orc_layer.hpp>

#include <llvm/Support/FileSystem.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;
using jitmem::orc::ImageKey;
using jitmem::orc::ImageLoader;
using jitmem::orc::ImagePlugin;
using jitmem::orc::ImageRecorder;
using jitmem::orc::MemoryManager;

namespace {

void must(Error Err) {
  if (Err)
    throw std::runtime_error(toString(std::move(Err)));
}
template <typename T> T must(Expected<T> Value) {
  must(Value.takeError());
  return std::move(*Value);
}

template <typename T> T &must(Expected<T &> Value) {
  must(Value.takeError());
  return *Value;
}

std::string messageOf(Error Err) { return toString(std::move(Err)); }

const ImageKey Key = {{"options", "of this test"}};
const char *const Stored[] = {"throws.cpp", "passes.cpp", "catches.cpp", "stored.cpp"};

int HostNumber = 100;

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

// An LLJIT whose objects are recorded, and into which images are loaded.
class Session {
public:
  explicit Session(std::shared_ptr<ObjectLinkingLayer::Plugin> Other = nullptr)
      : Recorder(must(ImageRecorder::Create())), MM(must(MemoryManager::CreateInProcess())) {
    LLJITBuilder Builder;
    compat::setLinkingLayer(
        Builder, [this, Other](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
          auto Layer = jitmem::orc::createObjectLayer(ES, *MM);
          if (!Layer)
            return Layer.takeError();
          if (Other)
            (*Layer)->addPlugin(Other);
          (*Layer)->addPlugin(std::make_unique<ImagePlugin>(Recorder));
          return std::move(*Layer);
        });
    J = must(Builder.create());
    Loader = std::make_unique<ImageLoader>(J->getExecutionSession(), *MM);
    must(J->getMainJITDylib().define(
        absoluteSymbols({{J->mangleAndIntern("hostNumber"),
                          {ExecutorAddr::fromPtr(&HostNumber), JITSymbolFlags::Exported}}})));
  }
  ~Session() {
    // What is loaded goes with the session, and the loader must hear of it.
    cantFail(J->getExecutionSession().endSession());
    Loader.reset();
    J.reset();
    EXPECT_EQ(MM->stats().live, 0u);
  }

  JITDylib &main() { return J->getMainJITDylib(); }
  void add(ResourceTrackerSP RT, const std::string &Source) {
    auto Buffer = MemoryBuffer::getFile(std::string(JIT_OBJECT_DIR) + "/" + Source + ".o");
    must(errorCodeToError(Buffer.getError()));
    must(J->addObjectFile(std::move(RT), std::move(*Buffer)));
  }
  void add(const std::string &Source) { add(main().getDefaultResourceTracker(), Source); }
  uint64_t find(const std::string &Name) { return must(J->lookup(Name)).getValue(); }
  int call(const std::string &Name, int Value) {
    return must(J->lookup(Name)).toPtr<int (*)(int)>()(Value);
  }

  std::shared_ptr<ImageRecorder> Recorder;
  std::unique_ptr<MemoryManager> MM;
  std::unique_ptr<LLJIT> J;
  std::unique_ptr<ImageLoader> Loader;
};

// A file of one test.
class Image : public ::testing::Test {
protected:
  Image() : Path(::testing::TempDir() + "jitmem-orc-image-" + std::to_string(getpid())) {}
  ~Image() override { std::remove(Path.c_str()); }

  // Links objects, has them run, and stores them.
  void store() {
    Session S;
    for (const char *Source : Stored)
      S.add(Source);
    EXPECT_EQ(S.call("useEverything", 5), 1137);
    Where.insert(S.find("useEverything"));
    must(S.Recorder->store(Path, Key));
  }

  std::string Path;
  std::set<uint64_t> Where;
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

// Removes a tracker once the fixups of a graph are applied.
class RemovingPlugin : public compat::StatelessPlugin {
public:
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostFixupPasses.push_back([this](jitlink::LinkGraph &) {
      auto Removed = std::move(Tracker);
      return Removed ? Removed->remove() : Error::success();
    });
  }

  ResourceTrackerSP Tracker;
};

TEST_F(Image, HasNothingOfATrackerThatIsRemovedWhileItLinks) {
  auto Plugin = std::make_shared<RemovingPlugin>();
  Session S(Plugin);
  Plugin->Tracker = S.main().createResourceTracker();
  S.add(Plugin->Tracker, "narrow.c");
  must(S.main().define(absoluteSymbols(
      {{S.J->mangleAndIntern("low"), {ExecutorAddr(0x1234), JITSymbolFlags::Exported}}})));
  EXPECT_FALSE(bool(expectedToOptional(S.J->lookup("narrow"))));
  EXPECT_FALSE(Plugin->Tracker);
  EXPECT_TRUE(S.Recorder->notStorable().empty());
  S.add("sections.c");
  EXPECT_NE(S.call("checkSections", 0), 0);
  must(S.Recorder->store(Path, Key));
}

TEST_F(Image, HasWhatIsLinkedWhenItIsStored) {
  Session S;
  auto Tracker = S.main().createResourceTracker();
  for (const char *Source : Stored)
    S.add(Tracker, Source);
  EXPECT_EQ(S.call("useEverything", 5), 1137);
  must(Tracker->remove());
  S.add("sections.c");
  EXPECT_NE(S.call("checkSections", 0), 0);
  must(S.Recorder->store(Path, Key));
  Session Other;
  must(Other.Loader->add(Other.main(), Path, Key));
  EXPECT_EQ(Other.call("checkSections", 0), S.call("checkSections", 0));
  EXPECT_FALSE(bool(expectedToOptional(Other.J->lookup("useEverything"))));
}

// Stores whenever a graph is recorded.
class StoringPlugin : public compat::StatelessPlugin {
public:
  StoringPlugin(std::shared_ptr<ImageRecorder> R, std::string Path)
      : Recorder(std::move(R)), Path(std::move(Path)) {}

  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostFixupPasses.push_back([this](jitlink::LinkGraph &) {
      auto Err = Recorder->store(Path, Key);
      Answers.push_back(Err ? messageOf(std::move(Err)) : "stored");
      return Error::success();
    });
  }

  std::shared_ptr<ImageRecorder> Recorder;
  std::string Path;
  std::vector<std::string> Answers;
};

TEST_F(Image, IsNotStoredWithoutWhatIsBeingLinked) {
  Session S;
  auto Plugin = std::make_shared<StoringPlugin>(S.Recorder, Path);
  static_cast<ObjectLinkingLayer &>(S.J->getObjLinkingLayer()).addPlugin(Plugin);
  for (const char *Source : {"catches.cpp", "throws.cpp", "passes.cpp"})
    S.add(Source);
  EXPECT_EQ(S.call("catchProblem", 1), 1001);
  // The one that refers to the others is recorded before they are.
  ASSERT_EQ(Plugin->Answers.size(), 3u);
  EXPECT_NE(Plugin->Answers[0].find("being linked"), std::string::npos) << Plugin->Answers[0];
  EXPECT_EQ(Plugin->Answers[2], "stored");
  // One that fails is none that is being linked.
  S.add("narrow.c");
  EXPECT_FALSE(bool(expectedToOptional(S.J->lookup("narrow"))));
  EXPECT_TRUE(S.Recorder->notStorable().empty());
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
