// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef JITMEM_DEMO_SESSION_HPP
#define JITMEM_DEMO_SESSION_HPP

#include "executor.hpp"
#include "footprint.hpp"
#include "reported_errors.hpp"

#include <jitmem/orc.hpp>

#include "llvm/ExecutionEngine/Orc/ObjectLinkingLayer.h"
#include "llvm/Object/Archive.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace demo {

/// A static library, and the function of the driver that uses it.
struct Library {
  std::string Name;
  std::string Archive;  ///< path
  std::string Package;  ///< Debian package that has it
  std::string Function; ///< has main's signature, returns the number of wrong answers
};

/// What linking cost.
struct Figures {
  size_t Objects = 0;
  double Milliseconds = 0;
  /// Bytes that the linker wrote: sections kept after pruning, without zero-fill.
  uint64_t Content = 0;
  uint64_t Memory = 0; ///< bytes of pages really used
  int64_t Mappings = 0;
  uint64_t Messages = 0;     ///< to the executor
  uint64_t MessageBytes = 0; ///< of these messages and their answers
};

/// A memory manager; if it is jitmem's, both pointers have it.
struct Manager {
  std::unique_ptr<llvm::jitlink::JITLinkMemoryManager> Owned;
  const jitmem::orc::MemoryManager *Jitmem = nullptr;
};

/// Collects a Figures' Objects and Content as objects are linked.
class Meter;

/// One ORC session on one memory manager.
class Session {
public:
  using CreateManager = std::function<llvm::Expected<Manager>(llvm::orc::ExecutorProcessControl &)>;

  /// Other is EPC's executor, or nullptr if that is this process.
  static llvm::Expected<std::unique_ptr<Session>>
  Create(std::unique_ptr<llvm::orc::ExecutorProcessControl> EPC, const Executor *Other,
         CreateManager Create);
  /// Ends the session.
  ~Session();

  /// Links every member of the library.
  llvm::Expected<Figures> link(const Library &Lib);

  /// All that was linked so far, and what it took to make the memory manager.
  llvm::Expected<Figures> total() const;

  /// Links the object file that holds the libraries' functions against all that was linked so far.
  llvm::Error linkDriver(llvm::StringRef Path);

  /// Runs a function of the driver's in the executor. A wrong answer is an error.
  llvm::Error run(llvm::StringRef Function, bool Quiet);

  /// Gives all memory back and disconnects. Fails if something went wrong that no call has
  /// returned.
  llvm::Error end();

  /// nullptr if the memory manager is not jitmem's.
  const jitmem::orc::MemoryManager *jitmem() const { return Jitmem; }

private:
  Session(std::unique_ptr<llvm::orc::ExecutorProcessControl> EPC, const Executor *Other);

  Traffic crossed() const;
  llvm::Expected<llvm::object::Archive &> open(const Library &Lib);
  llvm::Error addMembers(llvm::orc::JITDylib &JD, llvm::object::Archive &Members,
                         llvm::orc::SymbolLookupSet &Linked);
  llvm::Error addObject(llvm::orc::JITDylib &JD, llvm::MemoryBufferRef Object,
                        llvm::orc::SymbolLookupSet &Linked);
  llvm::Error lookup(llvm::orc::JITDylib &JD, llvm::orc::SymbolLookupSet Symbols,
                     llvm::orc::SymbolMap *Found = nullptr);

  std::vector<llvm::object::OwningBinary<llvm::object::Archive>> Archives;
  std::vector<std::unique_ptr<llvm::MemoryBuffer>> Objects;
  const Executor *Other;
  std::vector<std::string> Processes; ///< entries in /proc of all that have linked code mapped
  ReportedErrors Reported;
  Footprint Before;
  Traffic CrossedBefore;
  double Milliseconds = 0;
  std::shared_ptr<Meter> Measure;
  llvm::orc::ExecutionSession ES;
  std::unique_ptr<llvm::orc::ObjectLinkingLayer> Layer;
  const jitmem::orc::MemoryManager *Jitmem = nullptr;
  bool HasEnded = false;
  llvm::orc::JITDylib *ProcessSymbols = nullptr;
  llvm::orc::JITDylib *Driver = nullptr;
  std::vector<llvm::orc::JITDylib *> Libraries;
};

} // namespace demo

#endif
