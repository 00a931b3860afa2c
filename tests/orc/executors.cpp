// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "executors.h"
#include "tasks.h"

#if LLVM_VERSION_MAJOR >= 16
#include <llvm/ExecutionEngine/Orc/MapperJITLinkMemoryManager.h>
#include <llvm/ExecutionEngine/Orc/MemoryMapper.h>
#endif
#include <llvm/ExecutionEngine/Orc/Shared/OrcRTBridge.h>
#include <llvm/ExecutionEngine/Orc/Shared/SimpleRemoteEPCUtils.h>

#include <csignal>
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <system_error>
#include <thread>
#include <unistd.h>

using namespace llvm;
using namespace llvm::orc;
using jitmem::orc::MemoryManager;

extern char **environ;

namespace {

// LLVM's transport writes to pipes whose other end may be gone.
const auto IgnoreBrokenPipes = std::signal(SIGPIPE, SIG_IGN);

constexpr int ChildIn = 20, ChildOut = 21;

Expected<std::unique_ptr<jitlink::JITLinkMemoryManager>>
createLlvmManager([[maybe_unused]] ExecutorProcessControl &EPC) {
#if LLVM_VERSION_MAJOR >= 16
  SharedMemoryMapper::SymbolAddrs Service;
  if (Error Err = EPC.getBootstrapSymbols(
          {{Service.Instance, rt::ExecutorSharedMemoryMapperServiceInstanceName},
           {Service.Reserve, rt::ExecutorSharedMemoryMapperServiceReserveWrapperName},
           {Service.Initialize, rt::ExecutorSharedMemoryMapperServiceInitializeWrapperName},
           {Service.Deinitialize, rt::ExecutorSharedMemoryMapperServiceDeinitializeWrapperName},
           {Service.Release, rt::ExecutorSharedMemoryMapperServiceReleaseWrapperName}}))
    return Err;
  return MapperJITLinkMemoryManager::CreateWithMapper<SharedMemoryMapper>(GiB, EPC, Service);
#else
  return createStringError(inconvertibleErrorCode(), "this LLVM has no such manager");
#endif
}

} // namespace

const char *nameOf(Setting S) {
  switch (S) {
  case Setting::LoadedShared:
    return "loaded_shared";
  case Setting::LoadedRemote:
    return "loaded_remote";
  case Setting::LinkedShared:
    return "linked_shared";
  case Setting::LinkedRemote:
    return "linked_remote";
  case Setting::SealedShared:
    return "sealed_shared";
  case Setting::ProgramShared:
    return "program_shared";
  case Setting::ProgramRemote:
    return "program_remote";
  case Setting::SupervisedShared:
    return "supervised_shared";
  case Setting::LinkedSupervised:
    return "linked_supervised";
  case Setting::StockShared:
    return "stock_shared";
  case Setting::StockSimple:
    return "stock_simple";
  case Setting::Llvm:
    return "llvm";
  }
  return "unknown";
}

std::vector<std::string> commandOf(Setting S) {
  std::string Descriptors = "filedescs=" + std::to_string(ChildIn) + "," + std::to_string(ChildOut);
  switch (S) {
  case Setting::LinkedShared:
  case Setting::LinkedRemote:
    return {BUILT "/executor", Descriptors};
  case Setting::SealedShared:
    return {JITMEM_EXECUTOR, "--seccomp=sealed", Descriptors};
  case Setting::ProgramShared:
  case Setting::ProgramRemote:
    return {JITMEM_EXECUTOR, Descriptors};
  case Setting::SupervisedShared:
    return {JITMEM_EXECUTOR, "--supervise", Descriptors};
  case Setting::LinkedSupervised:
    return {BUILT "/executor", "--supervise=3", Descriptors};
  case Setting::StockSimple:
    return {BUILT "/without-files", STOCK_EXECUTOR, Descriptors};
  default:
    return {STOCK_EXECUTOR, Descriptors};
  }
}

uint32_t mapperOf(Setting S) {
  switch (S) {
  case Setting::LoadedShared:
  case Setting::LinkedShared:
  case Setting::SealedShared:
  case Setting::ProgramShared:
  case Setting::SupervisedShared:
  case Setting::LinkedSupervised:
    return JITMEM_MAPPER_SHARED;
  case Setting::LoadedRemote:
  case Setting::LinkedRemote:
  case Setting::ProgramRemote:
    return JITMEM_MAPPER_REMOTE;
  case Setting::StockShared:
    return JITMEM_MAPPER_LLVM_SHARED;
  case Setting::StockSimple:
    return JITMEM_MAPPER_LLVM_SIMPLE;
  case Setting::Llvm:
    break;
  }
  return 0;
}

