// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"
#include "measures.hpp"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <functional>
#include <new>
#include <stdexcept>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

namespace peers {

using nlohmann::json;

namespace {

/// The bytes of a small graph.
using Message = std::array<char, SmallGraph.Code + SmallGraph.Constants + SmallGraph.Data>;

void check(const char *Operation, bool Succeeded) {
  if (!Succeeded)
    throw std::runtime_error(std::string(Operation) + ": " + strerror(errno));
}

/// A process that answers until it is killed.
class Partner {
public:
  explicit Partner(const std::function<void()> &Body) : Child(fork()) {
    check("fork", Child >= 0);
    if (Child == 0) {
      Body();
      _exit(0);
    }
  }
  ~Partner() {
    kill(Child, SIGKILL);
    waitpid(Child, nullptr, 0);
  }
  Partner(const Partner &) = delete;
  Partner &operator=(const Partner &) = delete;

  pid_t number() const { return Child; }

private:
  pid_t Child;
};

std::vector<double> quantilesOf(unsigned Steps, const std::function<void()> &Step) {
  std::vector<double> Times(Steps);
  for (unsigned I = 0; I != 100; ++I)
    Step();
  for (double &Time : Times) {
    double Start = passed();
    Step();
    Time = passed() - Start;
  }
  return {quantile(Times, 0.5), quantile(Times, 0.99), quantile(Times, 0.999)};
}

void put(int Descriptor, const void *Bytes, size_t Size) {
  check("write", write(Descriptor, Bytes, Size) == ssize_t(Size));
}

void get(int Descriptor, void *Bytes, size_t Size) {
  char *To = static_cast<char *>(Bytes);
  while (Size) {
    ssize_t Got = read(Descriptor, To, Size);
    check("read", Got > 0);
    To += Got;
    Size -= size_t(Got);
  }
}

/// A message there, a byte back.
std::vector<double> byDescriptors(unsigned Steps, int Out, int In, int PartnerIn, int PartnerOut) {
  Partner P([&] {
    Message M;
    for (;;) {
      get(PartnerIn, M.data(), M.size());
      put(PartnerOut, M.data(), 1);
    }
  });
  Message M = {};
  return quantilesOf(Steps, [&] {
    put(Out, M.data(), M.size());
    get(In, M.data(), 1);
  });
}

std::vector<double> byPipe(unsigned Steps) {
  int There[2], Back[2];
  check("pipe", pipe(There) == 0 && pipe(Back) == 0);
  return byDescriptors(Steps, There[1], Back[0], There[0], Back[1]);
}

std::vector<double> bySocket(unsigned Steps) {
  int Ends[2];
  check("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, Ends) == 0);
  return byDescriptors(Steps, Ends[0], Ends[0], Ends[1], Ends[1]);
}

/// One place for a message, in memory that both processes map.
struct Shared {
  alignas(64) std::atomic<uint64_t> Sent{0};
  alignas(64) std::atomic<uint64_t> Taken{0};
  alignas(64) Message Bytes;

  static Shared *make() {
    constexpr int Flags = MAP_SHARED | MAP_ANONYMOUS;
    void *Place = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, Flags, -1, 0);
    check("mmap", Place != MAP_FAILED);
    return new (Place) Shared;
  }
};

std::vector<double> bySpinning(unsigned Steps) {
  Shared &S = *Shared::make();
  Partner P([&] {
    Message M;
    for (uint64_t Taken = 0;; ++Taken) {
      while (S.Sent.load(std::memory_order_acquire) == Taken)
        __builtin_ia32_pause();
      M = S.Bytes;
      S.Taken.store(Taken + 1, std::memory_order_release);
    }
  });
  Message M = {};
  uint64_t Sent = 0;
  return quantilesOf(Steps, [&] {
    S.Bytes = M;
    S.Sent.store(++Sent, std::memory_order_release);
    while (S.Taken.load(std::memory_order_acquire) != Sent)
      __builtin_ia32_pause();
  });
}

std::vector<double> byWritingThere(unsigned Steps) {
  Message M = {};
  Partner P([] { pause(); });
  iovec Here = {M.data(), M.size()}, There = Here; // a forked child has it at the same place
  return quantilesOf(Steps, [&] {
    check("process_vm_writev",
          process_vm_writev(P.number(), &Here, 1, &There, 1, 0) == ssize_t(M.size()));
  });
}

std::vector<double> bySharedPages(unsigned Steps) {
  Shared &S = *Shared::make();
  Partner P([] { pause(); });
  Message M = {};
  return quantilesOf(Steps, [&] {
    S.Bytes = M;
    S.Sent.store(1, std::memory_order_release);
  });
}

} // namespace

Table ways(const Extent &E) {
  Table T = {"ways",
             "384 bytes to another process: ns until they are there and an answer of a byte is "
             "back, or (*) until they are there",
             {"median", "p99", "p99.9"},
             {}};
  unsigned Steps = E.of(200000, 20000);
  auto Add = [&](const char *Name, std::vector<double> (*Measure)(unsigned)) {
    json Cells = alone([&] { return json(Measure(Steps)); });
    T.Rows.push_back(
        {Name, Cells.is_array() ? Cells.get<std::vector<json>>() : std::vector<json>{Cells}});
  };
  Add("pipe", byPipe);
  Add("socket", bySocket);
  Add("shared memory, both spin", bySpinning);
  Add("process_vm_writev *", byWritingThere);
  Add("pages that both map, as jitmem's *", bySharedPages);
  return T;
}

} // namespace peers
