// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem/llvm_c.h: what hosts do wrong is answered by an error. examples/llvm-c does it right.

#include "instrumented.h"

#include <jitmem/llvm_c.h>
#include <jitmem/orc.hpp>

#include <llvm-c/ExecutionEngine.h>
#include <llvm-c/OrcEE.h>
#include <llvm/ExecutionEngine/Orc/Core.h>
#include <llvm/ExecutionEngine/Orc/ExecutorProcessControl.h>
#include <llvm/Support/TargetSelect.h>

#include <gtest/gtest.h>

#include <cstdlib>
#include <fcntl.h>
#include <string>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <utility>

using namespace llvm;
using namespace llvm::orc;

namespace {

// The text of an error, which goes; empty for none.
std::string textOf(LLVMErrorRef E) {
  if (!E)
    return "";
  char *Message = LLVMGetErrorMessage(E);
  std::string Text(Message);
  LLVMDisposeErrorMessage(Message);
  return Text;
}

#define EXPECT_HAS(Text, Part) EXPECT_NE((Text).find(Part), std::string::npos) << (Text)

bool isOpen(int Descriptor) { return fcntl(Descriptor, F_GETFD) >= 0; }

struct Manager {
  explicit Manager(uint32_t Kind = JITMEM_IN_PROCESS_AUTO) {
    EXPECT_EQ(jitmem_mapper_in_process(Kind, &Mapper, nullptr), JITMEM_OK);
    EXPECT_EQ(jitmem_manager_create(Mapper, nullptr, &Handle, nullptr), JITMEM_OK);
  }
  ~Manager() {
    jitmem_manager_free(Handle);
    jitmem_mapper_free(Mapper);
  }
  Manager(const Manager &) = delete;
  Manager &operator=(const Manager &) = delete;

  jitmem_mapper *Mapper = nullptr;
  jitmem_manager *Handle = nullptr;
};

// A session of this process, and what is reported to it.
struct Session {
  Session() : ES(cantFail(SelfExecutorProcessControl::Create())) {
    ES.setErrorReporter([this](Error E) { Reported += toString(std::move(E)); });
  }
  ~Session() { cantFail(ES.endSession()); }
  LLVMOrcExecutionSessionRef ref() { return reinterpret_cast<LLVMOrcExecutionSessionRef>(&ES); }
  std::string take() { return std::exchange(Reported, {}); }

