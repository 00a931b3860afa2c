// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One session whose objects run in several executors.

#include "executors.h"
#include "tasks.h"
#include "threads.h"

#include <llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h>

#include <atomic>
#include <csignal>
#include <future>
#include <string>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

// Our own program with the same addresses each time, and an EPC that has a session of its own until
// the session that links takes it.
struct Member {
  explicit Member(std::unique_ptr<TaskDispatcher> Tasks = std::make_unique<ThreadPerTask>()) {
    Pipe ToChild, FromChild;
    std::vector<std::string> Command = {"/usr/bin/setarch", "-R"};
    for (std::string &Word : commandOf(Setting::ProgramShared))
      Command.push_back(Word);
    Child = std::make_unique<ChildProcess>(Command, ToChild.Read.Number, FromChild.Write.Number);
    ToChild.Read.close();
    FromChild.Write.close();
    SimpleRemoteEPC::Setup Setup;
    Setup.CreateMemoryManager = [](SimpleRemoteEPC &) {
      return jitlink::InProcessMemoryManager::Create(); // unused
    };
    EPC = must(SimpleRemoteEPC::Create<FDSimpleRemoteEPCTransport>(
        std::move(Tasks), std::move(Setup), FromChild.Read.release(), ToChild.Write.release()));
    Control = EPC.get();
  }

  void ownSession() {
    ES = std::make_unique<ExecutionSession>(std::move(EPC));
    ES->setErrorReporter([](Error Err) { consumeError(std::move(Err)); }); // of its connection
  }

  int run(ExecutorAddr Function, int Argument = 0) {
    return must(Control->runAsIntFunction(Function, Argument));
  }

  std::unique_ptr<ChildProcess> Child;
  std::unique_ptr<ExecutorProcessControl> EPC;
  ExecutorProcessControl *Control;
  std::unique_ptr<ExecutionSession> ES;
};

TEST(Group, ObjectsOfOneSessionRunInFourExecutors) {
  std::vector<Member> Members(4);
  std::vector<ExecutorProcessControl *> EPCs;
  for (Member &M : Members)
    EPCs.push_back(M.Control);
  std::atomic<int> Joined{0}, Left{0};
  jitmem::orc::Options O;
  std::unique_ptr<jitmem::orc::MemoryManager> MM;
  std::string Refused;
  O.GroupObserver = [&](const jitmem_group_event &Event) {
    ++(Event.change == JITMEM_GROUP_JOINED ? Joined : Left);
    // What runs inside of a call may make another one.
    if (Event.change == JITMEM_GROUP_REMOVED)
      Refused = messageOf(MM->removeExecutor(77));
  };
  MM = must(jitmem::orc::MemoryManager::CreateGroup(EPCs, O));
  EXPECT_EQ(Joined, 4);
  for (size_t I = 1; I != Members.size(); ++I)
    Members[I].ownSession();

  LLJITBuilder Builder;
  Builder.setExecutorProcessControl(std::move(Members[0].EPC));
  Builder.setPlatformSetUp(setUpInactivePlatform);
  compat::setLinkingLayer(Builder,
                          [&](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
                            auto Layer = std::make_unique<ObjectLinkingLayer>(ES, *MM);
                            if (Error Err = jitmem::orc::detail::addFrames(*Layer, ES))
                              return Err;
                            return Layer;
                          });
  auto J = must(Builder.create());
  J->getExecutionSession().setErrorReporter([](Error Err) { consumeError(std::move(Err)); });
  compat::linkWithExecutor(*J, J->getMainJITDylib());
  auto Tracker = J->getMainJITDylib().createResourceTracker();
  must(J->addObjectFile(Tracker, objectFile("counting.c")));
  ExecutorAddr Next = must(compat::lookup(*J, "countOn"));
  ExecutorAddr Who = must(compat::lookup(*J, "whoRunsThis"));
  for (size_t I = 0; I != Members.size(); ++I) {
    EXPECT_EQ(Members[I].run(Next, static_cast<int>(I)), static_cast<int>(40 + I));
    EXPECT_EQ(Members[I].run(Who), Members[I].Child->id());
  }

  // A fifth one joins, and has all as it was linked.
  Member Late;
  uint64_t Number = must(MM->addExecutor(*Late.Control, "late"));
  EXPECT_EQ(Number, 5u);
  EXPECT_EQ(Late.run(Next, 2), 42);
  Late.ownSession();

  // One that is killed does not keep the others from linking.
  Members[2].Child->kill();
  EXPECT_TRUE(eventually([&] { return Left == 1; }));
  must(J->addObjectFile(objectFile("stepped.c")));
  ExecutorAddr Later = must(compat::lookup(*J, "linked_inner"));
  EXPECT_EQ(Members[0].run(Later, 1), 102);
  EXPECT_EQ(Members[3].run(Later, 2), 104);
  EXPECT_EQ(Late.run(Later, 3), 106);
  must(MM->removeExecutor(Number));
  EXPECT_TRUE(mentions(Refused, {"remove executor 77"}));
  EXPECT_TRUE(mentions(messageOf(MM->removeExecutor(Number)), {"remove executor 5"}));
  must(Tracker->remove());
  Tracker = nullptr; // its session ends below
  must(J->addObjectFile(objectFile("counting.c")));
  Next = must(compat::lookup(*J, "countOn"));
  EXPECT_EQ(Members[0].run(Next, 1), 41);
  EXPECT_EQ(Members[3].run(Next, 2), 42);
  J.reset();
  MM.reset();
  for (Member *M : {&Members[1], &Members[2], &Members[3], &Late})
    must(M->ES->endSession());
}

