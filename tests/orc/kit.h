// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the tests share: hand-built link graphs, allocations that free themselves, recorded
// allocation actions, and the process's mappings.

#ifndef JITMEM_TESTS_ORC_KIT_H
#define JITMEM_TESTS_ORC_KIT_H

#include "instrumented.h"
#include "managers.h"

#include <cstring>
#include <initializer_list>
#include <mutex>
#include <stdexcept>
#include <sys/types.h>
#include <vector>

using compat::AllocGroup;
using compat::MemLifetime;
using compat::MemProt;
using llvm::orc::ExecutorAddr;

// MemProt's operators are not found by argument-dependent lookup.
LLVM_ENABLE_BITMASK_ENUMS_IN_NAMESPACE();

constexpr MemProt R = MemProt::Read;
// Not by LLVM's operator, which is no constant expression in the oldest releases.
constexpr MemProt with(MemProt A, MemProt B) {
  return static_cast<MemProt>(static_cast<uint8_t>(A) | static_cast<uint8_t>(B));
}
constexpr MemProt RW = with(MemProt::Read, MemProt::Write);
constexpr MemProt RX = with(MemProt::Read, MemProt::Exec);
constexpr MemProt RWX = with(RW, MemProt::Exec);

constexpr uint64_t KiB = 1024, MiB = 1024 * KiB, GiB = 1024 * MiB;

// Farther apart than this, two graphs could not refer to each other with 32 bits.
constexpr uint64_t MaxSpan = 2 * GiB - 2 * MiB;

// Ends the test when a step that it takes for granted fails: GoogleTest reports the exception. Not
// to be used in callbacks, where an exception would travel through the manager.
inline void must(llvm::Error Err) {
  if (Err)
    throw std::runtime_error(llvm::toString(std::move(Err)));
}
template <typename T> T must(llvm::Expected<T> Value) {
  if (!Value)
    throw std::runtime_error(llvm::toString(Value.takeError()));
  return std::move(*Value);
}
template <typename T> T &must(llvm::Expected<T &> Value) {
  if (!Value)
    throw std::runtime_error(llvm::toString(Value.takeError()));
  return *Value;
}

// The text of an error that must be there.
std::string messageOf(llvm::Error Err);
template <typename T> std::string messageOf(llvm::Expected<T> Value) {
  return messageOf(Value ? llvm::Error::success() : Value.takeError());
}

// Whether Message has all Words in it, in any case.
::testing::AssertionResult mentions(const std::string &Message,
                                    std::initializer_list<const char *> Words);

// Code that returns Value, with nothing to fix up.
std::string codeReturning(int32_t Value);

// Calls linked code. UBSan's function sanitizer would look for a type signature in front of it.
#if defined(__clang__)
__attribute__((no_sanitize("function")))
#endif
inline int call(ExecutorAddr Entry) {
  return Entry.toPtr<int (*)()>()();
}

llvm::jitlink::Section &addSection(llvm::jitlink::LinkGraph &G, const char *Name, AllocGroup AG);

// A block's place among its section's blocks follows from its address in the object file, as for a
// graph that was read from one; by default behind those that are there.
struct BlockPlace {
  uint64_t Align = 1;
  uint64_t AlignOffset = 0;
  uint64_t ObjectAddress = ~uint64_t(0);
};
llvm::jitlink::Block &addContent(llvm::jitlink::LinkGraph &G, llvm::jitlink::Section &S,
                                 llvm::StringRef Bytes, BlockPlace Place = {});
llvm::jitlink::Block &addZeroFill(llvm::jitlink::LinkGraph &G, llvm::jitlink::Section &S,
                                  uint64_t Size, BlockPlace Place = {});

inline char *bytesAt(ExecutorAddr A) { return A.toPtr<char *>(); }
::testing::AssertionResult allBytesAre(ExecutorAddr Start, uint64_t Size, char Expected);

