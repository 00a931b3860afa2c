// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// One plugin that tells gdb, lldb and perf of what an ObjectLinkingLayer links in this process, and
// has debuggers forget what is removed. Header only; link jitmem::orc and your LLVM.

#ifndef JITMEM_ORC_DEBUG_HPP
#define JITMEM_ORC_DEBUG_HPP

#include "orc_error.hpp"
#include "orc_frames.hpp"
#include "orc_listener.hpp"

#include <llvm/ADT/STLExtras.h>
#include <llvm/ADT/StringExtras.h>
#include <llvm/BinaryFormat/ELF.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>
#include <fcntl.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <system_error>
#include <unistd.h>
#include <utility>

namespace jitmem::orc {

/// Which tools are told.
struct DebugOptions {
  /// gdb and lldb, by GDB's JIT interface: breakpoints by name, lines and variables, as far as the
  /// objects have debug information.
  bool Debuggers = true;
  /// perf, by a line in /tmp/perf-PID.map for each function.
  bool PerfMap = true;
  /// perf, by FOLDER/jit-PID.dump, for `perf record -k mono` and `perf inject --jit`: has the code
  /// of each function and the time, so that functions are told apart that follow each other at one
  /// address. Empty: none is written. A process has one: of the folder that was named first.
  std::string JITDump;
  /// Has the jitdump say how functions are unwound, for `perf record --call-graph dwarf`: some 300
  /// bytes for each.
  bool JITDumpUnwinding = true;
};

namespace detail {

/// A function of an object that has been linked.
struct LinkedFunction {
  uint64_t Start, Size;
  llvm::StringRef Name;
};

/// A file that this process writes for perf. What can't be written, because a disk is full or
/// RLIMIT_FSIZE is less, is left out as a whole. A forked child's code is not what a file of its
/// parent is about, and a thread that the child lacks may have held its mutex.
class ProfileFile {
public:
  ProfileFile() = default;
  ProfileFile(const ProfileFile &) = delete;
  ProfileFile &operator=(const ProfileFile &) = delete;

  /// The process's file of a kind, which stays until it ends. Who asks first begins it.
  template <typename FileT, typename... ArgsT>
  static llvm::Expected<FileT *> get(const ArgsT &...Args) {
    static std::atomic<FileT *> Newest{nullptr};
    FileT *One = Newest;
    while (!One || !One->isOwn()) {
      auto Own = std::make_unique<FileT>();
      Own->Parents = One;
      // Where this fails, One becomes what another thread has made.
      if (Newest.compare_exchange_strong(One, Own.get()))
        One = Own.release();
    }
    std::lock_guard<std::mutex> Lock(One->M);
    if (One->Descriptor < 0)
      if (auto Err = One->begin(Args...))
        return Err;
    return One;
  }

protected:
  llvm::Error open(const std::string &Path) {
    Descriptor = ::open(Path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    return Descriptor < 0 ? failed("open", Path, "") : llvm::Error::success();
  }

  /// An error that errno tells, after which the file is not open.
  llvm::Error failed(const char *What, const std::string &Path, const char *Remedy) {
    std::error_code Code(errno, std::generic_category());
    if (Descriptor >= 0)
      close(std::exchange(Descriptor, -1));
    return llvm::make_error<MemoryError>(JITMEM_SYSTEM, Code.value(),
                                         std::string(What) + " " + Path +
                                             " for perf: " + Code.message() + Remedy);
  }

  bool isOwn() const { return getpid() == Owner; }

  /// Adds all of a text, or nothing, and returns which; errno tells why. It is in the file when the
  /// process is gone without an exit.
  bool append(llvm::StringRef Text) {
    if (!mayReach(FileSize + Text.size())) {
      errno = EFBIG;
      return false;
    }
    size_t Done = 0;
    while (Done != Text.size()) {
      ssize_t Written = pwrite(Descriptor, Text.data() + Done, Text.size() - Done,
                               static_cast<off_t>(FileSize + Done));
      if (Written > 0) {
        Done += Written;
      } else if (Written == 0 || errno != EINTR) {
        int Reason = Written == 0 ? EIO : errno;
        // Where this fails too, what follows is written over it.
        (void)!ftruncate(Descriptor, static_cast<off_t>(FileSize));
        errno = Reason;
        return false;
      }
    }
    FileSize += Done;
    return true;
  }

  /// Whether the process may write up to there: beyond it a write would not only fail, it would
  /// send SIGXFSZ, which ends a process that has not seen to it.
  static bool mayReach(uint64_t Size) {
    rlimit Limit;
    return getrlimit(RLIMIT_FSIZE, &Limit) != 0 || Size <= Limit.rlim_cur;
  }

  const pid_t Owner = getpid();
  /// In a child: the parent's, to which plugins of the parent's refer.
  ProfileFile *Parents = nullptr;
  int Descriptor = -1;
  uint64_t FileSize = 0;
  std::mutex M;
};

/// /tmp/perf-PID.map. perf looks addresses up when it reports, and takes the first line that has
/// them; so a line stays when its function goes, and goes when another is at its addresses.
class PerfMap : public ProfileFile {
public:
  llvm::Error begin() { return open("/tmp/perf-" + std::to_string(Owner) + ".map"); }

