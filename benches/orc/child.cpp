// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "child.hpp"
#include "footprint.hpp"
#include "system_error.hpp"

#include "llvm/Support/FormatVariadic.h"
#include <jitmem/orc.hpp>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <mutex>
#include <new>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <unordered_map>

using namespace llvm;

namespace bench {

namespace {

constexpr unsigned MaxPhases = 12;

struct ChildPhase {
  char Name[64];
  uint64_t Operations;
  uint64_t SystemCalls, ExecutorSystemCalls, ExecutorThreads;
  bool IsHeld;
  Footprint Held;
  uint64_t Live, Content;
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
  bool Unsupported;
};

template <size_t N> void copyText(char (&To)[N], StringRef From) {
  size_t Length = std::min(From.size(), N - 1);
  memcpy(To, From.data(), Length);
  To[Length] = 0;
}

class ChildProbe : public Probe {
public:
  ChildProbe(ChildReport &Report, Footprint Before) : Report(Report), Before(Before) {}

  void begin(const Host &H) override {
    if (!H.Other)
      return;
    Other = H.Other->pid();
    Before = Before + H.Other->baseline();
  }

  Error measure(StringRef Name, uint64_t Operations, function_ref<Error()> Body) override {
    unsigned Index = phase(Name);
    Report.Phase[Index].Operations = Operations;
    Report.Current = Index;
    Report.Counting = true;
    Error Err = Body();
    Report.Counting = false;
    return Err;
  }

  void hold(StringRef Name, uint64_t Live, StringRef Note, uint64_t Content) override {
    ChildPhase &P = Report.Phase[phase(Name)];
    Expected<Footprint> Now = footprint(), OthersNow = Other ? footprint(Other) : Footprint();
    if (!Now || !OthersNow) {
      copyText(P.Note, toString(joinErrors(Now.takeError(), OthersNow.takeError())));
      return;
    }
    P.IsHeld = true;
    P.Held = *Now + *OthersNow - Before;
    P.Live = Live;
    P.Content = Content;
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
  pid_t Other = 0;
};

class IgnoringProbe : public Probe {
public:
  Error measure(StringRef, uint64_t, function_ref<Error()> Body) override { return Body(); }
  void hold(StringRef, uint64_t, StringRef, uint64_t) override {}
};

} // namespace

static Error runSession(Host &H, const Workload &W, Probe &P) {
  // A failed link is reported here, and lookups only say which symbols were affected by it.
  std::mutex Mutex;
  Error Reported = Error::success();
  orc::ExecutionSession ES(std::move(H.EPC));
  ES.setErrorReporter([&](Error Err) {
    std::lock_guard<std::mutex> Lock(Mutex);
    Reported = joinErrors(std::move(Reported), std::move(Err));
  });
  P.begin(H);
  std::shared_ptr<void> Alive;
  Error Err = W.Run(H, ES, P, Alive);
  Err = joinErrors(std::move(Err), ES.endSession());
  return joinErrors(std::move(Reported), std::move(Err));
}

Error runOnce(const Contender &C, const Workload &W, Probe &P) {
  if (W.RunAlone)
    return W.RunAlone(C.On.Path, P);
  Expected<Host> H = C.Manager.Create(C.On.Path, makeDispatcher(C.Tasks));
  if (!H)
    return H.takeError();
  Error Err = runSession(*H, W, P);
  if (H->Other)
    // First how it ended: if it crashed, all other errors come from that.
    Err = joinErrors(H->Other->waitForEnd(), std::move(Err));
  return Err;
}

static bool saysUnsupported(const Error &Err) {
  bool Says = false;
  visitErrors(Err, [&](const ErrorInfoBase &Info) {
    if (Info.isA<jitmem::orc::MemoryError>())
      Says |= static_cast<const jitmem::orc::MemoryError &>(Info).status() == JITMEM_UNSUPPORTED;
  });
  return Says;
}

void recordFailure(Results &R, const Workload &W, const Contender &C, Error Err) {
  bool Unsupported = saysUnsupported(Err);
  R.fail(W, C.row(), toString(std::move(Err)), Unsupported);
}

/// Lets the parent trace the system calls of this process and of what it starts. A filter that
/// stops at each costs half of what ptrace's own two stops per call do, which would be minutes.
static void beTraced(ChildReport &Report) {
  // With a tracer jitmem would choose the mapper that debuggers need.
  setenv("JITMEM_DEBUG", "0", 1);
  if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr)) {
    Report.TraceError = errno;
    return;
  }
  raise(SIGSTOP); // the parent takes over here
  if (Report.TraceError)
    return;
  sock_filter Trace = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
  sock_fprog Filter = {1, &Trace};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &Filter))
    Report.TraceError = errno;
}

static Error runInChild(const Contender &C, const Workload &W, ChildReport &Report) {
  prctl(PR_SET_PDEATHSIG, SIGKILL); // a run that is interrupted leaves nothing behind
  // Without mappings made by malloc, and with one heap for all threads, every new mapping is the
  // manager's or a thread's stack. The variables say the same to the executor.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_ARENA_MAX, 1);
  setenv("MALLOC_MMAP_MAX_", "0", 1);
  setenv("MALLOC_ARENA_MAX", "1", 1);
  if (W.CountSystemCalls) {
    IgnoringProbe Ignore;
    if (Error Err = runOnce(C, W, Ignore))
      return Err;
  }
  Expected<Footprint> Before = footprint();
  if (!Before)
    return Before.takeError();
  if (W.CountSystemCalls)
    beTraced(Report);
  ChildProbe P(Report, *Before);
  return runOnce(C, W, P);
}

