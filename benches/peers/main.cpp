// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem beside what a host would have instead, through its C API: no LLVM.

#include "measures.hpp"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <jitmem.h>

using namespace peers;
using nlohmann::json;

static void usage() {
  fprintf(stderr, "usage: jitmem-bench-peers [--full] [--json=FILE] [--traces=FOLDER] "
                  "[--only=replacing|threads|making|live|running|traces|ways]\n");
  exit(2);
}

static std::string text(const json &Cell) {
  // What JSON makes of a ratio that is no number.
  if (Cell.is_null())
    return "–";
  if (Cell.is_string())
    return "– (" + Cell.get<std::string>() + ")";
  double Number = Cell;
  char Text[32];
  snprintf(Text, sizeof Text, Number < 10 ? "%.2f" : "%.0f", Number);
  return Text;
}

static void print(const Table &T) {
  printf("\n## %s\n\n| |", T.Title.c_str());
  for (const std::string &Column : T.Columns)
    printf(" %s |", Column.c_str());
  printf("\n|---|");
  for (size_t I = 0; I != T.Columns.size(); ++I)
    printf("--:|");
  printf("\n");
  for (const Table::Row &Row : T.Rows) {
    printf("| %s |", Row.Name.c_str());
    for (size_t I = 0; I != T.Columns.size(); ++I)
      printf(" %s |", I < Row.Cells.size() ? text(Row.Cells[I]).c_str() : "");
    printf("\n");
  }
  fflush(stdout);
}

static json asJson(const Table &T) {
  json Rows = json::object();
  for (const Table::Row &Row : T.Rows)
    Rows[Row.Name] = Row.Cells;
  return {{"title", T.Title}, {"columns", T.Columns}, {"rows", Rows}};
}

int main(int Count, char **Arguments) {
  Extent E;
  std::string File, Only, Folder = JITMEM_BENCH_TRACES;
  for (int I = 1; I != Count; ++I) {
    const std::string Argument = Arguments[I];
    auto Value = [&](const char *Name, std::string &Place) {
      bool Given = Argument.rfind(Name, 0) == 0;
      if (Given)
        Place = Argument.substr(strlen(Name));
      return Given;
    };
    if (Argument == "--full")
      E.Full = true;
    else if (!Value("--json=", File) && !Value("--only=", Only) && !Value("--traces=", Folder))
      usage();
  }
  const std::pair<const char *, std::function<Table()>> All[] = {
      {"replacing", [&] { return replacing(E); }}, {"threads", [&] { return threads(E); }},
      {"making", [&] { return making(E); }},       {"live", [&] { return liveGraphs(E); }},
      {"running", [&] { return running(E); }},     {"traces", [&] { return traces(E, Folder); }},
      {"ways", [&] { return ways(E); }},
  };

  printf("# jitmem beside other managers of code\n\njitmem %s, through its C API. Small graphs are "
         "those of workload (a). Each row is measured in a process of its own.\n\n"
         "| | what differs from jitmem's work |\n|---|---|\n",
         jitmem_version_string());
  for (const Kind &K : kinds())
    printf("| %s | %s |\n", K.Key, K.Differs);
  json Results = json::object();
  for (const auto &[Key, Measure] : All) {
    if (!Only.empty() && Only != Key)
      continue;
    Table T = Measure();
    print(T);
    Results[T.Key] = asJson(T);
  }
  if (Results.empty())
    usage();
  if (!File.empty() && !(std::ofstream(File) << Results.dump(1) << '\n')) {
    fprintf(stderr, "jitmem-bench-peers: %s: it can't be written\n", File.c_str());
    return 1;
  }
  return 0;
}
