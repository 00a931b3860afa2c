// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// No mapping is writable and executable, and no page that was writable becomes executable.

#include "kit.h"

#include <atomic>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#ifndef PR_SET_MDWE // glibc 2.38
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

using namespace llvm;
using namespace llvm::jitlink;

namespace {

// Valgrind's translated code is writable and executable, and is in the same address space.
bool underValgrind() {
  for (const Mapping &M : readMappings())
    if (M.Path.find("vgpreload") != std::string::npos)
      return true;
  return false;
}

std::string writableAndExecutable() {
  for (const Mapping &M : readMappings())
    if (M.writable() && M.executable())
      return M.Perms + " " + M.Path;
  return "";
}

class Mappings : public ManagerTest {
protected:
  void SetUp() override {
    if (underValgrind())
      GTEST_SKIP() << "valgrind's own mappings are writable and executable";
  }
};
INSTANTIATE_TEST_SUITE_P(Managers, Mappings, everyKind(), kindName);

class TwoViews : public ManagerTest {};
INSTANTIATE_TEST_SUITE_P(Managers, TwoViews, ::testing::Values(Kind::JitmemTwoViews), kindName);

TEST_P(Mappings, NoneIsWritableAndExecutableAtAnyStep) {
  static std::string SeenInAction;
  SeenInAction = "did not run";
  auto Look = [](const char *, size_t) -> compat::ActionResult {
    SeenInAction = writableAndExecutable();
    char Success = 0;
    return compat::ActionBuffer::copyFrom(&Success, 1).release();
  };
  for (int Round = 0; Round != 20; ++Round) {
    auto G = compat::makeGraph("graph");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(Round), {16});
    addContent(*G, addSection(*G, "init", {RX, MemLifetime::Finalize}), std::string(3000, '\xc3'));
    addContent(*G, addSection(*G, "data", RW), std::string(3000, 'd'));
    G->allocActions().push_back({{ExecutorAddr::fromPtr(+Look), {}}, {}});
    InFlight Alloc = allocate(*G);
    EXPECT_EQ(writableAndExecutable(), "");
    Text.getAlreadyMutableContent()[1] = char(Round + 1);
    Placed P = finalize(std::move(Alloc));
    EXPECT_EQ(SeenInAction, "");
    EXPECT_EQ(writableAndExecutable(), "");
    EXPECT_EQ(call(Text.getAddress()), Round + 1);
    must(P.free());
    EXPECT_EQ(writableAndExecutable(), "");
  }
}

TEST_P(Mappings, NoneIsWritableAndExecutableWhileThreadsWork) {
  std::atomic<int> Working{4};
  std::vector<std::string> Errors(4);
  std::vector<std::thread> Threads;
  for (int T = 0; T != 4; ++T)
    Threads.emplace_back([&, T] {
      for (int I = 0; I != 300; ++I)
        if (auto P = tryPiece(I % 2 ? RX : RW, 1 + I * 37 % 9000); !P)
          Errors[T] = toString(P.takeError());
      --Working;
    });
  std::string Seen;
  int Looks = 0;
  while (Working || !Looks) {
    ++Looks;
    if (Seen.empty())
      Seen = writableAndExecutable();
  }
  for (std::thread &T : Threads)
    T.join();
  EXPECT_EQ(Seen, "") << "seen in one of " << Looks << " looks";
  EXPECT_EQ(Errors, std::vector<std::string>(4));
}

// Anonymous or, under valgrind, of a memfd.
static bool isSharedMemory(const Mapping &M) {
  return M.Path.rfind("/dev/zero", 0) == 0 || M.Path.rfind("/memfd:jitmem", 0) == 0;
}

TEST_P(TwoViews, CodeIsAReadOnlyViewOfSharedMemory) {
  std::vector<Piece> Code;
  for (int I = 0; I != 40; ++I)
    Code.push_back(piece(RX, 1 + I * 1009));
  for (Piece &P : Code) {
    Mapping M = mappingAt(P.Addr);
    ASSERT_EQ(M.Perms, "r-xs");
    ASSERT_TRUE(isSharedMemory(M)) << M.Path;
  }
}

TEST_P(TwoViews, ConstantsAreAReadOnlyViewOfSharedMemory) {
  Piece Const = piece(R, 100);
  Mapping M = mappingAt(Const.Addr);
  ASSERT_EQ(M.Perms, "r--s");
  ASSERT_TRUE(isSharedMemory(M)) << M.Path;
}