Expected<std::unique_ptr<MemoryManager>> createManager(Setting S, ExecutorProcessControl &EPC,
                                                       jitmem::orc::Options O) {
  // What is linked in must be found without loading anything.
  O.LoadExecutorLibrary = S == Setting::LoadedShared || S == Setting::LoadedRemote;
  switch (S) {
  case Setting::LoadedShared:
    return MemoryManager::CreateShared(EPC, O);
  case Setting::LoadedRemote:
  case Setting::LinkedRemote:
  case Setting::ProgramRemote:
    return MemoryManager::CreateRemote(EPC, O);
  default: // the best that the executor has
    return MemoryManager::Create(EPC, O);
  }
}

void Descriptor::close() {
  if (Number >= 0)
    ::close(release());
}

Pipe::Pipe() {
  int Ends[2];
  if (pipe2(Ends, O_CLOEXEC) != 0)
    throw std::system_error(errno, std::generic_category(), "pipe");
  Read.Number = Ends[0];
  Write.Number = Ends[1];
}

ChildProcess::ChildProcess(std::vector<std::string> Command, int In, int Out) {
  std::vector<char *> Arguments;
  for (std::string &Argument : Command)
    Arguments.push_back(Argument.data());
  Arguments.push_back(nullptr);
  // So that neither becomes the other one's number.
  Descriptor ForIn(fcntl(In, F_DUPFD_CLOEXEC, ChildOut + 1)),
      ForOut(fcntl(Out, F_DUPFD_CLOEXEC, ChildOut + 1));
  posix_spawn_file_actions_t Actions;
  posix_spawn_file_actions_init(&Actions);
  posix_spawn_file_actions_adddup2(&Actions, ForIn.Number, ChildIn);
  posix_spawn_file_actions_adddup2(&Actions, ForOut.Number, ChildOut);
  int Error = posix_spawn(&Id, Arguments[0], &Actions, nullptr, Arguments.data(), environ);
  posix_spawn_file_actions_destroy(&Actions);
  if (Error)
    throw std::system_error(Error, std::generic_category(), Command[0]);
}

ChildProcess::~ChildProcess() {
  if (!Ended.empty())
    return;
  kill();
  wait();
}

void ChildProcess::kill() { ::kill(Id, SIGKILL); }

std::string ChildProcess::wait() {
  if (Ended.empty())
    Ended = waitFor(Id);
  return Ended;
}

std::string waitFor(pid_t Process) {
  int Status = 0;
  while (waitpid(Process, &Status, 0) < 0)
    if (errno != EINTR)
      throw std::system_error(errno, std::generic_category(), "waitpid");
  return WIFEXITED(Status) ? "exit " + std::to_string(WEXITSTATUS(Status))
                           : "signal " + std::to_string(WTERMSIG(Status));
}

bool eventually(function_ref<bool()> Holds) {
  using namespace std::chrono;
  for (auto Start = steady_clock::now(); !Holds(); std::this_thread::sleep_for(milliseconds(1)))
    if (steady_clock::now() - Start > minutes(1))
      return false;
  return true;
}

static std::unique_ptr<TaskDispatcher> dispatcher(Session::Dispatcher D) {
  if (D == Session::Dispatcher::InPlace)
    return std::make_unique<InPlaceTaskDispatcher>();
  return std::make_unique<ThreadPerTask>();
}

Session::Session(Setting S, Owner O, Dispatcher D, LLJITBuilder Builder)
    : Session(S, O, dispatcher(D), std::move(Builder)) {}

