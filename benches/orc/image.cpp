// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// The objects of (b) and (c) in fresh processes: linked by JITLink, and loaded from images that
// another process has stored, into ORC sessions and by a program without LLVM. The floor of
// sessions is what every way to load them must do: symbols of the same names are defined and looked
// up, and as many bytes get new pages that are shared.
//   jitmem-bench-image [--rounds=N]

#include "objects.hpp"

#include "llvm/ExecutionEngine/Orc/EPCDynamicLibrarySearchGenerator.h"
#include "llvm/ExecutionEngine/Orc/SelfExecutorProcessControl.h"
#include "llvm/ExecutionEngine/Orc/TaskDispatch.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/Format.h"
#include "llvm/Support/FormatVariadic.h"
#include "llvm/Support/Program.h"
#include "llvm/Support/raw_ostream.h"
#include <jitmem/orc_image.hpp>
#include <jitmem/orc_layer.hpp>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

using namespace llvm;
using namespace llvm::orc;
using namespace bench;
using jitmem::orc::ImageLoader;
using jitmem::orc::ImagePlugin;
using jitmem::orc::ImageRecorder;
using jitmem::orc::MemoryManager;

static ExitOnError Exit("jitmem-bench-image: ");

/// What gets an image each: in "each" the libraries of (c) have one of their own.
static std::vector<Library> readWorkload(StringRef Key) {
  std::vector<Library> All;
  if (Key == "b") {
    All.push_back({"tiny", Exit(compileTinyObjects())});
    return All;
  }
  std::vector<Library> Libraries = Exit(readLibraries());
  if (Key == "each")
    return Libraries;
  All.push_back({"all", {}});
  for (Library &L : Libraries)
    std::move(L.Members.begin(), L.Members.end(), std::back_inserter(All.front().Members));
  return All;
}

static std::string pathOf(StringRef Folder, StringRef Key, const Library &L) {
  return formatv("{0}/{1}-{2}", Folder, Key, L.Name).str();
}

/// What a process says of its work.
struct Figures {
  double Milliseconds = 0;
  uint64_t Symbols = 0;
};

namespace {

/// A call whose result is known.
struct Check {
  const char *Name;
  int Argument, Result;
};

const Check Checks[] = {{"tiny_0", 13, tinyResult(0, 13)},
                        {"tiny_1999", 13, tinyResult(1999, 13)},
                        {"luaO_ceillog2", 1000, 10},
                        {"sqlite3_initialize", 0, 0},
                        {"deflateEnd", 0, -2},
                        {"ZSTD_maxCLevel", 0, 22},
                        {"sqlite3_shutdown", 0, 0}};

/// A session in which each library has a JITDylib of its own.
class Process {
public:
  explicit Process(std::string Key)
      : Key(std::move(Key)), MM(Exit(MemoryManager::CreateInProcess())),
        ES(Exit(SelfExecutorProcessControl::Create(nullptr,
                                                   std::make_unique<InPlaceTaskDispatcher>()))),
        Loader(std::make_unique<ImageLoader>(ES, *MM)) {
    Exit(ES.getExecutorProcessControl().getDylibMgr().loadDylib("libm.so.6").takeError());
  }
  ~Process() {
    Exit(ES.endSession());
    Loader.reset();
  }

  JITDylib &dylib(StringRef Name) {
    JITDylib &JD = ES.createBareJITDylib(Name.str());
    JD.addGenerator(Exit(EPCDynamicLibrarySearchGenerator::GetForTargetProcess(ES)));
    return JD;
  }

  /// Links all objects of a library and looks all their symbols up.
  void link(const Library &L, const std::shared_ptr<ImageRecorder> &Recorder, Figures &F) {
    JITDylib &JD = dylib(L.Name);
    Layers.push_back(Exit(jitmem::orc::createObjectLayer(ES, *MM)));
    if (Recorder)
      Layers.back()->addPlugin(std::make_unique<ImagePlugin>(Recorder));
    for (const Object &O : L.Members)
      Exit(Layers.back()->add(JD, MemoryBuffer::getMemBuffer(O.Buffer->getMemBufferRef(), false)));
    lookUp(JD, L, F);
  }

  void load(const Library &L, StringRef Folder, Figures &F) {
    JITDylib &JD = dylib(L.Name);
    Exit(Loader->add(JD, pathOf(Folder, Key, L)));
    lookUp(JD, L, F);
  }