  std::string Reported;
  ExecutionSession ES;
};

// An executor, with the ends of two pipes to it.
struct Executor {
  Executor() {
    int To[2], From[2];
    EXPECT_EQ(pipe2(To, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(From, O_CLOEXEC), 0);
    std::string Descriptors = "filedescs=" + std::to_string(To[0]) + "," + std::to_string(From[1]);
    Child = fork();
    if (Child == 0) {
      fcntl(To[0], F_SETFD, 0);
      fcntl(From[1], F_SETFD, 0);
      execl(JITMEM_EXECUTOR, JITMEM_EXECUTOR, Descriptors.c_str(), nullptr);
      _exit(127);
    }
    close(To[0]);
    close(From[1]);
    In = From[0];
    Out = To[1];
  }
  ~Executor() {
    int Status = 0;
    EXPECT_EQ(waitpid(Child, &Status, 0), Child);
    EXPECT_EQ(Status, 0);
  }

  pid_t Child = -1;
  int In = -1, Out = -1;
};

TEST(LlvmC, ALayerWantsAManagerOfItsSessionsProcess) {
  Manager Here;
  Session S;
  EXPECT_EQ(jitmem_llvm_object_layer(nullptr, S.ref(), ""), nullptr);
  EXPECT_HAS(S.take(), "the manager is NULL");
  EXPECT_EQ(jitmem_llvm_object_layer(Here.Mapper, S.ref(), ""), nullptr);
  EXPECT_HAS(S.take(), "pass a jitmem_manager");
  for (uint32_t Kind :
       {JITMEM_IN_PROCESS_TWO_VIEWS, JITMEM_IN_PROCESS_MPROTECT, JITMEM_IN_PROCESS_IN_PLACE}) {
    Manager Good(Kind);
    auto Layer = jitmem_llvm_object_layer(Good.Handle, S.ref(), "");
    EXPECT_NE(Layer, nullptr);
    EXPECT_EQ(S.take(), "");
    LLVMOrcDisposeObjectLayer(Layer);
  }
}

TEST(LlvmC, AConnectedSessionTakesNoManagerOfThisProcess) {
  struct Seen {
    Manager Here;
    jitmem_manager *There = nullptr;
    std::string Reported;
    bool WasMade = true;
  } Seen;
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  Executor Process;
  auto Builder = LLVMOrcCreateLLJITBuilder();
  ASSERT_EQ(textOf(jitmem_llvm_connect(Builder, Process.In, Process.Out, nullptr, &Seen.There)),
            "");
  LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(
      Builder,
      [](void *Ctx, LLVMOrcExecutionSessionRef ES, const char *Triple) {
        auto &Of = *static_cast<struct Seen *>(Ctx);
        LLVMOrcExecutionSessionSetErrorReporter(
            ES, [](void *Into, LLVMErrorRef E) { *static_cast<std::string *>(Into) += textOf(E); },
            &Of.Reported);
        Of.WasMade = jitmem_llvm_object_layer(Of.Here.Handle, ES, Triple) != nullptr;
        // The connection's own may be named.
        return jitmem_llvm_object_layer(Of.There, ES, Triple);
      },
      &Seen);
  LLVMOrcLLJITRef J = nullptr;
  ASSERT_EQ(textOf(LLVMOrcCreateLLJIT(&J, Builder)), "");
  EXPECT_FALSE(Seen.WasMade);
  EXPECT_HAS(Seen.Reported, "runs in another process");
  Session S;
  EXPECT_EQ(jitmem_llvm_object_layer(Seen.There, S.ref(), ""), nullptr);
  EXPECT_HAS(S.take(), "jitmem_mapper_in_process");
  EXPECT_EQ(textOf(LLVMOrcDisposeLLJIT(J)), "");
}

TEST(LlvmC, OtherLayersAndNoListenerAreToldToTheSession) {
  Manager Here;
  Session S;
  auto Listener = LLVMCreateGDBRegistrationListener();
  auto RuntimeDyld = LLVMOrcCreateRTDyldObjectLinkingLayerWithSectionMemoryManager(S.ref());
  jitmem_llvm_register_listener(RuntimeDyld, Listener);
  EXPECT_HAS(S.take(), "not JITLink's");
  LLVMOrcDisposeObjectLayer(RuntimeDyld);
  auto Layer = jitmem_llvm_object_layer(Here.Handle, S.ref(), "");
  ASSERT_NE(Layer, nullptr);
  jitmem_llvm_register_listener(Layer, nullptr);
  EXPECT_HAS(S.take(), "it is NULL");
  jitmem_llvm_register_listener(Layer, Listener);
  jitmem_llvm_register_listener(nullptr, Listener);
  EXPECT_EQ(S.take(), "");
  LLVMOrcDisposeObjectLayer(Layer);
}

// Connects with descriptors that fail, which are closed then.
std::string connectFailing(int In, int Out, const jitmem_manager_options *Options = nullptr) {
  auto Builder = LLVMOrcCreateLLJITBuilder();
  auto Text = textOf(jitmem_llvm_connect(Builder, In, Out, Options, nullptr));
  LLVMOrcDisposeLLJITBuilder(Builder);
  EXPECT_FALSE(isOpen(In)) << In;
  EXPECT_FALSE(isOpen(Out)) << Out;
  EXPECT_HAS(Text, "connect to an executor over descriptors " + std::to_string(In) + " (in) and " +
                       std::to_string(Out) + " (out): ");
  return Text;
}

TEST(LlvmC, DescriptorsThatAreNoneAreNamed) {
  int Ends[2];
  ASSERT_EQ(pipe2(Ends, O_CLOEXEC), 0);
  EXPECT_HAS(connectFailing(-1, Ends[1]), "in: Bad file descriptor; pass the ends of two pipes");
  EXPECT_HAS(connectFailing(Ends[0], -1), "out: Bad file descriptor; pass the ends of two pipes");
  EXPECT_HAS(connectFailing(-1, -1), "in: Bad file descriptor");
  ASSERT_EQ(pipe2(Ends, O_CLOEXEC), 0);
  EXPECT_HAS(textOf(jitmem_llvm_connect(nullptr, Ends[0], Ends[1], nullptr, nullptr)),
             "the builder is NULL");
  EXPECT_FALSE(isOpen(Ends[0]));
  EXPECT_FALSE(isOpen(Ends[1]));
}

// LLVM's transport would wait for ever for its end.
TEST(LlvmC, OneSocketForBothIsRefused) {
  int Ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, Ends), 0);
  int Same = fcntl(Ends[0], F_DUPFD_CLOEXEC, 0);
  EXPECT_HAS(connectFailing(Ends[0], Same), "two pipes");
  EXPECT_HAS(connectFailing(Ends[1], Ends[1]), "two pipes");
}

TEST(LlvmC, AnExecutorThatIsGoneIsTold) {
  int To[2], From[2];
  ASSERT_EQ(pipe2(To, O_CLOEXEC), 0);
  ASSERT_EQ(pipe2(From, O_CLOEXEC), 0);
  close(To[0]);
  close(From[1]);
  EXPECT_HAS(connectFailing(From[0], To[1]), "; see that the executor runs");
}

TEST(LlvmC, OptionsThatAreRefusedAreTold) {
  Executor Process;
  jitmem_manager_options Options = {};
  Options.struct_size = sizeof(Options);
  Options.window_size = UINT64_C(1) << 40;
  EXPECT_HAS(connectFailing(Process.In, Process.Out, &Options), "window");
}

TEST(LlvmC, ArgumentsOfMainAreChecked) {
  Session S;
  int32_t Result = 0;
  auto Main = [](int Count, char *Strings[]) { return Strings[Count] ? -1 : Count; };
  int (*Function)(int, char *[]) = Main;
  auto Address = static_cast<LLVMOrcExecutorAddress>(reinterpret_cast<uintptr_t>(Function));
  const char *Strings[] = {"program", "argument", nullptr};
  auto Run = [&](LLVMOrcExecutorAddress Where, int Count, const char *const *Of, int32_t *Into) {
    return textOf(jitmem_llvm_run_as_main(S.ref(), Where, Count, Of, Into));
  };
  EXPECT_EQ(Run(Address, 2, Strings, &Result), "");
  EXPECT_EQ(Result, 2);
  EXPECT_EQ(Run(Address, 0, nullptr, &Result), "");
  EXPECT_HAS(Run(Address, 3, Strings, &Result), "argv[2] of 3 is NULL");
  EXPECT_HAS(Run(Address, -1, Strings, &Result), "argc is -1");
  EXPECT_HAS(Run(Address, 1, nullptr, &Result), "argv is NULL");
  EXPECT_HAS(Run(Address, 2, Strings, nullptr), "the result is NULL");
  EXPECT_HAS(Run(0, 2, Strings, &Result), "the address is 0");
  EXPECT_HAS(textOf(jitmem_llvm_run_as_main(nullptr, Address, 2, Strings, &Result)),
             "the session is NULL");
}

} // namespace