// A callback that the dispatcher runs in place keeps its link from being cut.
TEST(Group, ChangesWhileACallbackKeepsALinkInUse) {
  Member First(std::make_unique<InPlaceTaskDispatcher>());
  std::vector<Member> Others(2);
  Member Late;
  std::atomic<bool> FirstIsGone{false};
  jitmem::orc::Options O;
  O.GroupObserver = [&](const jitmem_group_event &Event) {
    if (Event.change == JITMEM_GROUP_REMOVED && Event.executor == 1)
      FirstIsGone = true;
  };
  auto MM = must(jitmem::orc::MemoryManager::CreateGroup(
      {First.Control, Others[0].Control, Others[1].Control}, O));

  // All of them have to map a chunk for it, and one can't yet.
  pid_t Last = Others.back().Child->id();
  ASSERT_EQ(kill(Last, SIGSTOP), 0);
  ASSERT_EQ(waitpid(Last, nullptr, WUNTRACED), Last);
  auto G = compat::makeGraph("graph");
  addZeroFill(*G, addSection(*G, "data", AllocGroup(MemProt::Read | MemProt::Write)), 128 << 20);
  auto Allocated = must(MM->allocate(nullptr, *G));
  std::promise<jitlink::JITLinkMemoryManager::FinalizedAlloc> Finalized;
  std::thread Removing;
  std::string RemovedFirst, RemovedSecond, Added;
  Allocated->finalize([&](Expected<jitlink::JITLinkMemoryManager::FinalizedAlloc> Result) {
    std::promise<long> Started;
    Removing = std::thread([&] {
      Started.set_value(syscall(SYS_gettid));
      RemovedFirst = toString(MM->removeExecutor(1));
    });
    long Thread = Started.get_future().get();
    // What is left of that is to cut the link, when this has returned.
    EXPECT_TRUE(eventually([&] { return FirstIsGone && sleeps(Thread); }));
    RemovedSecond = toString(MM->removeExecutor(2));
    Added = toString(MM->addExecutor(*Late.Control, "late").takeError());
    Finalized.set_value(must(std::move(Result)));
  });
  ASSERT_EQ(kill(Last, SIGCONT), 0);
  must(MM->deallocate(Finalized.get_future().get()));
  Removing.join();
  EXPECT_EQ(RemovedFirst + RemovedSecond + Added, "");
  MM.reset();
  for (Member *M : {&First, &Others[0], &Others[1], &Late}) {
    M->ownSession();
    must(M->ES->endSession());
  }
}

TEST(Group, OnlyGroupsHaveExecutorsThatJoin) {
  auto MM = must(jitmem::orc::MemoryManager::CreateInProcess());
  EXPECT_TRUE(mentions(messageOf(MM->removeExecutor(1)), {"no group", "CreateGroup"}));
}

} // namespace
