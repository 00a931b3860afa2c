// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "report.hpp"

#include "llvm/Support/FormatVariadic.h"

using namespace llvm;

namespace bench {

/// "3.00 + 2.00": the controller's and the executor's; one figure where they are one process.
static std::string bothText(const Contender &Row, std::string Controller, std::string Executor) {
  return Row.Manager.InProcess ? Controller : Controller + " + " + Executor;
}

static std::string both(const Contender &Row, const Cell &C, double Sample::*Controller,
                        double Sample::*Executor, std::string (*Text)(double)) {
  return bothText(Row, Text(C.median(Controller)), Text(C.median(Executor)));
}

static std::string systemCalls(const Contender &Row, const Cell &C) {
  if (!C.SystemCalls)
    return "–";
  return bothText(Row, countText(*C.SystemCalls), countText(C.ExecutorSystemCalls.value_or(0)));
}

/// By EPC, and what the manager sent by a channel of its own, if anything.
static std::string sent(const Contender &Row, const Cell &C, double Sample::*EPC,
                        double Sample::*Own, std::string (*Text)(double)) {
  if (Row.Manager.InProcess)
    return "–";
  double OwnCount = C.median(Own);
  return Text(C.median(EPC)) + (OwnCount ? ", own " + Text(OwnCount) : "");
}

static std::string bytesText(double Bytes) {
  return Bytes < 10 ? countText(Bytes) : formatv("{0:F0}", Bytes).str();
}

/// LLVM's with shared memory, under the same conditions.
static std::string sharedOfLLVM(Contender Row) {
  Row.Manager.Name = LLVMShared.str();
  Row.NamesExecutor &= !Row.Manager.InProcess;
  return Row.row();
}

static void printCell(raw_ostream &OS, const Contender &Row, const Phase &P, const Cell &C) {
  OS << timeText(C.median()) << " | " << timeText(C.fastest()) << " to " << timeText(C.slowest())
     << " | " << ratioText(&C, P.find(rowName(LLVMInProcess, Row.Tasks))) << " | "
     << ratioText(&C, P.find(sharedOfLLVM(Row))) << " | "
     << both(Row, C, &Sample::ProcessorNs, &Sample::ExecutorProcessorNs, timeText) << " | "
     << sent(Row, C, &Sample::Messages, &Sample::OwnMessages, countText) << " | "
     << sent(Row, C, &Sample::Bytes, &Sample::OwnBytes, bytesText) << " | "
     << both(Row, C, &Sample::Faults, &Sample::ExecutorFaults, countText) << " | "
     << systemCalls(Row, C) << " | ";
  if (C.Held)
    OS << C.Held->MappedKB << " | " << C.Held->Mappings << " |\n";
  else
    OS << "– | – |\n";
}

void printAcross(raw_ostream &OS, const RunInfo &Info, const Phase &P, const Results &R) {
  OS << "\n**" << P.Name << "**, per " << P.Of->Operation << "\n\n"
     << "| dispatcher | manager | median | min to max | / LLVM in process | / LLVM shared | "
        "processor | messages | bytes | page faults | system calls | memory KB | mappings |\n"
     << "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n";
  for (const Contender &Row : Info.Across) {
    OS << "| " << nameOf(Row.Tasks) << " | "
       << (Row.NamesExecutor ? rowName(Row.Manager.Name, Row.On.Name) : Row.Manager.Name) << " | ";
    const Cell *C = P.find(Row.row());
    if (const Failure *F = R.failure(*P.Of, Row.row()))
      OS << firstLine(F->Message) << " | – | – | – | – | – | – | – | – | – | – |\n";
    else if (!C || !C->timed())
      OS << "– | – | – | – | – | – | – | – | – | – | – |\n";
    else
      printCell(OS, Row, P, *C);
  }
}

} // namespace bench
