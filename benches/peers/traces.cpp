// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"
#include "measures.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <stdexcept>
#include <zlib.h>

namespace peers {

using nlohmann::json;

namespace {

/// A graph comes, or one that has come goes.
struct Step {
  bool Adds;
  Plan Size;
  /// Which of the graphs that have come.
  uint32_t Number;
};

struct Trace {
  std::string Name;
  std::vector<Step> Steps;
};

/// The format is that of record.py.
Trace read(const std::filesystem::path &File) {
  std::unique_ptr<gzFile_s, int (*)(gzFile)> Lines(gzopen(File.c_str(), "rb"), gzclose);
  if (!Lines)
    throw std::runtime_error("open " + File.string() + ": it can't be read");
  Trace T = {File.stem().stem().string(), {}};
  char Line[80];
  uint32_t Count = 0;
  while (gzgets(Lines.get(), Line, sizeof Line)) {
    Step S = {};
    if (sscanf(Line, "+ %u %u %u", &S.Size.Code, &S.Size.Constants, &S.Size.Data) == 3) {
      S.Adds = true;
      S.Number = Count++;
    } else if (sscanf(Line, "- %u", &S.Number) != 1 || S.Number >= Count) {
      throw std::runtime_error(File.string() + ": no step of a trace: " + Line);
    }
    T.Steps.push_back(S);
  }
  return T;
}

/// Small queries: code has a median of 4 KB, and 100 are live at a time.
Trace stream(uint32_t Graphs) {
  constexpr uint32_t Live = 100;
  Trace T = {"stream", {}};
  std::mt19937 Random(4);
  std::lognormal_distribution<double> Code(8.3, 1);
  std::vector<uint32_t> Numbers;
  for (uint32_t I = 0; I != Graphs; ++I) {
    uint32_t Bytes = uint32_t(std::min(Code(Random), 1e6)) + 16;
    T.Steps.push_back({true, {Bytes, Bytes / 6, Bytes / 12}, I});
    Numbers.push_back(I);
    if (Numbers.size() > Live) {
      std::swap(Numbers[Random() % Numbers.size()], Numbers.back());
      T.Steps.push_back({false, {}, Numbers.back()});
      Numbers.pop_back();
    }
  }
  return T;
}

/// A trace that is played on a manager.
class Player {
public:
  Player(const Trace &T, Manager &M) : T(T), M(M), Before(0) {
    uint32_t Most = 0;
    size_t Count = 0;
    for (const Step &S : T.Steps) {
      Most = std::max({Most, S.Size.Code, S.Size.Constants, S.Size.Data});
      Count += S.Adds;
    }
    // Touched beforehand: neither its faults nor its memory are the manager's.
    Content.resize(Most, char(0xcc));
    Graphs.resize(Count);
    Before = memory();
  }

  /// Graphs, ns per graph, and the process's memory over live bytes after each fourth of the steps,
  /// which is no number where nothing is live.
  std::vector<double> play() {
    std::vector<double> Answer = {double(Graphs.size()), 0};
    double Time = 0;
    auto From = T.Steps.begin();
    for (unsigned Fourth = 1; Fourth != 5; ++Fourth) {
      auto To = T.Steps.begin() + long(T.Steps.size() * Fourth / 4);
      double Start = spent();
      std::for_each(From, To, [this](const Step &S) { take(S); });
      Time += spent() - Start;
      Answer.push_back(Live ? (memory() - Before) / double(Live) : NAN);
      From = To;
    }
    Answer[1] = Time / double(Graphs.size());
    return Answer;
  }

private:
  void take(const Step &S) {
    Graph &G = Graphs[S.Number];
    if (S.Adds) {
      G = M.add(S.Size, Content.data());
      Live += S.Size.bytes();
    } else {
      Live -= G.Size.bytes();
      M.remove(G);
    }
  }

  const Trace &T;
  Manager &M;
  std::vector<char> Content;
  std::vector<Graph> Graphs;
  double Before;
  uint64_t Live = 0;
};

} // namespace

Table traces(const Extent &E, const std::string &Folder) {
  Table T = {
      "traces",
      "Recorded programs: graphs, processor time in ns per graph, and memory over live bytes "
      "after each fourth of the steps",
      {"graphs", "ns", "1/4", "1/2", "3/4", "end"},
      {}};
  std::vector<std::filesystem::path> Files;
  for (const auto &Entry : std::filesystem::directory_iterator(Folder))
    if (Entry.path().extension() == ".gz")
      Files.push_back(Entry.path());
  std::sort(Files.begin(), Files.end());
  std::vector<Trace> All;
  std::transform(Files.begin(), Files.end(), std::back_inserter(All), read);
  All.push_back(stream(E.of(100000, 10000)));
  for (const Trace &Played : All)
    for (const Kind &K : kinds()) {
      json Cells = alone([&] {
        std::unique_ptr<Manager> M = K.Make();
        return json(Player(Played, *M).play());
      });
      T.Rows.push_back({Played.Name + ", " + K.Key, Cells.is_array()
                                                        ? Cells.get<std::vector<json>>()
                                                        : std::vector<json>{Cells}});
    }
  return T;
}

} // namespace peers
