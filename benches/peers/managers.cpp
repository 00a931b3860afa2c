// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "managers.hpp"
#include "arena.h"

#include <asmjit/core.h>
#include <jitmem.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <sys/mman.h>

namespace peers {

namespace {

constexpr size_t Page = 4096, Granule = 16;

size_t roundUp(size_t Bytes, size_t To) { return (Bytes + To - 1) / To * To; }

[[noreturn]] void fail(const std::string &Operation, const std::string &Cause) {
  throw std::runtime_error(Operation + ": " + Cause);
}

void checkSystem(const char *Operation, bool Succeeded) {
  if (!Succeeded)
    fail(Operation, strerror(errno));
}

class Jitmem : public Manager {
public:
  Jitmem() {
    jitmem_error *E = nullptr;
    jitmem_mapper *Mapper = nullptr;
    check(jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &Mapper, &E), E);
    check(jitmem_manager_create(Mapper, nullptr, &Handle, &E), E);
    jitmem_mapper_free(Mapper);
  }
  ~Jitmem() override { jitmem_manager_free(Handle); }

  /// As the C++ adapter does: what needs no waiting first.
  Graph add(const Plan &P, const char *Content) override {
    std::array<jitmem_segment, 3> Segments;
    std::array<jitmem_segment_memory, Segments.size()> Memory;
    size_t Count = 0;
    auto Segment = [&](uint32_t Bytes, uint32_t Protection) {
      if (Bytes)
        Segments[Count++] = {
            Bytes, 0, Granule, Protection, JITMEM_LIFETIME_STANDARD, JITMEM_CODE_NORMAL, {}};
    };
    Segment(P.Code, JITMEM_PROT_READ | JITMEM_PROT_EXEC);
    Segment(P.Constants, JITMEM_PROT_READ);
    Segment(P.Data, JITMEM_PROT_READ | JITMEM_PROT_WRITE);
    Graph G = {P};
    jitmem_error *E = nullptr;
    jitmem_status Status = jitmem_manager_try_allocate(Handle, Segments.data(), Count, 1,
                                                       Memory.data(), &G.Handle, &E);
    if (Status == JITMEM_WOULD_BLOCK)
      Status =
          jitmem_manager_allocate(Handle, Segments.data(), Count, 1, Memory.data(), &G.Handle, &E);
    check(Status, E);
    for (size_t I = 0; I != Count; ++I)
      memcpy(Memory[I].working_memory, Content, Segments[I].content_size);
    Status = jitmem_manager_try_finalize(Handle, G.Handle, &E);
    if (Status == JITMEM_WOULD_BLOCK)
      Status = jitmem_manager_finalize(Handle, G.Handle, nullptr, 0, &E);
    check(Status, E);
    G.Code = reinterpret_cast<void *>(Memory[0].address);
    return G;
  }

  void remove(const Graph &G) override {
    jitmem_error *E = nullptr;
    jitmem_status Status = jitmem_manager_try_deallocate(Handle, &G.Handle, 1, &E);
    if (Status == JITMEM_WOULD_BLOCK)
      Status = jitmem_manager_deallocate(Handle, &G.Handle, 1, &E);
    check(Status, E);
  }

  void collapse() override {
    jitmem_error *E = nullptr;
    check(jitmem_manager_collapse(Handle, nullptr, &E), E);
  }

private:
  static void check(jitmem_status Status, jitmem_error *E) {
    if (Status != JITMEM_OK)
      fail("jitmem", jitmem_error_message(E));
  }

  jitmem_manager *Handle = nullptr;
};

template <asmjit::JitAllocatorOptions Options> class Asmjit : public Manager {
public:
  Graph add(const Plan &P, const char *Content) override {
    size_t Constants = roundUp(P.Code, Granule), Data = Constants + roundUp(P.Constants, Granule);
    Graph G = {P};
    void *Writer = nullptr;
    check(Allocator.alloc(&G.Code, &Writer, Data + P.Data));
    char *Start = static_cast<char *>(Writer);
    memcpy(Start, Content, P.Code);
    memcpy(Start + Constants, Content, P.Constants);
    memcpy(Start + Data, Content, P.Data);
    return G;
  }

  void remove(const Graph &G) override { check(Allocator.release(G.Code)); }

private:
  static asmjit::JitAllocator::CreateParams parameters() {
    asmjit::JitAllocator::CreateParams P;
    P.options = Options;
    return P;
  }

  static void check(asmjit::Error E) {
    if (E != asmjit::kErrorOk)
      fail("JitAllocator", asmjit::DebugUtils::errorAsString(E));
  }

  const asmjit::JitAllocator::CreateParams Parameters = parameters();
  asmjit::JitAllocator Allocator{&Parameters};
};

class Arena : public Manager {
public:
  Arena() {
    if (!Handle)
      fail("arena", "no address space");
  }
  ~Arena() override { arena_free(Handle); }

  Graph add(const Plan &P, const char *Content) override {
    const size_t Sizes[] = {P.Code, P.Constants, P.Data};
    Graph G = {P};
    void **const Places[] = {&G.Code, &G.Constants, &G.Data};
    for (uint32_t I = 0; I != 3; ++I) {
      if (!Sizes[I])
        continue;
      *Places[I] = arena_allocate(Handle, Sizes[I], I);
      if (!*Places[I])
        fail("arena", "it is full");
      memcpy(*Places[I], Content, Sizes[I]);
    }
    if (!arena_finalize(Handle))
      fail("arena", "finalize failed");
    return G;
  }

