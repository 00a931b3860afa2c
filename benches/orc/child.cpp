// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "child.hpp"
#include "footprint.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <malloc.h>
#include <new>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

using namespace llvm;

namespace bench {

namespace {

constexpr unsigned MaxPhases = 8;

struct ChildPhase {
  char Name[64];
  uint64_t Operations;
  uint64_t SystemCalls;
  bool IsHeld;
  Footprint Held;
  uint64_t Live;
  char Note[256];
};

/// A page that the child writes and its parent reads. The parent also looks at it while it counts,
/// so that no marker of the child's is a system call itself.
struct ChildReport {
  std::atomic<bool> Counting;
  std::atomic<unsigned> Current;
  unsigned Phases;
  ChildPhase Phase[MaxPhases];
  int TraceError;
  bool Finished;
  char Failure[512];
};

template <size_t N> void copyText(char (&To)[N], StringRef From) {
  size_t Length = std::min(From.size(), N - 1);
  memcpy(To, From.data(), Length);
  To[Length] = 0;
}

class ChildProbe : public Probe {
public:
  ChildProbe(ChildReport &Report, Footprint Before) : Report(Report), Before(Before) {}

  Error measure(StringRef Name, uint64_t Operations, function_ref<Error()> Body) override {
    unsigned Index = phase(Name);
    Report.Phase[Index].Operations = Operations;
    Report.Current = Index;
    Report.Counting = true;
    Error Err = Body();
    Report.Counting = false;
    return Err;
  }

  void hold(StringRef Name, uint64_t Live, StringRef Note) override {
    ChildPhase &P = Report.Phase[phase(Name)];
    Expected<Footprint> Now = footprint();
    if (!Now) {
      copyText(P.Note, toString(Now.takeError()));
      return;
    }
    P.IsHeld = true;
    P.Held = *Now - Before;
    P.Live = Live;
    copyText(P.Note, Note);
  }

private:
  unsigned phase(StringRef Name) {
    for (unsigned I = 0; I != Report.Phases; ++I)
      if (Name == Report.Phase[I].Name)
        return I;
    if (Report.Phases == MaxPhases)
      report_fatal_error("jitmem-bench: a workload has too many phases");
    copyText(Report.Phase[Report.Phases].Name, Name);
    return Report.Phases++;
  }

  ChildReport &Report;
  Footprint Before;
};

class IgnoringProbe : public Probe {
public:
  Error measure(StringRef, uint64_t, function_ref<Error()> Body) override { return Body(); }
  void hold(StringRef, uint64_t, StringRef) override {}
};

} // namespace

Error runOnce(const ManagerSpec &M, const Workload &W, Probe &P) {
  auto EPC = M.Create();
  if (!EPC)
    return EPC.takeError();
  orc::ExecutionSession ES(std::move(*EPC));
  // A failed link is reported here, and lookups only say which symbols were affected by it.
  Error Reported = Error::success();
  ES.setErrorReporter(
      [&](Error Err) { Reported = joinErrors(std::move(Reported), std::move(Err)); });
  Error Err = W.Run(ES, P);
  Err = joinErrors(std::move(Err), ES.endSession());
  return joinErrors(std::move(Reported), std::move(Err));
}

static Error runInChild(const ManagerSpec &M, const Workload &W, ChildReport &Report) {
  // Without mappings made by malloc, every new mapping is the manager's.
  mallopt(M_MMAP_MAX, 0);
  if (W.CountSystemCalls) {
    IgnoringProbe Ignore;
    if (Error Err = runOnce(M, W, Ignore))
      return Err;
  }
  Expected<Footprint> Before = footprint();
  if (!Before)
    return Before.takeError();
  if (W.CountSystemCalls) {
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr))
      Report.TraceError = errno;
    else
      raise(SIGSTOP); // the parent takes over here
  }
  ChildProbe P(Report, *Before);
  return runOnce(M, W, P);
}

