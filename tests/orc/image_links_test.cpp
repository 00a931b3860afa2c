// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Images of sessions in which graphs are linked and removed meanwhile.

#include "image.h"
#include "threads.h"

#include <atomic>
#include <chrono>
#include <future>
#include <mutex>
#include <shared_mutex>
#include <sys/syscall.h>
#include <thread>
#include <vector>

namespace {

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

// Holds a link that other threads begin until a thread sleeps in what it has come to by then.
class HeldPlugin : public compat::StatelessPlugin {
public:
  void modifyPassConfig(MaterializationResponsibility &, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([this](jitlink::LinkGraph &) {
      Begun.set_value();
      while (!IsStoring || !sleeps(Thread))
        std::this_thread::yield();
      return Error::success();
    });
  }

  std::promise<void> Begun;
  std::atomic<bool> IsStoring{false};
  const long Thread = syscall(SYS_gettid);
};

TEST_F(Image, IsStoredBehindWhatIsBeingLinked) {
  auto Plugin = std::make_shared<HeldPlugin>();
  Session S(Plugin);
  S.add("sections.c");
  auto Found = std::async(std::launch::async, [&] { return S.find("checkSections"); });
  Plugin->Begun.get_future().get();
  auto Message = messageOf(S.Recorder->store(Path, Key));
  for (const char *Word : {"sections.c", "being linked", "time"})
    EXPECT_NE(Message.find(Word), std::string::npos) << Message;
  Message = messageOf(S.Recorder->store(Path, Key, std::chrono::milliseconds(1)));
  EXPECT_NE(Message.find("being linked"), std::string::npos) << Message;
  Plugin->IsStoring = true;
  Message = messageOf(S.Recorder->store(Path, Key, std::chrono::milliseconds::max()));
  EXPECT_EQ(Message, "");
  EXPECT_NE(Found.get(), 0u);
  Session Other;
  must(Other.Loader->add(Other.main(), Path, Key));
  EXPECT_EQ(Other.call("checkSections", 0), S.call("checkSections", 0));
}

class Rest {
public:
  std::shared_lock<std::shared_mutex> mayLookUp() {
    std::lock_guard<std::mutex> Turn(Next);
    return std::shared_lock<std::shared_mutex>(Lookups);
  }
  Error store(ImageRecorder &Recorder, StringRef Path) {
    std::lock_guard<std::mutex> Turn(Next);
    std::unique_lock<std::shared_mutex> NoLookups(Lookups);
    return Recorder.store(Path, Key, std::chrono::seconds(10));
  }

private:
  std::mutex Next;
  std::shared_mutex Lookups;
};

TEST_F(Image, IsStoredWhenThreadsThatLinkComeToRest) {
  Session S;
  Rest All;
  std::atomic<bool> Over{false};
  std::atomic<int> Linked{0};
  std::vector<std::thread> Threads;
  for (const char *Name : {"one", "two"})
    Threads.emplace_back([&, Name] {
      auto &Own = must(S.J->createJITDylib(Name));
      while (!Over) {
        auto Tracker = Own.createResourceTracker();
        S.add(Tracker, "sections.c");
        {
          auto MayLookUp = All.mayLookUp();
          must(S.J->lookup(Own, "checkSections"));
        }
        ++Linked;
        must(Tracker->remove());
      }
    });
  for (int Store = 0; Store != 10; ++Store) {
    int Before = Linked;
    while (Linked < Before + 4)
      std::this_thread::yield();
    EXPECT_EQ(messageOf(All.store(*S.Recorder, Path)), "");
  }
  Over = true;
  for (auto &Thread : Threads)
    Thread.join();
}

// Says that a link has failed while it goes on.
class FailingPlugin : public compat::StatelessPlugin {
public:
  void modifyPassConfig(MaterializationResponsibility &MR, jitlink::LinkGraph &,
                        jitlink::PassConfiguration &Config) override {
    Config.PostAllocationPasses.push_back([this, &MR](jitlink::LinkGraph &) {
      return Told ? Told->notifyFailed(MR) : Error::success();
    });
  }

  std::unique_ptr<ImagePlugin> Told;
};

TEST_F(Image, RefusesLinksThatWereSaidToHaveFailed) {
  auto Plugin = std::make_shared<FailingPlugin>();
  Session S(Plugin);
  Plugin->Told = std::make_unique<ImagePlugin>(S.Recorder);
  std::string Reported;
  S.J->getExecutionSession().setErrorReporter(
      [&](Error Err) { Reported += messageOf(std::move(Err)); });
  auto Tracker = S.main().createResourceTracker();
  S.add(Tracker, "sections.c");
  EXPECT_FALSE(bool(expectedToOptional(S.J->lookup("checkSections"))));
  EXPECT_NE(Reported.find("sections.c"), std::string::npos) << Reported;
  EXPECT_NE(Reported.find("has failed"), std::string::npos) << Reported;
  must(Tracker->remove());
  Plugin->Told.reset();
  S.add("sections.c");
  EXPECT_NE(S.call("checkSections", 0), 0);
  must(S.Recorder->store(Path, Key));
}

TEST_F(Image, HasWhatOtherTrackersHaveTaken) {
  Session S;
  auto First = S.main().createResourceTracker(), Second = S.main().createResourceTracker();
  S.add(First, "sections.c");
  EXPECT_NE(S.call("checkSections", 0), 0);
  S.add(Second, "narrow.c");
  must(S.main().define(absoluteSymbols(
      {{S.J->mangleAndIntern("low"), {ExecutorAddr(0x1234), JITSymbolFlags::Exported}}})));
  EXPECT_NE(S.find("narrow"), 0u);
  First->transferTo(*Second);
  EXPECT_EQ(S.Recorder->notStorable().size(), 1u);
  must(Second->remove());
  EXPECT_TRUE(S.Recorder->notStorable().empty());
  must(S.Recorder->store(Path, Key));
  Session Other;
  must(Other.Loader->add(Other.main(), Path, Key));
  EXPECT_FALSE(bool(expectedToOptional(Other.J->lookup("checkSections"))));
}

} // namespace
