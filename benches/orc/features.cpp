// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What single features of jitmem cost, through the C API alone: options beside the same work
// without them, and look-ups beside other ways of finding what lies at an address.

#include <jitmem.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr unsigned Rounds = 9;
constexpr unsigned Graphs = 10000;
constexpr unsigned Steps = 2000;
constexpr unsigned Managers = 50;
constexpr size_t MostSize = 256;
/// Functions, and those of them that are called.
constexpr unsigned Functions = 100000;
constexpr unsigned HotFunctions = 5000;
constexpr unsigned Passes = 20;

/// As in workload (a).
const std::array<jitmem_segment, 3> Segments = {{
    {MostSize,
     0,
     16,
     JITMEM_PROT_READ | JITMEM_PROT_EXEC,
     JITMEM_LIFETIME_STANDARD,
     JITMEM_CODE_NORMAL,
     {}},
    {64, 0, 16, JITMEM_PROT_READ, JITMEM_LIFETIME_STANDARD, JITMEM_CODE_NORMAL, {}},
    {64,
     0,
     16,
     JITMEM_PROT_READ | JITMEM_PROT_WRITE,
     JITMEM_LIFETIME_STANDARD,
     JITMEM_CODE_NORMAL,
     {}},
}};

/// int(int), which adds one.
#ifdef __x86_64__
constexpr unsigned char AddOne[] = {0x8d, 0x47, 0x01, 0xc3};
#else
constexpr unsigned char AddOne[] = {0x00, 0x04, 0x00, 0x11, 0xc0, 0x03, 0x5f, 0xd6};
#endif

void check(const char *Operation, bool Succeeded, const jitmem_error *E = nullptr) {
  if (Succeeded)
    return;
  fprintf(stderr, "jitmem-bench-features: %s: %s\n", Operation,
          E ? jitmem_error_message(E) : "unexpected answer");
  exit(1);
}

jitmem_manager_options defaults() {
  jitmem_manager_options O = {};
  O.struct_size = sizeof O;
  return O;
}

class Manager {
public:
  explicit Manager(const jitmem_manager_options &O = defaults()) {
    jitmem_error *E = nullptr;
    jitmem_mapper *Mapper = nullptr;
    check("make a mapper", !jitmem_mapper_in_process(JITMEM_IN_PROCESS_TWO_VIEWS, &Mapper, &E), E);
    check("make a manager", !jitmem_manager_create(Mapper, &O, &Handle, &E), E);
    jitmem_mapper_free(Mapper);
  }
  ~Manager() { jitmem_manager_free(Handle); }
  Manager(const Manager &) = delete;
  Manager &operator=(const Manager &) = delete;

  struct Graph {
    uint64_t Handle;
    std::array<jitmem_segment_memory, Segments.size()> Memory;
  };

  Graph add(jitmem_code_hint Hint = JITMEM_CODE_NORMAL) {
    Graph G;
    jitmem_error *E = nullptr;
    auto Asked = Segments;
    Asked[0].code_hint = Hint;
    check("allocate",
          !jitmem_manager_allocate(Handle, Asked.data(), Asked.size(), 0, G.Memory.data(),
                                   &G.Handle, &E),
          E);
    for (size_t I = 0; I != Segments.size(); ++I)
      memset(G.Memory[I].working_memory, 0xcc, Segments[I].content_size);
    memcpy(G.Memory[0].working_memory, AddOne, sizeof AddOne);
    check("finalize", !jitmem_manager_finalize(Handle, G.Handle, nullptr, 0, &E), E);
    return G;
  }

  void remove(const Graph &G) {
    jitmem_error *E = nullptr;
    check("deallocate", !jitmem_manager_deallocate(Handle, &G.Handle, 1, &E), E);
  }

  /// What was deallocated so far is used again.
  void reclaim() {
    jitmem_error *E = nullptr;
    uint64_t Epoch = 0;
    check("advance the epoch", !jitmem_manager_advance_epoch(Handle, &Epoch, &E), E);
    check("reclaim", !jitmem_manager_reclaim(Handle, Epoch, nullptr, &E), E);
  }

private:
  jitmem_manager *Handle = nullptr;
};