/// Counts the system calls of Child and of what it starts until it has ended.
static Error traceToTheEnd(pid_t Child, ChildReport &Report, int &Status) {
  bool IsSetUp = false;
  for (;;) {
    int StatusNow;
    pid_t Stopped = waitpid(-1, &StatusNow, __WALL);
    if (Stopped < 0) {
      if (errno == EINTR)
        continue;
      return createStringError(std::error_code(errno, std::generic_category()), "waitpid");
    }
    if (WIFEXITED(StatusNow) || WIFSIGNALED(StatusNow)) {
      if (Stopped != Child)
        continue;
      Status = StatusNow;
      return Error::success();
    }
    int Signal = WSTOPSIG(StatusNow);
    if (!IsSetUp && Stopped == Child) {
      IsSetUp = true;
      long Options = PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE |
                     PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
      if (ptrace(PTRACE_SETOPTIONS, Child, nullptr, Options))
        Report.TraceError = errno;
      Signal = 0;
    } else if (Signal == (SIGTRAP | 0x80)) {
      __ptrace_syscall_info Info;
      if (ptrace(__ptrace_request(PTRACE_GET_SYSCALL_INFO), Stopped, sizeof Info, &Info) < 0)
        Report.TraceError = errno;
      else if (Report.Counting && Info.op == PTRACE_SYSCALL_INFO_ENTRY)
        ++Report.Phase[Report.Current].SystemCalls;
      Signal = 0;
    } else if (Signal == SIGTRAP || Signal == SIGSTOP) {
      Signal = 0; // a stop of ptrace's own, or the first one of a new thread
    }
    auto How = __ptrace_request(Report.TraceError ? PTRACE_CONT : PTRACE_SYSCALL);
    if (ptrace(How, Stopped, nullptr, long(Signal)) && errno != ESRCH)
      return createStringError(std::error_code(errno, std::generic_category()), "ptrace");
  }
}

static std::string endOf(const ChildReport &Report, int Status) {
  if (Report.Failure[0])
    return Report.Failure;
  if (WIFSIGNALED(Status))
    return std::string("the process was ended by signal ") + strsignal(WTERMSIG(Status));
  return Report.Finished ? "" : "the process ended early";
}

Error measureInChild(const ManagerSpec &M, const Workload &W, Results &R, std::string &Refusal) {
  void *Page =
      mmap(nullptr, sizeof(ChildReport), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (Page == MAP_FAILED)
    return createStringError(std::error_code(errno, std::generic_category()), "mmap");
  auto &Report = *new (Page) ChildReport();

  pid_t Child = fork();
  if (Child < 0) {
    int Errno = errno;
    munmap(Page, sizeof(ChildReport));
    return createStringError(std::error_code(Errno, std::generic_category()), "fork");
  }
  if (Child == 0) {
    if (Error Err = runInChild(M, W, Report))
      copyText(Report.Failure, toString(std::move(Err)));
    Report.Finished = true;
    _exit(0);
  }

  int Status = 0;
  Error Err = traceToTheEnd(Child, Report, Status);
  if (Report.TraceError)
    Refusal = std::string("ptrace failed: ") + strerror(Report.TraceError) +
              ", as it does in a process that is traced already or where seccomp refuses it";
  std::string Failure = endOf(Report, Status);
  for (unsigned I = 0; I != Report.Phases; ++I) {
    const ChildPhase &P = Report.Phase[I];
    Cell &C = R.phase(W, P.Name).cell(M.Name);
    if (W.CountSystemCalls && P.Operations && !Report.TraceError)
      C.SystemCalls = double(P.SystemCalls) / P.Operations;
    if (P.IsHeld)
      C.Held = P.Held;
    C.Live = P.Live;
    C.Note = P.Note;
  }
  if (!Failure.empty())
    R.fail(W, M.Name, Failure);
  munmap(Page, sizeof(ChildReport));
  return Err;
}

} // namespace bench
