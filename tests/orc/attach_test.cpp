// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Executors that are killed while a manager is made for them, and while ORC links for them.

#include "executors.h"
#include "tasks.h"

#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>

#include <atomic>
#include <functional>
#include <thread>

using namespace llvm;
using namespace llvm::orc;

namespace {

// Tells of each message that was sent.
class Telling : public SimpleRemoteEPCTransport {
public:
  static Expected<std::unique_ptr<Telling>> Create(SimpleRemoteEPCTransportClient &C, int In,
                                                   int Out, std::function<void()> Sent) {
    auto FD = FDSimpleRemoteEPCTransport::Create(C, In, Out);
    if (!FD)
      return FD.takeError();
    auto T = std::make_unique<Telling>();
    T->FD = std::move(*FD);
    T->Sent = std::move(Sent);
    return T;
  }

  Error start() override { return FD->start(); }
  Error sendMessage(SimpleRemoteEPCOpcode Op, uint64_t Sequence, ExecutorAddr Tag,
                    ArrayRef<char> Bytes) override {
    Error Err = FD->sendMessage(Op, Sequence, Tag, Bytes);
    Sent();
    return Err;
  }
  void disconnect() override { FD->disconnect(); }

private:
  std::unique_ptr<FDSimpleRemoteEPCTransport> FD;
  std::function<void()> Sent;
};

// As jitmem or LLVM says it.
bool saysItIsGone(StringRef Message) {
  return Message.contains("executor is gone") || Message.contains("disconnect");
}

class Attach : public ::testing::TestWithParam<Setting> {
protected:
  // Makes a manager for an executor that is killed after so many messages. Returns whether there
  // were as many.
  bool killAfter(int Messages) {
    SCOPED_TRACE(Messages);
    Pipe ToChild, FromChild;
    ChildProcess Child(commandOf(GetParam()), ToChild.Read.Number, FromChild.Write.Number);
    ToChild.Read.close();
    FromChild.Write.close();
    SimpleRemoteEPC::Setup Setup;
    Setup.CreateMemoryManager = [](SimpleRemoteEPC &) {
      return jitlink::InProcessMemoryManager::Create(); // unused
    };
    std::atomic<int> Left{0}; // none of the EPC's own
    auto Sent = [&] {
      if (--Left == 0)
        Child.kill();
    };
    ExecutionSession ES(must(
        SimpleRemoteEPC::Create<Telling>(std::make_unique<ThreadPerTask>(), std::move(Setup),
                                         FromChild.Read.release(), ToChild.Write.release(), Sent)));
    ES.setErrorReporter([](Error Err) { consumeError(std::move(Err)); }); // of its connection
    Left = Messages;
    auto MM = createManager(GetParam(), ES.getExecutorProcessControl());
    bool Killed = Left <= 0;
    std::string Why;
    if (MM)
      MM->reset(); // the last message may not have been waited for
    else
      Why = toString(MM.takeError());
    EXPECT_TRUE(Why.empty() || (Killed && saysItIsGone(Why))) << Why;
    consumeError(ES.endSession());
    EXPECT_EQ(Child.wait(), Killed ? "signal 9" : "exit 0");
    return Killed;
  }
};
INSTANTIATE_TEST_SUITE_P(Settings, Attach, everySetting(), settingName);

TEST_P(Attach, AndDieAfterEachMessage) {
  int Messages = 1;
  while (!HasFailure() && killAfter(Messages))
    ++Messages;
  // Where the executor has one service, nothing is asked of it before memory is.
  bool AsksNothing = LLVM_VERSION_MAJOR < 16 && GetParam() == Setting::StockSimple;
  EXPECT_EQ(Messages == 1, AsksNothing) << "messages: " << Messages - 1;
}

class Link : public ::testing::TestWithParam<Setting> {};
INSTANTIATE_TEST_SUITE_P(Settings, Link, everySetting(), settingName);

TEST_P(Link, UntilTheExecutorDies) {
  for (int Instant : {0, 1, 2, 5, 10, 20}) {
    SCOPED_TRACE(Instant);
    Session S(GetParam());
    Countdown Linked(Instant + 1);
    std::string Message;
    std::thread Linking([&] {
      Linked.arrive();
      for (int I = 0; Message.empty(); ++I) {
        std::string Name = "f" + std::to_string(I);
        Error Err = S.J->addIRModule(functionReturning(Name, I));
        if (!Err)
          Err = compat::lookup(*S.J, Name).takeError();
        Message = toString(std::move(Err));
        Linked.arrive();
      }
    });
    EXPECT_TRUE(Linked.wait());
    S.Child->kill();
    Linking.join();
    EXPECT_TRUE(mentions(Message, {"f"})) << "what could not be linked";
    EXPECT_EQ(S.end(), "signal 9");
    std::string Errors = S.takeErrors();
    EXPECT_TRUE(saysItIsGone(Errors));
    // By jitmem, that is: on LLVM 19 each object's eh-frames are a call of LLVM's, which fails too.
    EXPECT_LE(StringRef(Errors).count("executor is gone"), 3u)
        << "it is said for each allocation: " << Errors;
  }
}

} // namespace