  /// Of one object, by their first addresses.
  template <typename FunctionsT> void add(const FunctionsT &Functions) {
    if (!isOwn())
      return;
    std::lock_guard<std::mutex> Lock(M);
    std::string Text;
    std::map<uint64_t, Line> Added;
    for (const LinkedFunction &F : Functions) {
      uint64_t End = F.Start + F.Size, Offset = FileSize + Text.size();
      empty(F.Start, End);
      Text += textOf(F);
      auto Last = Added.empty() ? Added.end() : std::prev(Added.end());
      if (Last == Added.end() || Last->second.End <= F.Start)
        Last = Added.emplace(F.Start, Line{0, Offset, 0}).first;
      Last->second.End = std::max(Last->second.End, End);
      Last->second.Size = FileSize + Text.size() - Last->second.Offset;
    }
    if (append(Text))
      Lines.merge(Added);
  }

private:
  /// Of a function, or of several of one object that overlap.
  struct Line {
    uint64_t End, Offset, Size;
  };

  /// With control characters replaced: in a name they would end the line.
  static std::string textOf(const LinkedFunction &F) {
    std::string Text = llvm::utohexstr(F.Start, true) + ' ' + llvm::utohexstr(F.Size, true) + ' ';
    for (char C : F.Name)
      Text += static_cast<unsigned char>(C) < ' ' || C == 0x7f ? '?' : C;
    return Text + '\n';
  }

  /// Makes lines empty that have addresses between these; perf passes over them.
  void empty(uint64_t Start, uint64_t End) {
    auto It = Lines.lower_bound(Start);
    if (It != Lines.begin() && std::prev(It)->second.End > Start)
      --It;
    while (It != Lines.end() && It->first < End) {
      std::string Nothing(It->second.Size, '\n');
      if (mayReach(It->second.Offset + It->second.Size))
        (void)!pwrite(Descriptor, Nothing.data(), Nothing.size(),
                      static_cast<off_t>(It->second.Offset));
      It = Lines.erase(It);
    }
  }

  /// By the address that each begins with; none reaches into another.
  std::map<uint64_t, Line> Lines;
};

/// The format is in tools/perf/Documentation/jitdump-specification.txt of Linux.
class JITDump : public ProfileFile {
public:
  /// `Machine` is ELF's.
  llvm::Error begin(const std::string &Folder, uint16_t Machine) {
    std::string Path = Folder + "/jit-" + std::to_string(Owner) + ".dump";
    if (auto Err = open(Path))
      return Err;
    std::string Header;
    put<uint32_t>(Header, 0x4a695444); // "JiTD" as a number
    put<uint32_t>(Header, 1);          // version
    put<uint32_t>(Header, 40);         // size of this header
    put<uint32_t>(Header, Machine);
    put<uint32_t>(Header, 0);
    put<uint32_t>(Header, Owner);
    put<uint64_t>(Header, now());
    put<uint64_t>(Header, 0); // flags
    if (!append(Header))
      return failed("write", Path, "; make room there or name another folder");
    // perf notes mappings of executable files, and so hears of this one, which stays.
    size_t Page = sysconf(_SC_PAGESIZE);
    if (mmap(nullptr, Page, PROT_READ | PROT_EXEC, MAP_PRIVATE, Descriptor, 0) == MAP_FAILED)
      return failed("map", Path, "; name a folder on a file system that is mounted with exec");
    return llvm::Error::success();
  }

