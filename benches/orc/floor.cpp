// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "floor.hpp"
#include "system_error.hpp"

#include "llvm/ExecutionEngine/JITLink/JITLink.h"
#include "llvm/Support/Memory.h"

#include <cerrno>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace llvm;
using namespace llvm::jitlink;
using namespace llvm::orc;

namespace bench {

// Enough for every round: the longest one bumps through less than 50 MiB.
static constexpr size_t AreaSize = size_t(128) << 20;
static constexpr size_t WindowSize = 3 * AreaSize;
static constexpr uint64_t Reach = (uint64_t(2) << 30) - (uint64_t(2) << 20);

static Error systemError(const char *Operation) {
  return bench::systemError(errno, Twine("floor: ") + Operation);
}

static uint64_t distance(const void *A, const void *B) {
  auto X = reinterpret_cast<uintptr_t>(A), Y = reinterpret_cast<uintptr_t>(B);
  return X > Y ? X - Y : Y - X;
}

class FloorMemoryManager::Allocation : public InFlightAlloc {
public:
  Allocation(LinkGraph &G, ExecutorAddrRange Code) : G(G), Code(Code) {}

  void finalize(OnFinalizedFunction OnFinalized) override {
    using Calls = std::vector<shared::WrapperFunctionCall>;
    sys::Memory::InvalidateInstructionCache(Code.Start.toPtr<void *>(), Code.size());
    auto Deallocation = shared::runFinalizeActions(G.allocActions());
    if (!Deallocation)
      return OnFinalized(Deallocation.takeError());
    // Nothing but its deallocation actions has to be remembered of an allocation.
    Calls *Remembered = Deallocation->empty() ? nullptr : new Calls(std::move(*Deallocation));
    OnFinalized(FinalizedAlloc(ExecutorAddr::fromPtr(Remembered)));
  }

  void abandon(OnAbandonedFunction OnAbandoned) override { OnAbandoned(Error::success()); }

private:
  LinkGraph &G;
  ExecutorAddrRange Code;
};

Expected<std::unique_ptr<FloorMemoryManager>> FloorMemoryManager::Create() {
  std::unique_ptr<FloorMemoryManager> M(new FloorMemoryManager);
  if (Error Err = M->reserve())
    return Err;
  return M;
}

FloorMemoryManager::~FloorMemoryManager() {
  for (Area *A : {&Code, &Constants})
    if (A->Writer)
      munmap(A->Writer, A->Size);
  if (Window)
    munmap(Window, WindowSize);
}

Error FloorMemoryManager::reserve() {
  void *Reserved =
      mmap(nullptr, WindowSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (Reserved == MAP_FAILED)
    return systemError("mmap of the window");
  Window = static_cast<char *>(Reserved);
  // The kernel places it beside the libraries unless something big is there already.
  if (const void *InLibc = dlsym(RTLD_DEFAULT, "stderr"))
    if (distance(Window, InLibc) > Reach || distance(Window + WindowSize, InLibc) > Reach)
      return createStringError("floor: window of %zu bytes at %p is out of reach of libc",
                               WindowSize, Reserved);

  Code.Executor = Window;
  Constants.Executor = Window + AreaSize;
  Data.Executor = Window + 2 * AreaSize;
  if (Error Err = mapTwice(Code, PROT_READ | PROT_EXEC))
    return Err;
  if (Error Err = mapTwice(Constants, PROT_READ))
    return Err;
  if (mprotect(Data.Executor, AreaSize, PROT_READ | PROT_WRITE))
    return systemError("mprotect of the data area");
  Data.Writer = Data.Executor;
  Data.Size = AreaSize;
  return Error::success();
}

Error FloorMemoryManager::mapTwice(Area &A, int Protection) {
  int File = memfd_create("floor", MFD_CLOEXEC);
  if (File < 0)
    return systemError("memfd_create");
  Error Err = Error::success();
  if (ftruncate(File, AreaSize))
    Err = systemError("ftruncate of a memfd");
  else if (mmap(A.Executor, AreaSize, Protection, MAP_SHARED | MAP_FIXED, File, 0) == MAP_FAILED)
    Err = systemError("mmap of the executor view");
  else if (void *Writer = mmap(nullptr, AreaSize, PROT_READ | PROT_WRITE, MAP_SHARED, File, 0);
           Writer == MAP_FAILED)
    Err = systemError("mmap of the writer view");
  else {
    A.Writer = static_cast<char *>(Writer);
    A.Size = AreaSize;
  }
  close(File);
  return Err;
}

FloorMemoryManager::Area &FloorMemoryManager::areaFor(MemProt Protection) {
  if ((Protection & MemProt::Exec) != MemProt::None)
    return Code;
  if ((Protection & MemProt::Write) != MemProt::None)
    return Data;
  return Constants;
}

void FloorMemoryManager::allocate(const JITLinkDylib *, LinkGraph &G,
                                  OnAllocatedFunction OnAllocated) {
  BasicLayout Layout(G);
  ExecutorAddrRange CodeRange;
  for (auto &[Group, Segment] : Layout.segments()) {
    Area &A = areaFor(Group.getMemProt());
    uint64_t Offset = alignTo(A.Used, Segment.Alignment);
    uint64_t End = Offset + Segment.ContentSize + Segment.ZeroFillSize;
    // Running past the area would overwrite the next one, and the figures would mean nothing.
    if (End > A.Size)
      return OnAllocated(createStringError("floor: area of %zu bytes is used up", A.Size));
    A.Used = End;
    Segment.Addr = ExecutorAddr::fromPtr(A.Executor + Offset);
    Segment.WorkingMem = A.Writer + Offset;
    if (&A == &Code)
      CodeRange = {Segment.Addr, End - Offset};
  }
  if (Error Err = Layout.apply())
    return OnAllocated(std::move(Err));
  OnAllocated(std::make_unique<Allocation>(G, CodeRange));
}

void FloorMemoryManager::deallocate(std::vector<FinalizedAlloc> Allocs,
                                    OnDeallocatedFunction OnDeallocated) {
  Error Err = Error::success();
  while (!Allocs.empty()) {
    auto *Calls = Allocs.back().release().toPtr<std::vector<shared::WrapperFunctionCall> *>();
    Allocs.pop_back();
    if (!Calls)
      continue;
    Err = joinErrors(std::move(Err), shared::runDeallocActions(*Calls));
    delete Calls;
  }
  OnDeallocated(std::move(Err));
}

} // namespace bench