  /// With the symbols that are called alone.
  void loadCalled(const Library &L, StringRef Folder, Figures &F) {
    JITDylib &JD = dylib(L.Name);
    SymbolLookupSet Called;
    auto Define = [&](StringRef Name) {
      for (auto &One : Checks)
        if (Name == One.Name) {
          Called.add(ES.intern(Name));
          return true;
        }
      return false;
    };
    Exit(Loader->add(JD, pathOf(Folder, Key, L), {}, Define));
    lookUp(JD, std::move(Called), F);
  }

  void floor(const Library &L, Figures &F) {
    JITDylib &JD = dylib(L.Name);
    size_t Bytes = 0;
    SymbolMap Map;
    for (const Object &O : L.Members) {
      Bytes += O.Content;
      for (const std::string &Name : O.Defines)
        Map[ES.intern(Name)] = {ExecutorAddr::fromPtr(this), JITSymbolFlags::Exported};
    }
    Exit(JD.define(absoluteSymbols(std::move(Map))));
    writeOnce(Bytes);
    lookUp(JD, L, F);
  }

  /// That the code works.
  void check() {
    for (auto &[Name, Argument, Result] : Checks) {
      auto Found = Symbols.find(ES.intern(Name));
      if (Found != Symbols.end())
        Exit(expectCall(ES, Found->second.getAddress(), Name, Argument, Result));
    }
  }

private:
  /// By the fastest way: the system neither clears pages that it fills nor takes a fault for each.
  void writeOnce(size_t Bytes) {
    int File = memfd_create("floor", MFD_CLOEXEC);
    if (File < 0 || Bytes > Content.size() ||
        pwrite(File, Content.data(), Bytes, 0) != ssize_t(Bytes))
      Exit(createStringError("no memory for the floor"));
    close(File);
  }

  void lookUp(JITDylib &JD, const Library &L, Figures &F) {
    SymbolLookupSet Names;
    for (const Object &O : L.Members)
      for (const std::string &Name : O.Defines)
        Names.add(ES.intern(Name));
    lookUp(JD, std::move(Names), F);
  }

  void lookUp(JITDylib &JD, SymbolLookupSet Names, Figures &F) {
    auto Found = Exit(ES.lookup({{&JD, JITDylibLookupFlags::MatchAllSymbols}}, std::move(Names)));
    F.Symbols += Found.size();
    for (auto &[Name, Definition] : Found)
      Symbols[Name] = Definition;
  }

  std::string Key;
  std::unique_ptr<MemoryManager> MM;
  ExecutionSession ES;
  std::unique_ptr<ImageLoader> Loader;
  std::vector<std::unique_ptr<ObjectLinkingLayer>> Layers;
  SymbolMap Symbols;
  /// As much as any library has, for the floor.
  std::vector<char> Content = std::vector<char>(size_t(4) << 20, 1);
};

} // namespace

/// What one process does: "store", "link", "load", "call" or "floor".
static Figures work(StringRef What, StringRef Key, StringRef Folder) {
  auto Libraries = readWorkload(Key);
  Figures F;
  Process P(Key.str());
  std::vector<std::shared_ptr<ImageRecorder>> Recorders;
  auto Start = std::chrono::steady_clock::now();
  for (const Library &L : Libraries) {
    if (What == "load") {
      P.load(L, Folder, F);
    } else if (What == "call") {
      P.loadCalled(L, Folder, F);
    } else if (What == "floor") {
      P.floor(L, F);
    } else {
      Recorders.push_back(What == "store" ? Exit(ImageRecorder::Create()) : nullptr);
      P.link(L, Recorders.back(), F);
    }
  }
  auto End = std::chrono::steady_clock::now();
  F.Milliseconds = std::chrono::duration<double, std::milli>(End - Start).count();
  if (What == "store")
    for (size_t I = 0; I != Libraries.size(); ++I)
      Exit(Recorders[I]->store(pathOf(Folder, Key, Libraries[I])));
  if (What != "floor")
    P.check();
  return F;
}

/// What a program prints.
static Figures run(ArrayRef<StringRef> Command, StringRef Folder) {
  std::string Answers = (Folder + "/answers").str(), Message;
  // The child would write over what is there and leave the rest of it.
  Exit(errorCodeToError(sys::fs::remove(Answers)));
  std::optional<StringRef> Redirects[] = {std::nullopt, StringRef(Answers), std::nullopt};
  if (sys::ExecuteAndWait(Command[0], Command, std::nullopt, Redirects, 0, 0, &Message))
    Exit(createStringError("%s failed: %s", join(Command, " ").c_str(), Message.c_str()));
  auto Text = MemoryBuffer::getFile(Answers);
  Exit(errorCodeToError(Text.getError()));
  Figures F;
  auto [Time, Symbols] = (*Text)->getBuffer().split(' ');
  if (Time.getAsDouble(F.Milliseconds) || Symbols.trim().getAsInteger(10, F.Symbols))
    Exit(createStringError("%s says nothing", join(Command, " ").c_str()));
  return F;
}

