// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// A controller that is there to be killed: `controller SETTING WORK`. It writes a byte to
// descriptor 21 for each thing it has done; a process that holds that descriptor, as its executor
// does too, is not gone yet. At the end of its work it waits.

#include "executors.h"

#include <fcntl.h>
#include <iostream>
#include <thread>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;

namespace {

int Report; // inherited by the executor, whose descriptor 21 is another one

void report() {
  if (write(Report, ".", 1) != 1)
    _exit(3);
}

// Where LLVM's simplest memory service ends, it frees what it has in any order, and deallocation
// actions may find their code gone.
bool mayLeaveActions(Session &S) { return S.MM->stats().mapper != JITMEM_MAPPER_LLVM_SIMPLE; }

std::unique_ptr<LinkGraph> graphNoting(Session &S, int Id, char Behaviour) {
  auto G = compat::makeGraph("graph");
  addContent(*G, addSection(*G, "text", RX), codeReturning(Id), {16});
  addContent(*G, addSection(*G, "data", RW), std::string(10000, 'd'));
  G->allocActions().push_back(
      {S.note(Id, Behaviour), mayLeaveActions(S) ? S.note(-Id) : Journal::none()});
  return G;
}

void work(Session &S, const std::string &Work) {
  S.run(S.inside("knowParent"));
  std::vector<std::unique_ptr<LinkGraph>> Graphs;
  auto Finalize = [&](char Behaviour) {
    Graphs.push_back(graphNoting(S, int(Graphs.size()) + 1, Behaviour));
    must(S.MM->allocate(nullptr, *Graphs.back()))
        ->finalize([](Expected<Placed::FinalizedAlloc> FA) {
          cantFail(std::move(FA)).release();
          report();
        });
  };
  if (Work == "many") {
    for (int I = 0; I != 200; ++I)
      Finalize('n');
  } else if (Work == "actions") {
    for (int I = 0; I != 20; ++I)
      Finalize('o'); // which end when this process has
    S.run(S.inside("waitForNotes"), 2);
  } else if (Work == "call") {
    std::thread([&] { S.run(S.inside("waitUntilOrphaned"), 1); }).detach();
    S.run(S.inside("waitForNotes"), 1);
  } else {
    Finalize('n');
  }
}

} // namespace

int main(int Argc, char *Argv[]) {
  for (int I = 0; Argc == 3 && I <= int(Setting::StockSimple); ++I)
    if (nameOf(Setting(I)) == std::string(Argv[1])) {
      Report = fcntl(21, F_DUPFD, 22);
      report();
      Session S{Setting(I)};
      report();
      work(S, Argv[2]);
      report();
      for (;;)
        pause();
    }
  std::cerr << "usage: controller SETTING idle|actions|call|many\n";
  return 2;
}