std::vector<Manager::Graph> addMany(Manager &M, unsigned Count) {
  std::vector<Manager::Graph> Live;
  for (unsigned I = 0; I != Count; ++I)
    Live.push_back(M.add());
  std::shuffle(Live.begin(), Live.end(), std::mt19937(1));
  return Live;
}

/// Nanoseconds of processor time per operation.
double timeOf(unsigned Operations, const std::function<void()> &Body) {
  auto Now = [] {
    timespec T;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &T);
    return double(T.tv_sec) * 1e9 + double(T.tv_nsec);
  };
  double Start = Now();
  Body();
  return (Now() - Start) / Operations;
}

double deallocation(bool Deferred) {
  jitmem_manager_options O = defaults();
  O.defer_reclamation = Deferred;
  Manager M(O);
  std::vector<Manager::Graph> Live = addMany(M, Graphs);
  return timeOf(Graphs, [&] {
    for (const Manager::Graph &G : Live)
      M.remove(G);
    if (Deferred)
      M.reclaim();
  });
}

double oneGraphAlone(bool Closing) {
  jitmem_manager_options O = defaults();
  O.close_writers = Closing;
  Manager M(O);
  addMany(M, 500);
  return timeOf(Steps, [&] {
    for (unsigned I = 0; I != Steps; ++I)
      M.remove(M.add());
  });
}

double firstGraph(const jitmem_manager_options &O) {
  return timeOf(Managers, [&] {
    for (unsigned I = 0; I != Managers; ++I)
      Manager(O).add();
  });
}

/// A fixed address for a window: where one has just been.
double firstGraphAtFixedAddress() {
  constexpr uint64_t Window = uint64_t(64) << 20;
  jitmem_manager_options O = defaults();
  O.window_size = Window;
  O.address = (Manager().add().Memory[0].address + Window - 1) / Window * Window;
  O.placement = JITMEM_PLACEMENT_FIXED;
  return firstGraph(O);
}

double firstGraphAtRandomPlace() {
  jitmem_manager_options O = defaults();
  O.window_size = uint64_t(64) << 20;
  return firstGraph(O);
}

/// Calls of the functions that run often, of which each was linked between others.
double hotCalls(bool Hinted) {
  Manager M;
  std::vector<int (*)(int)> Hot;
  for (unsigned I = 0; I != Functions; ++I) {
    bool IsHot = I % (Functions / HotFunctions) == 0;
    uint64_t Code = M.add(IsHot && Hinted ? JITMEM_CODE_HOT : JITMEM_CODE_NORMAL).Memory[0].address;
    if (IsHot)
      Hot.push_back(reinterpret_cast<int (*)(int)>(static_cast<uintptr_t>(Code)));
  }
  std::shuffle(Hot.begin(), Hot.end(), std::mt19937(3));
  int Sum = 0;
  auto CallAll = [&](unsigned Times) {
    for (unsigned Pass = 0; Pass != Times; ++Pass)
      for (auto *Function : Hot)
        Sum = Function(Sum);
  };
  CallAll(1);
  double Time = timeOf(Passes * HotFunctions, [&] { CallAll(Passes); });
  check("call", Sum == int((Passes + 1) * HotFunctions));
  return Time;
}

extern "C" const void *_Unwind_Find_FDE(void *Address, void *Bases);

/// Ways to find what lies at an address, each of which answers whether it has.
namespace look_up {

bool jitmem(uint64_t Address) {
  jitmem_location Found;
  Found.struct_size = sizeof Found;
  return jitmem_lookup(Address, &Found) == JITMEM_LOOKUP_FOUND;
}

bool dladdrOfLibrary(uint64_t) {
  Dl_info Found;
  return dladdr(reinterpret_cast<void *>(&jitmem_version), &Found) != 0;
}

bool unwindInfoOfLibrary(uint64_t) {
  void *Bases[3];
  return _Unwind_Find_FDE(reinterpret_cast<void *>(&jitmem_version), Bases) != nullptr;
}

} // namespace look_up

double lookUps(const std::vector<uint64_t> &Addresses, const std::function<bool(uint64_t)> &Find) {
  auto FindAll = [&] {
    for (uint64_t Address : Addresses)
      check("look up", Find(Address));
  };
  FindAll(); // the first time fills indexes and caches
  return timeOf(Addresses.size(), FindAll);
}