/// The command of a process without LLVM that loads a workload's images.
static std::vector<std::string> commandAlone(StringRef Key, StringRef Folder) {
  std::vector<std::string> Command = {JITMEM_BENCH_IMAGE_ALONE, jitmem::orc::detail::LLVMRelease};
  std::set<StringRef> Defined;
  auto Libraries = readWorkload(Key);
  for (const Library &L : Libraries) {
    Command.push_back(pathOf(Folder, Key, L));
    for (const Object &O : L.Members)
      Defined.insert(O.Defines.begin(), O.Defines.end());
  }
  Command.push_back("--");
  for (auto &[Name, Argument, Result] : Checks)
    if (Defined.count(Name))
      Command.insert(Command.end(), {Name, std::to_string(Argument), std::to_string(Result)});
  return Command;
}

static double median(std::vector<double> Values) {
  std::nth_element(Values.begin(), Values.begin() + Values.size() / 2, Values.end());
  return Values[Values.size() / 2];
}

int main(int Count, char **Arguments) {
  if (Count == 4) {
    Figures F = work(Arguments[1], Arguments[2], Arguments[3]);
    outs() << format("%.6f", F.Milliseconds) << ' ' << F.Symbols << '\n';
    return 0;
  }
  unsigned Rounds = 15;
  for (int I = 1; I != Count; ++I) {
    StringRef Argument = Arguments[I];
    if (!Argument.consume_front("--rounds=") || Argument.getAsInteger(10, Rounds) || !Rounds) {
      errs() << "usage: jitmem-bench-image [--rounds=N]\n";
      return 2;
    }
  }
  SmallString<128> Folder;
  Exit(errorCodeToError(sys::fs::createUniqueDirectory("jitmem-bench-image", Folder)));
  std::string Program = sys::fs::getMainExecutable(Arguments[0], reinterpret_cast<void *>(&main));
  auto RunHere = [&](StringRef What, StringRef Key) {
    return run({Program, What, Key, Folder}, Folder);
  };
  outs() << "Objects linked by JITLink in a fresh process, and loaded from images in another; "
            "medians of "
         << Rounds
         << " processes each, which take turns. From the first object that is added, or the first "
            "image, to the addresses of all symbols. Objects are in memory, images in the "
            "system's page cache. "
            "The floor is what every way to load into a session must do: to define and look up as "
            "many symbols, and to write as many bytes to new pages of a memfd, by one system call. "
            "With some symbols, only those are defined and looked up that are called then: two of "
            "(b), five "
            "of (c). "
            "Without LLVM is a program that has not even loaded it: symbols "
            "come from dlsym, and addresses from jitmem_image_exports.\n\n"
            "| workload | symbols | linked, ms | loaded into a session, ms | times faster "
            "| floor, ms | with some symbols, ms | times faster "
            "| loaded without LLVM, ms | times faster |\n"
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n";
  for (auto &[Key, Name] : {std::pair<StringRef, StringRef>("b", "(b)"),
                            {"c", "(c)"},
                            {"each", "(c), an image for each library"}}) {
    uint64_t Symbols = RunHere("store", Key).Symbols;
    auto Alone = commandAlone(Key, Folder);
    std::vector<StringRef> AloneRefs(Alone.begin(), Alone.end());
    std::vector<double> Linked, Loaded, Floor, Called, Plain;
    for (unsigned Round = 0; Round != Rounds; ++Round) {
      Linked.push_back(RunHere("link", Key).Milliseconds);
      Loaded.push_back(RunHere("load", Key).Milliseconds);
      Floor.push_back(RunHere("floor", Key).Milliseconds);
      Called.push_back(RunHere("call", Key).Milliseconds);
      Plain.push_back(run(AloneRefs, Folder).Milliseconds);
    }
    auto TimesFaster = [&](std::vector<double> &Other) { return median(Linked) / median(Other); };
    outs() << formatv("| {0} | {1} | {2:f2} | {3:f2} | {4:f1} | {5:f2} | {6:f2} | {7:f1} | {8:f2} "
                      "| {9:f1} |\n",
                      Name, Symbols, median(Linked), median(Loaded), TimesFaster(Loaded),
                      median(Floor), median(Called), TimesFaster(Called), median(Plain),
                      TimesFaster(Plain));
  }
  sys::fs::remove_directories(Folder);
  return 0;
}