TEST_P(TwoViews, DataIsPrivateToTheProcess) {
  // A child after fork must not write into its parent's data.
  Piece Data = piece(RW, 100);
  *bytesAt(Data.Addr) = 'p';
  pid_t Child = fork();
  ASSERT_GE(Child, 0);
  if (Child == 0) {
    *bytesAt(Data.Addr) = 'c';
    _exit(0);
  }
  ASSERT_EQ(waitpid(Child, nullptr, 0), Child);
  ASSERT_EQ(*bytesAt(Data.Addr), 'p');
}

TEST_P(TwoViews, AddressesOfCodeWereNeverWritable) {
  // An address that is written in working memory belongs to the other view: seen from when it is
  // handed out on, the executor's address is mapped read and execute only.
  for (int Round = 0; Round != 30; ++Round) {
    auto G = compat::makeGraph("graph");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(Round), {16});
    InFlight Alloc = allocate(*G);
    ASSERT_EQ(mappingAt(Text.getAddress()).Perms, "r-xs");
    ASSERT_NE(Text.getAlreadyMutableContent().data(), bytesAt(Text.getAddress()));
    Placed P = finalize(std::move(Alloc));
    ASSERT_EQ(mappingAt(Text.getAddress()).Perms, "r-xs");
    ASSERT_EQ(call(Text.getAddress()), Round);
  }
}

TEST_P(TwoViews, FreedCodeTraps) {
  Piece Stays = piece(RX, 64);
  auto G = compat::makeGraph("graph");
  Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(5), {16});
  Placed P = place(*G);
  EXPECT_EQ(call(Text.getAddress()), 5);
  must(P.free());
  EXPECT_EQ(*bytesAt(Text.getAddress()), '\xcc') << "int3";
}

TEST_P(TwoViews, NoDescriptorStaysOpenAndNoMappingIsLeft) {
  auto CountOpen = [] {
    int N = 0;
    for (int FD = 0; FD != 1024; ++FD)
      N += fcntl(FD, F_GETFD) != -1;
    return N;
  };
  int OpenBefore = CountOpen();
  size_t SharedBefore = 0, SharedAfter = 0;
  for (const Mapping &M : readMappings())
    SharedBefore += isSharedMemory(M);
  for (int Round = 0; Round != 5; ++Round) {
    auto Own = must(createManager(GetParam()));
    auto G = compat::makeGraph("graph");
    addContent(*G, addSection(*G, "text", RX), codeReturning(1), {16});
    auto FA = must(must(Own->allocate(nullptr, *G))->finalize());
    EXPECT_LE(CountOpen(), OpenBefore + 1);
    must(Own->deallocate(std::move(FA)));
  }
  EXPECT_EQ(CountOpen(), OpenBefore);
  for (const Mapping &M : readMappings())
    SharedAfter += isSharedMemory(M);
  EXPECT_EQ(SharedAfter, SharedBefore);
}

// Runs code through a manager of kind K in a child where the kernel refuses to make anything
// executable that was writable. Returns the child's verdict.
enum Verdict { Works, Refused, Unsupported, Crashed };
Verdict underDenyWriteExecute(Kind K) {
  pid_t Child = fork();
  if (Child < 0)
    throw std::runtime_error("fork failed");
  if (Child == 0) {
    if (prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0))
      _exit(Unsupported);
    auto MM = createManager(K);
    if (!MM) {
      consumeError(MM.takeError());
      _exit(Refused);
    }
    auto G = compat::makeGraph("graph");
    Block &Text = addContent(*G, addSection(*G, "text", RX), codeReturning(21), {16});
    auto Alloc = (*MM)->allocate(nullptr, *G);
    auto FA = Alloc ? (*Alloc)->finalize()
                    : Expected<JITLinkMemoryManager::FinalizedAlloc>(Alloc.takeError());
    if (!FA) {
      consumeError(FA.takeError());
      _exit(Refused);
    }
    _exit(call(Text.getAddress()) == 21 ? Works : Crashed);
  }
  int Status = 0;
  if (waitpid(Child, &Status, 0) != Child || !WIFEXITED(Status))
    return Crashed;
  return Verdict(WEXITSTATUS(Status));
}

TEST(DenyWriteExecute, TwoViewsWorkWhereLlvmsManagerIsRefused) {
  if (underValgrind())
    GTEST_SKIP() << "valgrind itself can't work where the kernel denies what this test asks it to";
  Verdict Llvm = underDenyWriteExecute(Kind::LlvmInProcess);
  if (Llvm == Unsupported)
    GTEST_SKIP() << "this kernel has no PR_SET_MDWE (Linux 6.3)";
  EXPECT_EQ(Llvm, Refused) << "the kernel does not enforce what this test relies on";
  EXPECT_EQ(underDenyWriteExecute(Kind::JitmemMprotect), Refused);
  EXPECT_EQ(underDenyWriteExecute(Kind::JitmemTwoViews), Works);
}

} // namespace
