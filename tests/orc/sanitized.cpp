// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// An LLJIT host that is compiled with a sanitizer, over libraries that are not: `sanitized OBJECT`
// links the object, whose replaced(1) is 8, runs and removes it, a hundred times; the session ends
// in order.

#include <jitmem/orc.hpp>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>

#include <cstdio>

using namespace llvm;
using namespace llvm::orc;

int main(int Argc, char *Argv[]) {
  ExitOnError OrExit("sanitized: ");
  if (Argc != 2)
    return fprintf(stderr, "usage: sanitized OBJECT\n"), 2;
  InitializeNativeTarget();
  InitializeNativeTargetAsmPrinter();
  auto MemMgr = OrExit(jitmem::orc::MemoryManager::CreateInProcess());
  auto EPC = OrExit(SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(MemMgr)));
  auto J = OrExit(LLJITBuilder().setExecutorProcessControl(std::move(EPC)).create());
  int Wrong = 0;
  for (int I = 0; I != 100; ++I) {
    auto Tracker = J->getMainJITDylib().createResourceTracker();
    auto Object = OrExit(errorOrToExpected(MemoryBuffer::getFile(Argv[1])));
    OrExit(J->addObjectFile(Tracker, std::move(Object)));
    Wrong += OrExit(J->lookup("replaced")).toPtr<int(int)>()(1) != 8;
    OrExit(Tracker->remove());
  }
  return printf("wrong: %d\n", Wrong) < 0 || Wrong != 0;
}
