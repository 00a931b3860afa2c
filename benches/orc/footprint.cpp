// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "footprint.hpp"
#include "system_error.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

using namespace llvm;

namespace bench {

namespace {

enum class Backing { Mapped, Heap, Other };

} // namespace

/// Path is the last column of a line of maps, empty for private anonymous memory.
static Backing backingOf(StringRef Path) {
  if (Path == "[heap]")
    return Backing::Heap;
  // Memory that a process named by prctl(PR_SET_VMA), memfds, and shared memory with and without a
  // name.
  if (Path.empty() || Path.starts_with("[anon") || Path.starts_with("/memfd:") ||
      Path.starts_with("/dev/shm/") || Path.starts_with("/dev/zero"))
    return Backing::Mapped;
  return Backing::Other;
}

Expected<Footprint> footprint(pid_t Process) {
  std::string Name = "/proc/" + (Process ? std::to_string(Process) : "self") + "/smaps";
  std::unique_ptr<FILE, int (*)(FILE *)> File(fopen(Name.c_str(), "re"), fclose);
  if (!File)
    return systemError(errno, "open " + Name);
  Footprint Total;
  Backing Current = Backing::Other;
  char Line[512];
  while (fgets(Line, sizeof Line, File.get())) {
    unsigned long Start, End;
    int Path = 0;
    long Size;
    if (sscanf(Line, "%lx-%lx %*s %*s %*s %*s %n", &Start, &End, &Path) == 2 && Path) {
      ++Total.Mappings;
      Current = backingOf(StringRef(Line + Path).rtrim());
    } else if (sscanf(Line, "Pss: %ld kB", &Size) == 1) {
      // The proportional size counts each of a page's two views as a half, be they in one process
      // or in two.
      if (Current == Backing::Mapped)
        Total.MappedKB += Size;
      else if (Current == Backing::Heap)
        Total.HeapKB += Size;
    }
  }
  return Total;
}

Footprint operator-(const Footprint &A, const Footprint &B) {
  return {A.Mappings - B.Mappings, A.MappedKB - B.MappedKB, A.HeapKB - B.HeapKB};
}

Footprint operator+(const Footprint &A, const Footprint &B) {
  return {A.Mappings + B.Mappings, A.MappedKB + B.MappedKB, A.HeapKB + B.HeapKB};
}

} // namespace bench