Session::Session(Setting S, Owner O, std::unique_ptr<TaskDispatcher> Tasks, LLJITBuilder Builder) {
  Pipe ToChild, FromChild;
  Child = std::make_unique<ChildProcess>(commandOf(S), ToChild.Read.Number, FromChild.Write.Number);
  ToChild.Read.close();
  FromChild.Write.close();

  SimpleRemoteEPC::Setup Setup;
  using Manager = std::unique_ptr<jitlink::JITLinkMemoryManager>;
  Setup.CreateMemoryManager = [&](SimpleRemoteEPC &EPC) -> Expected<Manager> {
    if (S == Setting::Llvm)
      return createLlvmManager(EPC);
    auto New = createManager(S, EPC);
    if (!New)
      return New.takeError();
    MM = New->get();
    if (O == Owner::EPC)
      return std::move(*New);
    OwnMM = std::move(*New);
    return jitlink::InProcessMemoryManager::Create(); // unused
  };
  auto EPC = must(SimpleRemoteEPC::Create<FDSimpleRemoteEPCTransport>(
      std::move(Tasks), std::move(Setup), FromChild.Read.release(), ToChild.Write.release()));
  if (MM) {
    EXPECT_EQ(MM->stats().mapper, mapperOf(S)) << MM->stats().mapper_name;
  }

  Builder.setExecutorProcessControl(std::move(EPC));
  if (!Builder.SetUpPlatform)
    Builder.setPlatformSetUp(setUpInactivePlatform);
  compat::setLinkingLayer(
      Builder, [&](ExecutionSession &ES) -> Expected<std::unique_ptr<ObjectLayer>> {
        auto Layer = O == Owner::EPC ? std::make_unique<ObjectLinkingLayer>(ES)
                     : O == Owner::Layer
                         ? std::make_unique<ObjectLinkingLayer>(ES, std::move(OwnMM))
                         : std::make_unique<ObjectLinkingLayer>(ES, *OwnMM);
        // As layers that jitmem makes do it.
        if (Error Err = MM ? jitmem::orc::detail::addFrames(*Layer, ES)
                           : compat::registerEHFrames(ES, *Layer))
          return Err;
        return Layer;
      });
  J = must(Builder.create());
  compat::linkWithExecutor(*J, J->getMainJITDylib());
  J->getExecutionSession().setErrorReporter([this](Error Err) {
    std::lock_guard<std::mutex> Lock(ErrorsMutex);
    Errors += toString(std::move(Err)) + "\n";
  });
}

Session::~Session() {
  J.reset();
  OwnMM.reset();
}

std::string Session::end() {
  J.reset();
  return Child->wait();
}

std::string Session::takeErrors() {
  std::lock_guard<std::mutex> Lock(ErrorsMutex);
  return std::exchange(Errors, "");
}

ExecutorAddr Session::addProblem(ResourceTrackerSP Tracker) {
  ExecutorAddr Last;
  for (auto [Source, Name] :
       {std::pair("throws.cpp", "throwProblem"), std::pair("passes.cpp", "passOn"),
        std::pair("catches.cpp", "catchProblem")}) {
    must(J->addObjectFile(Tracker, objectFile(Source)));
    Last = find(Name);
  }
  return Last;
}

ExecutorAddr Session::addProblem() {
  return addProblem(J->getMainJITDylib().getDefaultResourceTracker());
}

Expected<int> Session::tryRun(ExecutorAddr Function, int Argument) {
#if LLVM_VERSION_MAJOR >= 16
  return epc().runAsIntFunction(Function, Argument);
#else
  uint64_t Call[] = {Function.getValue(), uint64_t(uint32_t(Argument))};
  auto Answer = epc().callWrapper(inside("callFunction"),
                                  {reinterpret_cast<const char *>(Call), sizeof(Call)});
  if (const char *Message = Answer.getOutOfBandError())
    return createStringError(inconvertibleErrorCode(), Message);
  int Result = 0;
  // What has no answer after all, as its process has ended, is answered by no bytes.
  if (Answer.size() != sizeof(Result))
    return createStringError(inconvertibleErrorCode(), "an answer of another size");
  memcpy(&Result, Answer.data(), sizeof(Result));
  return Result;
#endif
}

std::string Session::call(ExecutorAddr Function, const std::string &Bytes) {
  auto Result = epc().callWrapper(Function, {Bytes.data(), Bytes.size()});
  if (const char *Message = Result.getOutOfBandError())
    throw std::runtime_error(Message);
  return std::string(Result.data(), Result.size());
}

ExecutorAddr Session::inside(const std::string &Name) {
  if (!HasInside)
    add("inside.c");
  HasInside = true;
  return find(Name);
}

std::string Session::bytesAt(ExecutorAddr Address, uint64_t Size) {
  uint64_t Range[] = {Address.getValue(), Size};
  return call(inside("readMemory"), {reinterpret_cast<const char *>(Range), sizeof(Range)});
}

std::vector<int> Session::takeNotes() {
  std::string Bytes = call(inside("takeNotes"), "");
  std::vector<int> Notes(Bytes.size() / sizeof(int));
  std::copy(Bytes.begin(), Bytes.end(), reinterpret_cast<char *>(Notes.data()));
  return Notes;
}

Journal::Call Session::note(int Id, char Behaviour) {
  using namespace llvm::orc::shared;
  return must(Journal::Call::Create<SPSArgList<int32_t, uint8_t>>(inside("note"), int32_t(Id),
                                                                  uint8_t(Behaviour)));
}
