// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "libraries.hpp"
#include "layout.hpp"
#include "report.hpp"
#include "scene.hpp"
#include "text.hpp"

#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"

using namespace llvm;
using namespace llvm::orc;

namespace demo {

ArrayRef<Library> libraries() {
  static const Library Libraries[] = {
      {"lua", DEMO_LUA, "liblua5.4-dev", "demo_lua"},
      {"sqlite", DEMO_SQLITE, "libsqlite3-dev", "demo_sqlite"},
      {"zlib", DEMO_ZLIB, "zlib1g-dev", "demo_zlib"},
      {"zstd", DEMO_ZSTD, "libzstd-dev", "demo_zstd"},
  };
  return Libraries;
}

namespace {

class LibrariesScene {
public:
  explicit LibrariesScene(const Options &O)
      : O(O),
        Screen(1, O.InProcess ? "Lua, SQLite, zlib and zstd are linked into this process and used"
                              : "Lua, SQLite, zlib and zstd are linked into a second process and "
                                "used there") {}

  Expected<LibrariesOutcome> run();

private:
  /// What becomes of a session that has everything linked, before it ends.
  using Inspect = function_ref<Error(Session &)>;

  Error runOnce(MeasuredManager &M, bool Quiet, Inspect Look);
  Error runSession(MeasuredManager &M, std::unique_ptr<ExecutorProcessControl> EPC,
                   const Executor *Other, bool Quiet, Inspect Look);
  Error linkAndUse(MeasuredManager &M, Session &S, bool Quiet, Inspect Look);
  Error draw(Session &S, const MeasuredManager &M) const;
  void showResult(const MeasuredManager &M);

  const Options &O;
  Scene Screen;
};

/// Links all libraries and, if that worked, uses them.
Error LibrariesScene::linkAndUse(MeasuredManager &M, Session &S, bool Quiet, Inspect Look) {
  for (auto [Lib, Result] : zip(libraries(), M.Libraries))
    Result.record(S.link(Lib));
  if (!M.failure())
    M.All.record(S.total());
  if (const std::string *Failure = M.failure()) {
    M.All.Runs.clear();
    return S.jitmem() ? createStringError(*Failure) : Error::success();
  }
  if (auto E = S.linkDriver(O.DriverPath))
    return E;
  for (const Library &Lib : libraries())
    if (auto E = S.run(Lib.Function, Quiet))
      return E;
  return Look(S);
}

/// One session, from the making of the manager to its end.
Error LibrariesScene::runSession(MeasuredManager &M, std::unique_ptr<ExecutorProcessControl> EPC,
                                 const Executor *Other, bool Quiet, Inspect Look) {
  std::unique_ptr<Session> S;
  if (auto E = Session::Create(std::move(EPC), Other, M.Create).moveInto(S))
    return E;
  if (auto E = linkAndUse(M, *S, Quiet, Look))
    return E;
  // What failed is told already, and so is why.
  if (auto E = S->end(); E && !M.failure())
    return E;
  else
    consumeError(std::move(E));
  return Error::success();
}

Error LibrariesScene::runOnce(MeasuredManager &M, bool Quiet, Inspect Look) {
  M.Libraries.resize(libraries().size());
  // In place, so that all managers run under the same, simplest dispatcher.
  auto Dispatcher = std::make_unique<InPlaceTaskDispatcher>();
  std::unique_ptr<ExecutorProcessControl> EPC;
  if (!M.IsAcross) {
    if (auto E = SelfExecutorProcessControl::Create(nullptr, std::move(Dispatcher)).moveInto(EPC))
      return E;
    return runSession(M, std::move(EPC), nullptr, Quiet, Look);
  }
  std::unique_ptr<Executor> Other;
  if (auto E = Executor::Start(O.ExecutorPath).moveInto(Other))
    return E;
  if (auto E = Other->connect(std::move(Dispatcher)).moveInto(EPC))
    return E;
  if (!Quiet)
    Screen.note(formatv("Process {0} runs them and writes:", Other->pid()).str());
  auto Failure = runSession(M, std::move(EPC), Other.get(), Quiet, Look);
  return joinErrors(std::move(Failure), Other->waitForEnd());
}

Error LibrariesScene::draw(Session &S, const MeasuredManager &M) const {
  Figures F = M.All.median();
  return drawLayout(
      S.jitmem()->handle(), O.LayoutPath,
      formatv("Where jitmem put the {0} object files of Lua, SQLite, zlib and zstd", F.Objects));
}

void LibrariesScene::showResult(const MeasuredManager &M) {
  if (const std::string *Failure = M.failure()) {
    Screen.result(M.Name, "failed: " + *Failure);
    return;
  }
  Figures F = M.All.median();
  std::string Text = formatv("{0} objects linked in {1:f1} ms; {2} in {3} mappings", F.Objects,
                             F.Milliseconds, bytes(F.Memory), F.Mappings);
  if (M.IsAcross)
    Text += formatv("; {0} messages", F.Messages);
  Screen.result(M.Name, Text);
}

Expected<LibrariesOutcome> LibrariesScene::run() {
  LibrariesOutcome Out;
  std::vector<MeasuredManager> &Managers = Out.Managers;
  if (!O.InProcess)
    Managers = managersAcross();
  append_range(Managers, managersInProcess(O.Mapper));
  MeasuredManager &Shown = Managers.front();

  if (auto E = runOnce(Shown, /*Quiet=*/false, [](Session &) { return Error::success(); }))
    return E;
  // That first run also paid for what happens only once in a process, so it does not count.
  Shown.Libraries.clear();
  Shown.All = {};

  for (unsigned Round = 0; Round < O.Rounds; ++Round)
    for (size_t Turn = 0; Turn < Managers.size(); ++Turn) {
      // Each comes first equally often.
      MeasuredManager &M = Managers[(Turn + Round) % Managers.size()];
      if (M.failure())
        continue;
      Screen.progress(
          formatv("linking with {0}, round {1} of {2}", M.Name, Round + 1, O.Rounds).str());
      auto Look = [&](Session &S) -> Error {
        if (&M != &Shown || Round + 1 < O.Rounds)
          return Error::success();
        Out.Memory = describe(S.jitmem()->stats());
        return draw(S, M);
      };
      if (auto E = runOnce(M, /*Quiet=*/true, Look))
        return createStringError(M.Name + ": " + toString(std::move(E)));
    }
  // Those that a host would choose between; the tables have the others.
  for (const MeasuredManager &M : ArrayRef(Managers).take_front(2))
    showResult(M);
  Screen.end();
  return Out;
}

} // namespace

Expected<LibrariesOutcome> runLibraries(const Options &O) { return LibrariesScene(O).run(); }

} // namespace demo
