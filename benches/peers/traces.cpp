// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "alone.hpp"
#include "measures.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

namespace peers {

using nlohmann::json;

namespace {

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
  for (const Trace &Played : allTraces(Folder, E.of(100000, 10000)))
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