  /// `Frames`: of the functions' section, or null.
  template <typename FunctionsT>
  void add(const FunctionsT &Functions, const FrameSection *Frames = nullptr) {
    if (!isOwn())
      return;
    std::lock_guard<std::mutex> Lock(M);
    std::string Records;
    for (const LinkedFunction &F : Functions) {
      if (Frames)
        unwind(Records, F, Frames->in(F.Start, F.Start + F.Size));
      load(Records, F.Name, F.Start,
           {llvm::orc::ExecutorAddr(F.Start).toPtr<const char *>(), F.Size});
      ++Count;
    }
    append(Records);
  }

private:
  enum Kind : uint32_t { CodeLoad = 0, CodeUnwindingInfo = 4 };

  /// What each record begins with. `Size` is of the rest.
  static void begin(std::string &Records, Kind Is, uint64_t Size) {
    put<uint32_t>(Records, Is);
    put<uint32_t>(Records, 16 + Size);
    put<uint64_t>(Records, now());
  }

  void load(std::string &Records, llvm::StringRef Name, uint64_t Address, llvm::StringRef Code) {
    begin(Records, CodeLoad, 40 + Name.size() + 1 + Code.size());
    put<uint32_t>(Records, Owner);
    put<uint32_t>(Records, syscall(SYS_gettid));
    put<uint64_t>(Records, Address);
    put<uint64_t>(Records, Address);
    put<uint64_t>(Records, Code.size());
    put<uint64_t>(Records, Count);
    Records.append(Name.data(), Name.size()).push_back('\0');
    Records.append(Code.data(), Code.size());
  }

  /// Belongs to the function that is loaded next.
  static void unwindingInfo(std::string &Records, llvm::StringRef Data, uint64_t HeaderSize,
                            uint64_t MappedSize) {
    begin(Records, CodeUnwindingInfo, 24 + Data.size());
    put<uint64_t>(Records, Data.size());
    put<uint64_t>(Records, HeaderSize);
    put<uint64_t>(Records, MappedSize);
    Records.append(Data.data(), Data.size());
  }

  /// Before a function's record: how it is unwound. perf would have the data mapped behind the
  /// code, where other functions are. So the same file is mapped at other addresses first, by a
  /// function without code whose data is replaced by the next one's.
  void unwind(std::string &Records, const LinkedFunction &F,
              const std::vector<FrameSection::Description> &Descriptions) {
    if (Descriptions.empty())
      return;
    uint64_t Size = UnwindingData(F.Start, F.Size, Descriptions, 1).mappedSize();
    uint64_t Mapped = Addresses.take(F.Start, Size);
    if (Mapped != 0) {
      unwindingInfo(Records, llvm::StringRef("\0\0\0\0\0\0\0", 8), 4, Size);
      load(Records, F.Name, Mapped, {});
    }
    UnwindingData Data(F.Start, F.Size, Descriptions, Mapped ? F.Start - Mapped : 0);
    unwindingInfo(Records, Data.bytes(), Data.headerSize(), 0);
  }

  /// Nanoseconds of the clock that `perf record -k mono` uses.
  static uint64_t now() {
    timespec Time;
    clock_gettime(CLOCK_MONOTONIC, &Time);
    return static_cast<uint64_t>(Time.tv_sec) * 1000000000 + static_cast<uint64_t>(Time.tv_nsec);
  }

  uint64_t Count = 0;
  UnwindingAddresses Addresses;
};

/// LLVM's listener for debuggers: one for the process, a static object of a function. Where a layer
/// is destroyed later than that, as a static LLJIT's that is older, nothing is left to be told.
class DebuggersListener {
public:
  static llvm::JITEventListener *get() {
    auto *Listener = llvm::JITEventListener::createGDBRegistrationListener();
    // Made after the listener, so it is destroyed before.
    static DebuggersListener Guard;
    return Listener;
  }
  static bool isThere() { return !Ended; }

private:
  DebuggersListener() {}
  ~DebuggersListener() { Ended = true; }

  static inline std::atomic<bool> Ended{false};
};

/// Passes on what is linked and removed.
struct DebugListener : llvm::JITEventListener {
  llvm::JITEventListener *Debuggers = nullptr;
  PerfMap *Map = nullptr;
  JITDump *Dump = nullptr;
  bool Unwinding = false;

