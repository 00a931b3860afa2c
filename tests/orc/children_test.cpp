// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Forked children of a host with an LLJIT: they run what was linked before, link on, and end, as
// with LLVM's own manager.

#include "jit.h"

#if LLVM_VERSION_MAJOR >= 19
#include <llvm/ExecutionEngine/Orc/Debugging/DebuggerSupport.h>
#endif
#include <llvm/Support/raw_ostream.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;

namespace {

class Children : public JITTest {
protected:
  // What a child says in place of gtest's assertions, which are the parent's.
  static void require(bool Condition, const char *What) {
    if (!Condition)
      throw std::runtime_error(What);
  }

  template <typename FnT> pid_t startChild(FnT Body) {
    fflush(nullptr);
    pid_t Child = fork();
    EXPECT_GE(Child, 0);
    if (Child != 0)
      return Child;
    alarm(100);
    try {
      Body();
    } catch (const std::exception &E) {
      errs() << "in a child: " << E.what() << '\n'; // stderr would be an object of this program's
      _exit(1);
    }
    _exit(0);
  }

  static void expectPassed(pid_t Child) {
    int Status = 0;
    ASSERT_EQ(waitpid(Child, &Status, 0), Child);
    EXPECT_EQ(Status, 0) << (WIFSIGNALED(Status) ? strsignal(WTERMSIG(Status)) : "");
  }

  void addExceptions(JITDylib &JD) {
    for (const char *Source : {"throws.cpp", "passes.cpp", "catches.cpp"})
      add(JD, Source);
  }

  int catchProblem(JITDylib &JD, int Value) {
    return must(compat::lookup(*J, JD, "catchProblem")).toPtr<int (*)(int)>()(Value);
  }

  int replaced(JITDylib &JD, int Value) {
    return must(compat::lookup(*J, JD, "replaced")).toPtr<int (*)(int)>()(Value);
  }

  // Links into a JITDylib of its own, throws through that, and removes it.
  void linkAndThrow(const std::string &Name) {
    JITDylib &JD = must(J->createJITDylib(Name));
    compat::linkWithExecutor(*J, JD);
    addExceptions(JD);
    require(catchProblem(JD, 3) == 1003, "what a child has linked throws");
    must(J->getExecutionSession().removeJITDylib(JD));
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Children,
                         ::testing::Values(Kind::LlvmInProcess, Kind::JitmemTwoViews,
                                           Kind::JitmemMprotect),
                         kindName);

TEST_P(Children, RunAndLinkOn) {
  start();
  addExceptions(main());
  ASSERT_EQ(catchProblem(main(), 1), 1001);
  for (int Round = 0; Round != 10; ++Round) {
    pid_t Child = startChild([&] {
      require(catchProblem(main(), Round) == 1000 + Round, "inherited code throws");
      linkAndThrow("OfAChild");
      require(catchProblem(main(), Round) == 1000 + Round, "inherited code still throws");
    });
    linkAndThrow("OfTheParent" + std::to_string(Round));
    expectPassed(Child);
  }
  EXPECT_EQ(catchProblem(main(), 2), 1002);
}

TEST_P(Children, KeepWhatTheParentReplaces) {
  start();
  int ToChild[2];
  ASSERT_EQ(pipe(ToChild), 0);
  auto Old = main().createResourceTracker();
  must(J->addObjectFile(Old, objectFile("replaced.c")));
  auto *Function = must(compat::lookup(*J, "replaced")).toPtr<int (*)(int)>();
  pid_t Child = startChild([&] {
    char Byte;
    close(ToChild[1]);
    require(read(ToChild[0], &Byte, 1) == 0, "the parent is done");
    require(Function(1) == 8, "code that the parent has replaced");
    must(Old->remove());
    linkAndThrow("OfAChild");
  });
  must(Old->remove());
  add("replacing.c");
  EXPECT_EQ(find<int(int)>("replacing")(1), 10);
  close(ToChild[0]);
  close(ToChild[1]);
  expectPassed(Child);
  EXPECT_EQ(find<int(int)>("replacing")(1), 10);
}

TEST_P(Children, EndTheirCopyOfTheSession) {
  start();
  addExceptions(main());
  ASSERT_EQ(catchProblem(main(), 1), 1001);
  expectPassed(startChild([&] {
    must(J->getExecutionSession().endSession());
    J.reset();
    MM.reset();
  }));
  EXPECT_EQ(catchProblem(main(), 1), 1001);
  linkAndThrow("Later");
}

#if LLVM_VERSION_MAJOR >= 19 // which made it a matter of one call
TEST_P(Children, WithDebugRegistration) {
  start();
  must(enableDebuggerSupport(*J));
  add("replaced.c");
  ASSERT_EQ(replaced(main(), 1), 8);
  for (int Round = 0; Round != 5; ++Round)
    expectPassed(startChild([&] {
      require(replaced(main(), Round) == Round + 7, "inherited code");
      linkAndThrow("OfAChild");
    }));
  linkAndThrow("OfTheParent");
}
#endif

TEST_P(Children, OfChildren) {
  start();
  addExceptions(main());
  ASSERT_EQ(catchProblem(main(), 1), 1001);
  // Each generation links into the session that it has inherited.
  std::function<void(int)> Live = [&](int Generation) {
    linkAndThrow("Generation" + std::to_string(Generation));
    require(catchProblem(main(), 5) == 1005, "code of the first process");
    if (Generation == 20)
      return;
    pid_t Child = startChild([&] { Live(Generation + 1); });
    int Status = 1;
    require(waitpid(Child, &Status, 0) == Child && Status == 0, "the next generation");
  };
  expectPassed(startChild([&] { Live(1); }));
  EXPECT_EQ(catchProblem(main(), 1), 1001);
}

} // namespace
