// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#pragma once

#include "managers.hpp"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace peers {

/// Figures of several peers; a cell is a number, or a text that says why there is none.
struct Table {
  std::string Key, Title;
  std::vector<std::string> Columns;
  struct Row {
    std::string Name;
    std::vector<nlohmann::json> Cells;
  };
  std::vector<Row> Rows;
};

/// How much is measured: less of everything for a first look.
struct Extent {
  bool Full = false;

  unsigned of(unsigned Most, unsigned Few) const { return Full ? Most : Few; }
};

Table replacing(const Extent &E);
Table threads(const Extent &E);
Table making(const Extent &E);
Table liveGraphs(const Extent &E);
Table running(const Extent &E);

/// Each recorded program of the folder, and a stream of graphs whose sizes are log-normal.
Table traces(const Extent &E, const std::string &Folder);

/// What bytes take to another process, without a manager.
Table ways(const Extent &E);

/// Nanoseconds, of a clock that never goes back.
double passed();

/// Nanoseconds of processor time of this process.
double spent();

double pageFaults();

/// The process's mappings.
double mappings();

/// Bytes of this process's memory; a page in two views counts once.
double memory();

/// The value below which such a part of the values lies.
double quantile(std::vector<double> &Values, double Part);

} // namespace peers
