// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What a test sees of the threads of its process.

#ifndef JITMEM_TESTS_ORC_THREADS_H
#define JITMEM_TESTS_ORC_THREADS_H

#include <fstream>
#include <string>

// Whether a thread waits, such as for another one.
inline bool sleeps(long Thread) {
  std::ifstream File("/proc/self/task/" + std::to_string(Thread) + "/stat");
  std::string Line;
  std::getline(File, Line);
  auto Name = Line.rfind(") ");
  return Name != std::string::npos && Line[Name + 2] == 'S';
}

#endif