  void remove(const Graph &) override {}

private:
  static constexpr size_t Size = size_t(1) << 40;

  arena *Handle = arena_new(Size);
};

class MallocAndProtect : public Manager {
public:
  Graph add(const Plan &P, const char *Content) override {
    return {P, make(P.Code, Content, PROT_READ | PROT_EXEC), make(P.Constants, Content, PROT_READ),
            make(P.Data, Content, PROT_READ | PROT_WRITE)};
  }

  void remove(const Graph &G) override {
    open(G.Code, G.Size.Code);
    open(G.Constants, G.Size.Constants);
    free(G.Code);
    free(G.Constants);
    free(G.Data);
  }

private:
  static void *make(size_t Bytes, const char *Content, int Protection) {
    if (!Bytes)
      return nullptr;
    void *Start = aligned_alloc(Page, roundUp(Bytes, Page));
    checkSystem("malloc", Start);
    memcpy(Start, Content, Bytes);
    if (Protection != (PROT_READ | PROT_WRITE))
      checkSystem("mprotect", mprotect(Start, roundUp(Bytes, Page), Protection) == 0);
    return Start;
  }

  static void open(void *Start, size_t Bytes) {
    if (Start)
      checkSystem("mprotect", mprotect(Start, roundUp(Bytes, Page), PROT_READ | PROT_WRITE) == 0);
  }
};

/// Address space of one protection, of which ranges of one size are used again, last freed first.
class Bump {
public:
  static constexpr size_t Size = size_t(4) << 30;

  Bump(int Protection, size_t Granule) : Granule(Granule) {
    constexpr int Flags = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE;
    constexpr int Writable = PROT_READ | PROT_WRITE;
    void *Start = mmap(nullptr, Size, Writable, Flags, -1, 0);
    checkSystem("mmap", Start != MAP_FAILED);
    Reader = Writer = static_cast<char *>(Start);
    if (Protection == Writable)
      return;
    void *View = mremap(Start, 0, Size, MREMAP_MAYMOVE);
    checkSystem("mremap", View != MAP_FAILED);
    checkSystem("mprotect", mprotect(View, Size, Protection) == 0);
    Reader = static_cast<char *>(View);
  }
  ~Bump() {
    munmap(Reader, Size);
    if (Writer != Reader)
      munmap(Writer, Size);
  }
  Bump(const Bump &) = delete;
  Bump &operator=(const Bump &) = delete;

  void *add(size_t Bytes, const char *Content) {
    std::vector<size_t> &Same = freed(Bytes);
    size_t Offset = Next;
    if (!Same.empty()) {
      Offset = Same.back();
      Same.pop_back();
    } else if ((Next += roundUp(Bytes, Granule)) > Size) {
      fail("floor", "its window is full");
    }
    memcpy(Writer + Offset, Content, Bytes);
    return Reader + Offset;
  }

  void remove(void *Start, size_t Bytes) {
    freed(Bytes).push_back(size_t(static_cast<char *>(Start) - Reader));
  }

private:
  std::vector<size_t> &freed(size_t Bytes) {
    size_t Class = (Bytes + Granule - 1) / Granule;
    if (Class >= Freed.size())
      Freed.resize(Class + 1);
    return Freed[Class];
  }

  size_t Granule, Next = 0;
  char *Reader, *Writer;
  std::vector<std::vector<size_t>> Freed;
};

class Floor : public Manager {
public:
  Graph add(const Plan &P, const char *Content) override {
    return {P, Code.add(P.Code, Content), Constants.add(P.Constants, Content),
            Data.add(P.Data, Content)};
  }

  void remove(const Graph &G) override {
    Code.remove(G.Code, G.Size.Code);
    Constants.remove(G.Constants, G.Size.Constants);
    Data.remove(G.Data, G.Size.Data);
  }

private:
  Bump Code{PROT_READ | PROT_EXEC, Granule}, Constants{PROT_READ, Granule},
      Data{PROT_READ | PROT_WRITE, Granule};
};

/// Nothing but code, as no other segment is touched when it runs.
class PageForEach : public Manager {
public:
  Graph add(const Plan &P, const char *Content) override { return {P, Code.add(P.Code, Content)}; }
  void remove(const Graph &G) override { Code.remove(G.Code, G.Size.Code); }

private:
  Bump Code{PROT_READ | PROT_EXEC, Page};
};

template <class T> std::unique_ptr<Manager> make() { return std::make_unique<T>(); }

} // namespace

const std::vector<Kind> &kinds() {
  using asmjit::JitAllocatorOptions;
  // Each graph of the arena takes three of the kernel's mappings for good, and the arena looks at
  // all segments whenever it makes one.
  static const std::vector<Kind> Kinds = {
      {"jitmem", "", make<Jitmem>},
      {"asmjit", "all of a graph is writable and executable, in one range",
       make<Asmjit<JitAllocatorOptions::kNone>>},
      {"asmjit, two views", "all of a graph is executable, in one range",
       make<Asmjit<JitAllocatorOptions::kUseDualMapping>>},
      {"cranelift arena",
       "nothing is given back before the arena is; each step takes longer the more there is",
       make<Arena>, false, 6000},
      {"malloc + mprotect", "pages of its own for each segment", make<MallocAndProtect>},
      {"floor", "no lock: each thread has its own; no checks, no traps; sizes are not joined",
       make<Floor>, true},
  };
  return Kinds;
}

const Kind &pageForEach() {
  static const Kind Pages = {"a page for each", "code only", make<PageForEach>};
  return Pages;
}

} // namespace peers