  void notifyObjectLoaded(ObjectKey Key, const llvm::object::ObjectFile &Object,
                          const llvm::RuntimeDyld::LoadedObjectInfo &Info) override {
    if (Debuggers && DebuggersListener::isThere())
      Debuggers->notifyObjectLoaded(Key, Object, Info);
    if (!Map && !Dump)
      return;
    auto Linked = Info.getObjectForDebug(Object);
    if (!Linked.getBinary())
      return;
    auto Functions = functionsOf(*Linked.getBinary());
    if (Map)
      Map->add(Functions);
    if (Dump && Unwinding) {
      // What it is told by.
      auto Range = static_cast<const LinkedObject &>(Info).frames();
      FrameSection Frames(Range.Start, {llvm::orc::ExecutorAddr(Range.Start).toPtr<const char *>(),
                                        static_cast<size_t>(Range.End - Range.Start)});
      Dump->add(Functions, &Frames);
    } else if (Dump) {
      Dump->add(Functions);
    }
  }

  void notifyFreeingObject(ObjectKey Key) override {
    if (Debuggers && DebuggersListener::isThere())
      Debuggers->notifyFreeingObject(Key);
  }

private:
  /// Functions with a size, where they are, by their first addresses. Sections that were not linked
  /// are at no address. Up to LLVM 16 JITLink takes objects in which a function is said to be
  /// larger than its section.
  static std::vector<LinkedFunction> functionsOf(const llvm::object::ObjectFile &Object) {
    std::vector<LinkedFunction> Functions;
    for (llvm::object::ELFSymbolRef Symbol : Object.symbols()) {
      if (Symbol.getELFType() != llvm::ELF::STT_FUNC || Symbol.getSize() == 0)
        continue;
      auto Section = Symbol.getSection();
      auto Address = Symbol.getAddress();
      auto Name = Symbol.getName();
      if (Section && Address && Name && *Section != Object.section_end() &&
          (*Section)->getAddress() != 0 &&
          llvm::object::ELFSectionRef(**Section).getFlags() & llvm::ELF::SHF_ALLOC) {
        uint64_t Offset = *Address - (*Section)->getAddress(), End = (*Section)->getSize();
        if (Offset < End)
          Functions.push_back({*Address, std::min(Symbol.getSize(), End - Offset), *Name});
      }
      llvm::consumeError(Section.takeError());
      llvm::consumeError(Address.takeError());
      llvm::consumeError(Name.takeError());
    }
    llvm::sort(Functions,
               [](const LinkedFunction &A, const LinkedFunction &B) { return A.Start < B.Start; });
    return Functions;
  }
};

/// Ends after the plugin, which tells it of what is left.
struct HasDebugListener {
  DebugListener Tools;
};

} // namespace detail

/// Tells debuggers and perf of an ObjectLinkingLayer's functions, before they can be called. What
/// is removed is forgotten by debuggers before its memory is given back; perf needs it to the end.
/// For ELF objects linked in this process, as ListenerPlugin. Several layers may have one each.
class DebugPlugin : detail::HasDebugListener, public ListenerPlugin {
public:
  /// Opens the files. An error if one can't be opened, or if the session's code runs elsewhere.
  static llvm::Expected<std::unique_ptr<DebugPlugin>> Create(llvm::orc::ExecutionSession &ES,
                                                             const DebugOptions &O = {}) {
    if (!detail::isThisProcess(ES.getExecutorProcessControl()))
      return llvm::make_error<MemoryError>(
          JITMEM_UNSUPPORTED, 0,
          "tell tools of linked code: it runs in another process; use LLVM's plugins for that");
    std::unique_ptr<DebugPlugin> Plugin(new DebugPlugin);
    if (O.Debuggers)
      Plugin->Tools.Debuggers = detail::DebuggersListener::get();
    if (O.PerfMap) {
      auto Map = detail::ProfileFile::get<detail::PerfMap>();
      if (!Map)
        return Map.takeError();
      Plugin->Tools.Map = *Map;
    }
    if (!O.JITDump.empty()) {
      auto Dump = detail::ProfileFile::get<detail::JITDump>(O.JITDump, Machine);
      if (!Dump)
        return Dump.takeError();
      Plugin->Tools.Dump = *Dump;
      Plugin->Tools.Unwinding = O.JITDumpUnwinding;
    }
    return Plugin;
  }

private:
#if defined(__x86_64__)
  static constexpr uint16_t Machine = llvm::ELF::EM_X86_64;
#elif defined(__aarch64__)
  static constexpr uint16_t Machine = llvm::ELF::EM_AARCH64;
#elif defined(__riscv)
  static constexpr uint16_t Machine = llvm::ELF::EM_RISCV;
#endif

  DebugPlugin() : ListenerPlugin(Tools) {}
};

} // namespace jitmem::orc

#endif // JITMEM_ORC_DEBUG_HPP