// A finalized allocation that is freed at the end of its scope, if not before.
class Placed {
public:
  using FinalizedAlloc = llvm::jitlink::JITLinkMemoryManager::FinalizedAlloc;

  Placed() = default;
  Placed(llvm::jitlink::JITLinkMemoryManager &MM, FinalizedAlloc FA) : MM(&MM), FA(std::move(FA)) {}
  Placed(Placed &&) = default;
  Placed &operator=(Placed &&Other) {
    must(free());
    MM = Other.MM;
    FA = std::move(Other.FA);
    return *this;
  }
  ~Placed() {
    if (llvm::Error Err = free())
      ADD_FAILURE() << llvm::toString(std::move(Err));
  }

  explicit operator bool() const { return bool(FA); }
  FinalizedAlloc release() { return std::move(FA); }
  llvm::Error free() { return FA ? MM->deallocate(std::move(FA)) : llvm::Error::success(); }

private:
  llvm::jitlink::JITLinkMemoryManager *MM = nullptr;
  FinalizedAlloc FA;
};

using InFlight = std::unique_ptr<llvm::jitlink::JITLinkMemoryManager::InFlightAlloc>;

llvm::Error abandon(InFlight Alloc);

// Frees all at once, in one request.
llvm::Error freeAll(llvm::jitlink::JITLinkMemoryManager &MM, std::vector<Placed> &All);

// One segment of one content block, placed.
struct Piece {
  ExecutorAddr Addr;
  Placed Alloc;
};

class ManagerTest : public ::testing::TestWithParam<Kind> {
protected:
  ManagerTest() : ManagerTest(jitmem::orc::Options()) {}
  explicit ManagerTest(jitmem::orc::Options O) : MM(must(createManager(GetParam(), O))) {}
  void TearDown() override { expectNothingLeft(GetParam(), *MM); }

  InFlight allocate(llvm::jitlink::LinkGraph &G, const llvm::jitlink::JITLinkDylib *JD = nullptr) {
    return must(MM->allocate(JD, G));
  }
  Placed finalize(InFlight Alloc) { return Placed(*MM, must(Alloc->finalize())); }
  Placed place(llvm::jitlink::LinkGraph &G, const llvm::jitlink::JITLinkDylib *JD = nullptr) {
    return finalize(allocate(G, JD));
  }
  llvm::Expected<Piece> tryPiece(AllocGroup AG, uint64_t Size, uint64_t Align = 1,
                                 const llvm::jitlink::JITLinkDylib *JD = nullptr);
  Piece piece(AllocGroup AG, uint64_t Size, uint64_t Align = 1,
              const llvm::jitlink::JITLinkDylib *JD = nullptr) {
    return must(tryPiece(AG, Size, Align, JD));
  }

  std::unique_ptr<llvm::jitlink::JITLinkMemoryManager> MM;
};

// Allocation actions that write down that they ran.
class Journal {
public:
  using Call = llvm::orc::shared::WrapperFunctionCall;

  // Each notes Id when it runs; failing also returns an error, refusing an out-of-band one.
  Call note(int Id) { return make(Id, 'n'); }
  Call failing(int Id) { return make(Id, 'f'); }
  Call refusing(int Id) { return make(Id, 'r'); }
  static Call none() { return Call(); }

  std::vector<int> ids() const {
    std::lock_guard<std::mutex> Lock(M);
    return Ids;
  }

private:
  Call make(int Id, char Behaviour);
  static compat::ActionResult run(const char *ArgData, size_t ArgSize);

  mutable std::mutex M;
  std::vector<int> Ids;
};

// One line of /proc/PID/maps.
struct Mapping {
  uint64_t Start, End;
  std::string Perms; // "rwxp"
  std::string Path;

  bool writable() const { return Perms[1] == 'w'; }
  bool executable() const { return Perms[2] == 'x'; }
};
std::vector<Mapping> readMappings(pid_t Process = 0); // 0: this one
Mapping mappingAt(ExecutorAddr A);

#endif // JITMEM_TESTS_ORC_KIT_H
