// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "trace.hpp"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <memory>
#include <random>
#include <stdexcept>
#include <zlib.h>

namespace peers {

/// The format is that of record.py.
static Trace read(const std::filesystem::path &File) {
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
static Trace stream(uint32_t Graphs) {
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

std::vector<Trace> allTraces(const std::string &Folder, uint32_t GraphsOfStream) {
  std::vector<std::filesystem::path> Files;
  for (const auto &Entry : std::filesystem::directory_iterator(Folder))
    if (Entry.path().extension() == ".gz")
      Files.push_back(Entry.path());
  std::sort(Files.begin(), Files.end());
  std::vector<Trace> All;
  std::transform(Files.begin(), Files.end(), std::back_inserter(All), read);
  All.push_back(stream(GraphsOfStream));
  return All;
}

} // namespace peers