/// All segments of many graphs, in one manager and in a map.
class Places {
public:
  Places() {
    for (const Manager::Graph &G : addMany(M, Graphs))
      for (size_t I = 0; I != Segments.size(); ++I) {
        uint64_t First = G.Memory[I].address;
        Ends[First] = First + Segments[I].content_size;
        Addresses.push_back(First + Segments[I].content_size / 2);
      }
    std::shuffle(Addresses.begin(), Addresses.end(), std::mt19937(2));
  }

  double byJitmem() const { return lookUps(Addresses, look_up::jitmem); }
  double byMap() {
    return lookUps(Addresses, [this](uint64_t Address) {
      std::lock_guard<std::mutex> Lock(Mutex);
      auto After = Ends.upper_bound(Address);
      return After != Ends.begin() && Address < std::prev(After)->second;
    });
  }
  double byDladdr() const { return lookUps(Addresses, look_up::dladdrOfLibrary); }
  double byUnwindInfo() const { return lookUps(Addresses, look_up::unwindInfoOfLibrary); }

private:
  Manager M;
  std::mutex Mutex;
  std::map<uint64_t, uint64_t> Ends;
  std::vector<uint64_t> Addresses;
};

struct Comparison {
  const char *What, *Other;
  std::function<double()> OfJitmem, OfOther;
};

double median(std::vector<double> Values) {
  std::sort(Values.begin(), Values.end());
  return Values[Values.size() / 2];
}

std::string timeText(double Nanoseconds) {
  char Text[32];
  bool Long = Nanoseconds >= 1000;
  snprintf(Text, sizeof Text, Long ? "%.2f µs" : "%.0f ns",
           Long ? Nanoseconds / 1000 : Nanoseconds);
  return Text;
}

/// Both sides by turns; each comes first equally often, and the first round warms up.
void compare(const Comparison &C) {
  std::vector<double> Ours, Theirs, Ratios;
  for (unsigned Round = 0; Round != Rounds + 1; ++Round) {
    double Times[2];
    for (unsigned Turn : {Round % 2, (Round + 1) % 2})
      Times[Turn] = Turn ? C.OfOther() : C.OfJitmem();
    if (Round == 0)
      continue;
    Ours.push_back(Times[0]);
    Theirs.push_back(Times[1]);
    Ratios.push_back(Times[0] / Times[1]);
  }
  printf("| %s | %s | %s | %s | %.2f |\n", C.What, timeText(median(Ours)).c_str(), C.Other,
         timeText(median(Theirs)).c_str(), median(Ratios));
  fflush(stdout);
}

} // namespace

int main() {
  printf("# Features of jitmem\n\n"
         "jitmem %s, through its C API. Graphs are those of workload (a). %u rounds, both sides by "
         "turns: medians of processor time per operation, and the median of each round's ratio.\n\n"
         "| | jitmem | beside | time | ratio |\n|---|--:|---|--:|--:|\n",
         jitmem_version_string(), Rounds);
  Places P;
  const Comparison All[] = {
      {"deallocate one of 10,000 graphs, with deferred reclamation", "without",
       [] { return deallocation(true); }, [] { return deallocation(false); }},
      {"make and remove a graph beside 500, closing writer views", "without",
       [] { return oneGraphAlone(true); }, [] { return oneGraphAlone(false); }},
      {"make a manager with its first graph, at a random place", "at a fixed address",
       firstGraphAtRandomPlace, firstGraphAtFixedAddress},
      {"call one of 5,000 functions that run often, linked between 95,000 others, with that hint",
       "without", [] { return hotCalls(true); }, [] { return hotCalls(false); }},
      {"look up an address in 30,000 segments", "std::map with a mutex",
       [&] { return P.byJitmem(); }, [&] { return P.byMap(); }},
      {"the same", "dladdr of a library's function", [&] { return P.byJitmem(); },
       [&] { return P.byDladdr(); }},
      {"the same", "_Unwind_Find_FDE of a library's function", [&] { return P.byJitmem(); },
       [&] { return P.byUnwindInfo(); }},
  };
  for (const Comparison &C : All)
    compare(C);
  return 0;
}
