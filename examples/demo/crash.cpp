// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "crash.hpp"
#include "libraries.hpp"
#include "scene.hpp"

#include "llvm/Support/FormatVariadic.h"

#include <csignal>
#include <sys/wait.h>

using namespace llvm;
using namespace llvm::orc;

namespace demo {

namespace {

/// A second process that has all libraries linked.
struct SecondProcess {
  std::unique_ptr<Executor> Program;
  std::unique_ptr<Session> Linker;
  size_t Objects = 0;
};

Expected<SecondProcess> start(const Options &O) {
  SecondProcess P;
  if (auto E = Executor::Start(DEMO_EXECUTOR, Executor::Stderr::Captured).moveInto(P.Program))
    return E;
  auto EPC = P.Program->connect(std::make_unique<InPlaceTaskDispatcher>());
  if (!EPC)
    return EPC.takeError();
  if (auto E = Session::Create(std::move(*EPC), P.Program.get(), managersAcross().front().Create)
                   .moveInto(P.Linker))
    return E;
  for (const Library &Lib : libraries()) {
    auto Linked = P.Linker->link(Lib);
    if (!Linked)
      return Linked.takeError();
    P.Objects += Linked->Objects;
  }
  if (auto E = P.Linker->linkDriver(O.DriverPath))
    return E;
  return P;
}

/// What the executor said when it crashed, without its own name.
Expected<std::string> crash(SecondProcess &P) {
  auto Failure = P.Linker->run("demo_crash", /*Quiet=*/true);
  if (!Failure)
    return createStringError("reading address 8 did not crash the second process");
  // It only says that the executor is gone, and so does what is to be ended now.
  consumeError(joinErrors(std::move(Failure), P.Linker->end()));
  auto Status = P.Program->waitForStatus();
  if (!Status)
    return Status.takeError();
  auto Said = P.Program->takeStderr();
  if (!Said)
    return Said.takeError();
  if (!WIFSIGNALED(*Status) || WTERMSIG(*Status) != SIGSEGV)
    return createStringError(formatv("the second process ended with status {0:x} in place of "
                                     "SIGSEGV: {1}",
                                     *Status, *Said));
  return StringRef(*Said).rtrim().rsplit("jitmem-executor: ").second.str();
}

Error useAgain(const SecondProcess &P) {
  for (const Library &Lib : libraries())
    if (auto E = P.Linker->run(Lib.Function, /*Quiet=*/true))
      return E;
  return Error::success();
}

} // namespace

Error runCrash(const Options &O) {
  Scene Screen(3,
               "zlib gets a bad pointer and crashes in the second process; this process goes on");
  Screen.progress("linking");
  auto First = start(O);
  if (!First)
    return First.takeError();
  Screen.progress("crashing");
  auto Said = crash(*First);
  if (!Said)
    return Said.takeError();
  Screen.result(formatv("process {0}", First->Program->pid()).str(),
                *Said + ", says its jitmem-executor");

  auto Crashed = Clock::now();
  Screen.progress("starting another");
  auto Second = start(O);
  if (!Second)
    return Second.takeError();
  double Milliseconds = millisecondsSince(Crashed);
  if (auto E = useAgain(*Second))
    return E;
  Screen.result(formatv("process {0}", Second->Program->pid()).str(),
                formatv("has all {0} objects linked again {1:f0} ms later and gives the right "
                        "answers",
                        Second->Objects, Milliseconds)
                    .str());
  if (auto E = Second->Linker->end())
    return E;
  if (auto E = Second->Program->waitForEnd())
    return E;
  Screen.end();
  return Error::success();
}

} // namespace demo