namespace {

/// Which of the threads that are traced belong to a process.
class ThreadsOf {
public:
  explicit ThreadsOf(pid_t Process) : Process(Process) {}

  bool contains(pid_t Thread) {
    auto [Entry, IsNew] = Known.try_emplace(Thread, false);
    if (IsNew) {
      // A process lists its own threads only.
      std::string Name = formatv("/proc/{0}/task/{1}", Process, Thread);
      Entry->second = access(Name.c_str(), F_OK) == 0;
    }
    return Entry->second;
  }

  /// The kernel may give the number to another thread.
  void forget(pid_t Thread) { Known.erase(Thread); }

private:
  pid_t Process;
  std::unordered_map<pid_t, bool> Known;
};

} // namespace

/// Counts the system calls of Child and of what it starts, and the threads that the latter starts,
/// until all that has ended.
static Error traceToTheEnd(pid_t Child, ChildReport &Report, int &Status) {
  bool IsSetUp = false;
  ThreadsOf Controller(Child);
  for (;;) {
    int StatusNow;
    pid_t Stopped = waitpid(-1, &StatusNow, __WALL);
    if (Stopped < 0) {
      if (errno == EINTR)
        continue;
      if (errno == ECHILD)
        return Error::success();
      return systemError(errno, "waitpid");
    }
    if (WIFEXITED(StatusNow) || WIFSIGNALED(StatusNow)) {
      Controller.forget(Stopped);
      if (Stopped == Child)
        Status = StatusNow;
      continue;
    }
    int Signal = WSTOPSIG(StatusNow);
    if (!IsSetUp && Stopped == Child) {
      IsSetUp = true;
      long Options = PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE |
                     PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
      if (ptrace(PTRACE_SETOPTIONS, Child, nullptr, Options))
        Report.TraceError = errno;
      Signal = 0;
    } else if (StatusNow >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) {
      if (Report.Counting) {
        ChildPhase &P = Report.Phase[Report.Current];
        ++(Controller.contains(Stopped) ? P.SystemCalls : P.ExecutorSystemCalls);
      }
      Signal = 0;
    } else if (StatusNow >> 8 == (SIGTRAP | PTRACE_EVENT_CLONE << 8)) {
      if (Report.Counting && !Controller.contains(Stopped))
        ++Report.Phase[Report.Current].ExecutorThreads;
      Signal = 0;
    } else if (Signal == SIGTRAP || Signal == SIGSTOP) {
      Signal = 0; // a stop of ptrace's own, or the first one of a new thread
    }
    if (ptrace(PTRACE_CONT, Stopped, nullptr, long(Signal)) && errno != ESRCH)
      return systemError(errno, "ptrace");
  }
}

static std::string endOf(const ChildReport &Report, int Status) {
  if (Report.Failure[0])
    return Report.Failure;
  if (WIFSIGNALED(Status))
    return std::string("the process was ended by signal ") + strsignal(WTERMSIG(Status));
  return Report.Finished ? "" : "the process ended early";
}

Error measureInChild(const Contender &C, const Workload &W, Results &R, std::string &Refusal) {
  void *Page =
      mmap(nullptr, sizeof(ChildReport), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (Page == MAP_FAILED)
    return systemError(errno, "mmap");
  auto &Report = *new (Page) ChildReport();

  pid_t Child = fork();
  if (Child < 0) {
    int Errno = errno;
    munmap(Page, sizeof(ChildReport));
    return systemError(Errno, "fork");
  }
  if (Child == 0) {
    if (Error Err = runInChild(C, W, Report)) {
      Report.Unsupported = saysUnsupported(Err);
      copyText(Report.Failure, toString(std::move(Err)));
    }
    Report.Finished = true;
    _exit(0);
  }

  int Status = 0;
  Error Err = traceToTheEnd(Child, Report, Status);
  if (Report.TraceError)
    Refusal = std::string("a child can't be traced by ptrace and seccomp: ") +
              strerror(Report.TraceError) +
              ", as in a process that is traced already or in a container that forbids it";
  std::string Failure = endOf(Report, Status);
  for (unsigned I = 0; I != Report.Phases; ++I) {
    const ChildPhase &P = Report.Phase[I];
    Cell &Measured = R.phase(W, P.Name).cell(C.row());
    if (W.CountSystemCalls && P.Operations && !Report.TraceError) {
      Measured.SystemCalls = double(P.SystemCalls) / P.Operations;
      if (!C.Manager.InProcess) {
        Measured.ExecutorSystemCalls = double(P.ExecutorSystemCalls) / P.Operations;
        Measured.ExecutorThreads = double(P.ExecutorThreads) / P.Operations;
      }
    }
    if (P.IsHeld)
      Measured.Held = P.Held;
    Measured.Live = P.Live;
    Measured.Content = P.Content;
    Measured.Note = P.Note;
  }
  if (!Failure.empty())
    R.fail(W, C.row(), Failure, Report.Unsupported);
  munmap(Page, sizeof(ChildReport));
  return Err;
}

} // namespace bench
