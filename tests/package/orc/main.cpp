// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// A C++ host of ORC that uses the installed package: links an object file through jitmem.
#include <jitmem/orc.hpp>
#include <llvm/ExecutionEngine/Orc/LLJIT.h>
#include <llvm/Support/MemoryBuffer.h>
#include <llvm/Support/TargetSelect.h>
using namespace llvm;

int main(int, char **Arguments) {
  ExitOnError Check("consumer: ");
  InitializeNativeTarget();
  auto Memory = Check(jitmem::orc::MemoryManager::CreateInProcess());
  auto &Manager = *Memory;
  auto EPC = Check(orc::SelfExecutorProcessControl::Create(nullptr, nullptr, std::move(Memory)));
  auto JIT = Check(orc::LLJITBuilder()
                       .setExecutorProcessControl(std::move(EPC))
                       // What LLJIT takes by default differs between versions and systems.
                       .setObjectLinkingLayerCreator([](orc::ExecutionSession &ES, auto &&...) {
                         return std::make_unique<orc::ObjectLinkingLayer>(ES);
                       })
                       .create());
  Check(JIT->addObjectFile(Check(errorOrToExpected(MemoryBuffer::getFile(Arguments[1])))));
  auto *Answer = Check(JIT->lookup("answer")).toPtr<int()>();
  const int First = Answer(), Second = Answer();
  const auto Linked = Manager.stats().finalized;
  // The tests look for this line.
  outs() << "jitmem " << jitmem_version_string() << " answers " << First << " and " << Second
         << " from " << Linked << " graph\n";
  return First == 42 && Second == 43 && Linked == 1 ? 0 : 1;
}
