// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "kit.h"

#include <llvm/ADT/StringExtras.h>

#include <fstream>
#include <sstream>

#if defined(JITMEM_TEST_INSTRUMENTED) && __has_include(<valgrind/valgrind.h>)
#include <pthread.h>
#include <valgrind/valgrind.h>

// A child ends in the middle of its parent's work, with all of its memory.
[[maybe_unused]] static const int ForgetLeaks =
    pthread_atfork(nullptr, nullptr, [] { VALGRIND_CLO_CHANGE("--leak-check=no"); });
#endif

using namespace llvm;
using namespace llvm::jitlink;

std::string messageOf(Error Err) {
  if (!Err) {
    ADD_FAILURE() << "no error was reported";
    return "";
  }
  return toString(std::move(Err));
}

::testing::AssertionResult mentions(const std::string &Message,
                                    std::initializer_list<const char *> Words) {
  for (const char *Word : Words)
    if (!StringRef(Message).contains_insensitive(Word))
      return ::testing::AssertionFailure() << "\"" << Message << "\" says nothing of " << Word;
  return ::testing::AssertionSuccess();
}

std::string codeReturning(int32_t Value) {
  std::string Code = "\xb8"; // mov $Value, %eax
  Code.append(reinterpret_cast<const char *>(&Value), sizeof(Value));
  Code += "\xc3"; // ret
  return Code;
}

Section &addSection(LinkGraph &G, const char *Name, AllocGroup AG) {
  return compat::createSection(G, Name, AG);
}

static ExecutorAddr objectAddress(Section &S, const BlockPlace &Place) {
  if (Place.ObjectAddress != ~uint64_t(0))
    return ExecutorAddr(Place.ObjectAddress);
  uint64_t End = 0;
  for (Block *B : S.blocks())
    End = std::max(End, (B->getAddress() + B->getSize()).getValue());
  // The first address from End on that has the block's alignment and offset.
  uint64_t Base = End > Place.AlignOffset ? End - Place.AlignOffset : 0;
  return ExecutorAddr((Base + Place.Align - 1) / Place.Align * Place.Align + Place.AlignOffset);
}

Block &addContent(LinkGraph &G, Section &S, StringRef Bytes, BlockPlace Place) {
  return G.createMutableContentBlock(S,
                                     G.allocateContent(ArrayRef<char>(Bytes.data(), Bytes.size())),
                                     objectAddress(S, Place), Place.Align, Place.AlignOffset);
}

Block &addZeroFill(LinkGraph &G, Section &S, uint64_t Size, BlockPlace Place) {
  return G.createZeroFillBlock(S, Size, objectAddress(S, Place), Place.Align, Place.AlignOffset);
}

::testing::AssertionResult allBytesAre(ExecutorAddr Start, uint64_t Size, char Expected) {
  const char *Bytes = bytesAt(Start);
  for (uint64_t I = 0; I != Size; ++I)
    if (Bytes[I] != Expected)
      return ::testing::AssertionFailure() << "byte " << I << " of " << Size << " is "
                                           << int(Bytes[I]) << ", not " << int(Expected);
  return ::testing::AssertionSuccess();
}

Error abandon(InFlight Alloc) {
  std::promise<MSVCPError> Done;
  Alloc->abandon([&](Error Err) { Done.set_value(std::move(Err)); });
  return Done.get_future().get();
}

Error freeAll(JITLinkMemoryManager &MM, std::vector<Placed> &All) {
  std::vector<Placed::FinalizedAlloc> Allocs;
  for (Placed &P : All)
    Allocs.push_back(P.release());
  All.clear();
  return MM.deallocate(std::move(Allocs));
}

Expected<Piece> ManagerTest::tryPiece(AllocGroup AG, uint64_t Size, uint64_t Alignment,
                                      const JITLinkDylib *JD) {
  auto Segments = compat::createSimpleSegments(*MM, JD, {{AG, {size_t(Size), Align(Alignment)}}});
  if (!Segments)
    return Segments.takeError();
  ExecutorAddr Addr = Segments->getSegInfo(AG).Addr;
  auto FA = Segments->finalize();
  if (!FA)
    return FA.takeError();
  return Piece{Addr, Placed(*MM, std::move(*FA))};
}

Journal::Call Journal::make(int Id, char Behaviour) {
  using namespace orc::shared;
  using Args = SPSArgList<orc::shared::SPSExecutorAddr, int32_t, uint8_t>;
  return must(Call::Create<Args>(ExecutorAddr::fromPtr(&Journal::run), ExecutorAddr::fromPtr(this),
                                 int32_t(Id), uint8_t(Behaviour)));
}

compat::ActionResult Journal::run(const char *ArgData, size_t ArgSize) {
  using namespace orc::shared;
  bool Refuse = false;
  int32_t RefusedId = 0;
  auto Result = WrapperFunction<SPSError(SPSExecutorAddr, int32_t, uint8_t)>::handle(
      ArgData, ArgSize, [&](ExecutorAddr Self, int32_t Id, uint8_t Behaviour) -> Error {
        Journal *J = Self.toPtr<Journal *>();
        std::lock_guard<std::mutex> Lock(J->M);
        J->Ids.push_back(Id);
        Refuse = Behaviour == 'r';
        RefusedId = Id;
        if (Behaviour == 'f')
          return createStringError(inconvertibleErrorCode(), "action %d failed", Id);
        return Error::success();
      });
  if (Refuse)
    return compat::ActionBuffer::createOutOfBandError("action " + std::to_string(RefusedId) +
                                                      " refused")
        .release();
  return Result.release();
}

std::vector<Mapping> readMappings(pid_t Process) {
  std::vector<Mapping> All;
  std::ifstream Maps("/proc/" + (Process ? std::to_string(Process) : "self") + "/maps");
  std::string Line;
  while (std::getline(Maps, Line)) {
    std::istringstream Fields(Line);
    Mapping M;
    char Dash;
    std::string Offset, Device, Inode;
    Fields >> std::hex >> M.Start >> Dash >> M.End >> M.Perms >> Offset >> Device >> Inode;
    std::getline(Fields >> std::ws, M.Path);
    All.push_back(std::move(M));
  }
  return All;
}

Mapping mappingAt(ExecutorAddr A) {
  for (const Mapping &M : readMappings())
    if (M.Start <= A.getValue() && A.getValue() < M.End)
      return M;
  throw std::runtime_error("nothing is mapped at " + utohexstr(A.getValue()));
}
