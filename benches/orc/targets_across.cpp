// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/Support/FormatVariadic.h"

#include <optional>

using namespace llvm;

namespace bench {

namespace {

/// Looks figures up. One that a manager could not give is none.
class Figures {
public:
  explicit Figures(const Results &R) : R(R) {}

  const Cell *cell(StringRef Key, StringRef Name, StringRef Manager, Dispatch Tasks) const {
    const Phase *P = R.find(Key, Name);
    std::string Row = rowName(Manager, Tasks);
    return P && !R.failure(*P->Of, Row) ? P->find(Row) : nullptr;
  }

  std::optional<double> ratioTo(StringRef Key, StringRef Name, StringRef Manager, StringRef Other,
                                Dispatch Tasks) const {
    return ratio(cell(Key, Name, Manager, Tasks), cell(Key, Name, Other, Tasks));
  }

  std::optional<double> memory(StringRef Key, StringRef Name, StringRef Manager,
                               Dispatch Tasks) const {
    const Cell *C = cell(Key, Name, Manager, Tasks);
    return C && C->Held ? std::optional<double>(C->Held->MappedKB) : std::nullopt;
  }

  /// A message by a channel of the manager's own counts as much as one by EPC.
  std::optional<double> messages(StringRef Key, StringRef Name, StringRef Manager,
                                 Dispatch Tasks) const {
    const Cell *C = cell(Key, Name, Manager, Tasks);
    if (!C || !C->timed())
      return std::nullopt;
    return C->median(&Sample::Messages) + C->median(&Sample::OwnMessages);
  }

private:
  const Results &R;
};

struct Target {
  StringRef What;
  ArrayRef<Dispatch> About;
  StringRef Must;
  std::optional<double> (*Measure)(const Figures &, Dispatch);
  /// At most, or at least if there is more to gain.
  double Limit;
  bool AtLeast;
  const char *Format;
};

std::optional<double> inverse(std::optional<double> Ratio) {
  return Ratio ? std::optional<double>(1 / *Ratio) : std::nullopt;
}

/// A manager's row on jitmem-executor.
std::string onOurs(StringRef Manager) { return rowName(Manager, JitmemExecutor); }

constexpr Dispatch Threaded[] = {Dispatch::Pool, Dispatch::ThreadPerTask};

const Target Targets[] = {
    {"(a) allocate + finalize, jitmem-shared", AllDispatches, "25 times faster than llvm-shared",
     [](const Figures &F, Dispatch D) {
       return inverse(F.ratioTo("oop-a", AllocatePhase, JitmemShared, LLVMShared, D));
     },
     25, true, "{0:F1}"},
    {"(a) allocate + finalize, jitmem-shared", AllDispatches, "1.2 of jitmem in process",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-a", AllocatePhase, JitmemShared, Jitmem, D);
     },
     1.2, false, "{0:F2}"},
    {"(a) deallocate one by one, jitmem-shared", AllDispatches, "50 times faster than llvm-shared",
     [](const Figures &F, Dispatch D) {
       return inverse(F.ratioTo("oop-a", DeallocateOldestPhase, JitmemShared, LLVMShared, D));
     },
     50, true, "{0:F1}"},
    {"(b) tiny objects in all, jitmem-shared", Threaded, "0.85 of llvm-in-process",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-b", SumPhase, JitmemShared, LLVMInProcess, D);
     },
     0.85, false, "{0:F3}"},
    {"(c) four libraries in all, jitmem-shared", AllDispatches, "1.15 of llvm-in-process",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-c", SumPhase, JitmemShared, LLVMInProcess, D);
     },
     1.15, false, "{0:F3}"},
    {"messages per graph in (b), own channel included, jitmem-shared", AllDispatches, "0.2",
     [](const Figures &F, Dispatch D) { return F.messages("oop-b", SumPhase, JitmemShared, D); },
     0.2, false, "{0:F3}"},
    {"memory for (b), KB, jitmem-shared", AllDispatches, "700",
     [](const Figures &F, Dispatch D) { return F.memory("oop-b", LinkPhase, JitmemShared, D); },
     700, false, "{0:F0}"},
    {"messages per graph in (b), jitmem-shared on jitmem-executor", AllDispatches,
     "0, chunks aside: 0.01",
     [](const Figures &F, Dispatch D) {
       return F.messages("oop-b", SumPhase, onOurs(JitmemShared), D);
     },
     0.01, false, "{0:F3}"},
    {"(b) tiny objects in all, jitmem-shared on jitmem-executor", AllDispatches,
     "1.1 of jitmem in process",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-b", SumPhase, onOurs(JitmemShared), Jitmem, D);
     },
     1.1, false, "{0:F3}"},
    {"(c) four libraries in all, jitmem-shared", AllDispatches, "0.8 of llvm-shared",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-c", SumPhase, JitmemShared, LLVMShared, D);
     },
     0.8, false, "{0:F3}"},
    {"(c) four libraries in all, jitmem-shared on jitmem-executor", AllDispatches,
     "0.8 of llvm-shared on it",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-c", SumPhase, onOurs(JitmemShared), onOurs(LLVMShared), D);
     },
     0.8, false, "{0:F3}"},
    {"(c) four libraries in all, jitmem-shared on jitmem-executor", AllDispatches,
     "1.1 of jitmem in process",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-c", SumPhase, onOurs(JitmemShared), Jitmem, D);
     },
     1.1, false, "{0:F3}"},
    {"(b) tiny objects in all, jitmem-remote", AllDispatches, "0.5 of llvm-simple-remote",
     [](const Figures &F, Dispatch D) {
       return F.ratioTo("oop-b", SumPhase, JitmemRemote, LLVMSimpleRemote, D);
     },
     0.5, false, "{0:F3}"},
    {"messages per graph in (b), jitmem-remote", AllDispatches, "0.5",
     [](const Figures &F, Dispatch D) { return F.messages("oop-b", SumPhase, JitmemRemote, D); },
     0.5, false, "{0:F3}"},
};

} // namespace

/// Reached if it is under every dispatcher that it is about.
static TargetOutcome outcome(const Target &T, const Figures &F) {
  TargetOutcome O{"", true};
  for (Dispatch D : T.About) {
    std::optional<double> Figure = T.Measure(F, D);
    O.Measured += (O.Measured.empty() ? "" : ", ") + nameOf(D).str() + " " +
                  (Figure ? formatv(T.Format, *Figure).str() : "–");
    if (!Figure)
      O.Reached.reset();
    else if (O.Reached && !(T.AtLeast ? *Figure >= T.Limit : *Figure <= T.Limit))
      O.Reached = false;
  }
  return O;
}

TargetTable targetsAcross(const Results &R) {
  Figures F(R);
  TargetTable Table{"What jitmem must reach out of process",
                    "Against the manager named, under the same dispatcher. A channel of jitmem's "
                    "own counts among the messages.",
                    {}};
  for (const Target &T : Targets)
    Table.Rows.push_back({T.What.str(), T.Must.str(), outcome(T, F)});
  return Table;
}

} // namespace bench
