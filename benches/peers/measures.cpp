// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "measures.hpp"
#include "alone.hpp"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <sys/resource.h>
#include <thread>

namespace peers {

using nlohmann::json;

namespace {

constexpr unsigned Live = 500;

using Content = std::array<char, 256>;

Content traps() {
  Content C;
  C.fill(char(0xcc));
  return C;
}

double now(clockid_t Clock) {
  timespec T;
  clock_gettime(Clock, &T);
  return double(T.tv_sec) * 1e9 + double(T.tv_nsec);
}

/// Small graphs of which one at random is replaced by another.
class Churn {
public:
  Churn(Manager &M, unsigned Count, unsigned Seed = 1) : M(M), Random(Seed) {
    for (unsigned I = 0; I != Count; ++I)
      Graphs.push_back(M.add(SmallGraph, Code.data()));
  }

  ~Churn() {
    for (const Graph &G : Graphs)
      M.remove(G);
  }
  Churn(const Churn &) = delete;
  Churn &operator=(const Churn &) = delete;

  void step() {
    Graph &Victim = Graphs[Random() % Graphs.size()];
    M.remove(Victim);
    Victim = M.add(SmallGraph, Code.data());
  }

  void steps(unsigned Count) {
    for (unsigned I = 0; I != Count; ++I)
      step();
  }

private:
  Manager &M;
  Content Code = traps();
  std::minstd_rand Random;
  std::vector<Graph> Graphs;
};

/// No more than a manager can do.
unsigned bounded(const Kind &K, unsigned Graphs) {
  return K.MostGraphs ? std::min(Graphs, K.MostGraphs / 4) : Graphs;
}

json row(const std::function<std::vector<double>()> &Body) {
  return alone([&] { return json(Body()); });
}

/// A row of each kind, which has a process of its own.
void addRows(Table &T, const std::function<std::vector<double>(const Kind &)> &Measure) {
  for (const Kind &K : kinds()) {
    json Cells = row([&] { return Measure(K); });
    T.Rows.push_back(
        {K.Key, Cells.is_array() ? Cells.get<std::vector<json>>() : std::vector<json>{Cells}});
  }
}

std::vector<double> quantiles(std::vector<double> Times) {
  return {quantile(Times, 0.5), quantile(Times, 0.99), quantile(Times, 0.999), quantile(Times, 1)};
}

std::vector<double> timesOf(unsigned Steps, const std::function<void()> &Step) {
  std::vector<double> Times(Steps);
  for (double &Time : Times) {
    double Start = passed();
    Step();
    Time = passed() - Start;
  }
  return quantiles(std::move(Times));
}

struct Pace {
  /// Nanoseconds per graph.
  double Passed, Spent;
};

/// Several threads that replace graphs of their own at a time.
Pace paceOf(const Kind &K, unsigned Threads, unsigned Steps) {
  std::vector<std::unique_ptr<Manager>> Managers;
  std::vector<std::unique_ptr<Churn>> Churns;
  for (unsigned I = 0; I != Threads; ++I) {
    if (Managers.empty() || K.PerThread)
      Managers.push_back(K.Make());
    Churns.push_back(std::make_unique<Churn>(*Managers.back(), Live, I + 1));
    Churns.back()->steps(bounded(K, 2 * Live));
  }
  double Start = passed(), StartSpent = spent();
  std::vector<std::thread> Running;
  for (auto &C : Churns)
    Running.emplace_back([&C, Steps] { C->steps(Steps); });
  for (std::thread &T : Running)
    T.join();
  double Graphs = double(Threads) * Steps;
  return {(passed() - Start) / Graphs, (spent() - StartSpent) / Graphs};
}

Pace medianPace(const Kind &K, unsigned Threads, unsigned Steps, unsigned Rounds) {
  std::vector<double> Passed, Spent;
  for (unsigned Round = 0; Round != Rounds; ++Round) {
    Pace P = paceOf(K, Threads, Steps);
    Passed.push_back(P.Passed);
    Spent.push_back(P.Spent);
  }
  return {quantile(Passed, 0.5), quantile(Spent, 0.5)};
}

/// x86-64: `lea eax, [rdi + Number]; ret`, then traps.
Content function(uint32_t Number) {
  Content C = traps();
  C[0] = char(0x8d);
  C[1] = char(0x87);
  memcpy(&C[2], &Number, sizeof Number);
  C[6] = char(0xc3);
  return C;
}

double timeOfCalls(const Kind &K, unsigned Count, unsigned Passes, bool Collapse) {
  using Function = uint32_t (*)(uint32_t);
  std::unique_ptr<Manager> M = K.Make();
  std::vector<Function> Functions;
  for (unsigned I = 0; I != Count; ++I)
    Functions.push_back(reinterpret_cast<Function>(M->add(SmallGraph, function(I).data()).Code));
  if (Collapse)
    M->collapse();
  std::shuffle(Functions.begin(), Functions.end(), std::mt19937(3));
  double Start = 0;
  for (unsigned Pass = 0; Pass != Passes + 1; ++Pass) {
    if (Pass == 1) // the one before it filled the caches
      Start = spent();
    uint32_t Sum = 0;
    for (Function F : Functions)
      Sum += F(Pass);
    uint64_t N = Count;
    if (Sum != uint32_t(N * (N - 1) / 2 + N * Pass))
      throw std::runtime_error("linked code is wrong");
  }
  return (spent() - Start) / (double(Count) * Passes);
}

} // namespace

double passed() { return now(CLOCK_MONOTONIC); }

double spent() { return now(CLOCK_PROCESS_CPUTIME_ID); }

double pageFaults() {
  rusage Usage;
  getrusage(RUSAGE_SELF, &Usage);
  return double(Usage.ru_minflt);
}

double mappings() {
  std::ifstream File("/proc/self/maps");
  return double(std::count(std::istreambuf_iterator<char>(File), {}, '\n'));
}

double memory() {
  std::ifstream File("/proc/self/smaps_rollup");
  std::string Line;
  unsigned long KB;
  while (std::getline(File, Line))
    if (sscanf(Line.c_str(), "Pss: %lu kB", &KB) == 1)
      return double(KB) * 1024;
  throw std::runtime_error("/proc/self/smaps_rollup has no Pss");
}

double quantile(std::vector<double> &Values, double Part) {
  auto Place = Values.begin() + long(double(Values.size() - 1) * Part);
  std::nth_element(Values.begin(), Place, Values.end());
  return *Place;
}

Table replacing(const Extent &E) {
  Table T = {"replacing",
             "Replacing one of 500 small graphs (deallocate, allocate, write, finalize), each step "
             "timed: ns",
             {"median", "p99", "p99.9", "most"},
             {}};
  unsigned Steps = E.of(1000000, 100000);
  addRows(T, [&](const Kind &K) {
    std::unique_ptr<Manager> M = K.Make();
    Churn C(*M, Live);
    C.steps(bounded(K, 2 * Live));
    return timesOf(bounded(K, Steps), [&] { C.step(); });
  });
  T.Rows.push_back({"the clock alone", row([&] { return timesOf(Steps, [] {}); })});
  return T;
}

Table threads(const Extent &E) {
  Table T = {"threads",
             "Threads that share a manager, each of which replaces one of its own 500 small graphs "
             "at a time: ns per graph of them all, how many times as many graphs as one thread "
             "makes, and processor time in ns per graph",
             {"1", "2", "8", "2 / 1", "8 / 1", "processor, 1", "2", "8"},
             {}};
  addRows(T, [&](const Kind &K) {
    if (K.MostGraphs)
      throw std::runtime_error("it can't make so many graphs");
    // A thread takes a fifth of a second in a round at most, however slow the manager is.
    double Pilot = paceOf(K, 1, 1000).Spent;
    unsigned Steps = std::min(E.of(400000, 50000), unsigned(2e8 / Pilot)), Rounds = E.of(9, 3);
    Pace One = medianPace(K, 1, Steps, Rounds), Two = medianPace(K, 2, Steps, Rounds),
         Eight = medianPace(K, 8, Steps, Rounds);
    return std::vector<double>{
        One.Passed, Two.Passed, Eight.Passed, One.Passed / Two.Passed, One.Passed / Eight.Passed,
        One.Spent,  Two.Spent,  Eight.Spent};
  });
  return T;
}

Table making(const Extent &) {
  constexpr unsigned Graphs = 10000;
  Table T = {
      "making",
      "Making 10,000 small graphs: processor time in ns per graph, page faults per graph, and "
      "what the process has gained",
      {"ns", "page faults", "mappings", "memory, KiB"},
      {}};
  addRows(T, [&](const Kind &K) {
    if (K.MostGraphs)
      throw std::runtime_error("it can't make so many graphs");
    std::unique_ptr<Manager> M = K.Make();
    // Touched beforehand, so that its page faults do not count.
    std::vector<Graph> Made(Graphs, Graph{SmallGraph});
    Content Code = traps();
    double Mapped = mappings(), Memory = memory(), Faults = pageFaults(), Start = spent();
    for (Graph &G : Made)
      G = M->add(SmallGraph, Code.data());
    double Time = spent() - Start;
    return std::vector<double>{Time / Graphs, (pageFaults() - Faults) / Graphs, mappings() - Mapped,
                               (memory() - Memory) / 1024};
  });
  return T;
}

Table liveGraphs(const Extent &E) {
  const std::vector<unsigned> Counts =
      E.Full ? std::vector<unsigned>{10, 100, 1000, 10000, 100000, 1000000}
             : std::vector<unsigned>{10, 1000, 10000, 100000};
  Table T = {
      "live", "Replacing one of so many small graphs: processor time in ns per graph", {}, {}};
  for (unsigned Count : Counts)
    T.Columns.push_back(std::to_string(Count));
  for (const Kind &K : kinds()) {
    Table::Row Row = {K.Key, {}};
    for (unsigned Count : Counts)
      Row.Cells.push_back(alone([&]() -> json {
        unsigned Steps = bounded(K, 20000);
        if (K.MostGraphs && Count + 2 * Steps > K.MostGraphs)
          throw std::runtime_error("it can't make so many graphs");
        std::unique_ptr<Manager> M = K.Make();
        Churn C(*M, Count);
        C.steps(Steps);
        double Start = spent();
        C.steps(Steps);
        return (spent() - Start) / Steps;
      }));
    T.Rows.push_back(std::move(Row));
  }
  return T;
}

Table running(const Extent &E) {
  const std::array<unsigned, 2> Counts = {20000, 200000};
  Table T = {"running",
             "Calls of small functions in random order, each in a graph of its own: processor time "
             "in ns per call",
             {"20,000 functions", "200,000 functions"},
             {}};
  auto Add = [&](const std::string &Name, const Kind &K, bool Collapse) {
    Table::Row Row = {Name, {}};
    for (unsigned Count : Counts)
      Row.Cells.push_back(alone([&] {
        return json(timeOfCalls(K, Count, E.of(30, 5) * Counts.back() / Count, Collapse));
      }));
    T.Rows.push_back(std::move(Row));
  };
  Add("jitmem, huge pages", kinds().front(), true);
  for (const Kind &K : kinds())
    if (!K.MostGraphs)
      Add(K.Key, K, false);
  Add(pageForEach().Key, pageForEach(), false);
  return T;
}

} // namespace peers
