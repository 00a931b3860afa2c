// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "footprint.hpp"

#include "llvm/ADT/SmallVector.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/Support/MemoryBuffer.h"

#include <climits>
#include <cstdlib>
#include <malloc.h>

using namespace llvm;

namespace demo {

// Columns of a mapping's first line: range, permissions, offset, device, inode, name.
static bool mayHoldLinkedCode(StringRef Line) {
  SmallVector<StringRef, 8> Columns;
  Line.split(Columns, ' ', /*MaxSplit=*/-1, /*KeepEmpty=*/false);
  if (Columns.size() < 6)
    return true;
  StringRef Name = Columns[5];
  return Name.starts_with("/memfd:") || Name.starts_with("/dev/shm/") || Name == "/dev/zero" ||
         Name.starts_with("[anon");
}

static Error add(Footprint &Sum, const std::string &Process) {
  std::string Path = "/proc/" + Process + "/smaps";
  auto Text = MemoryBuffer::getFileAsStream(Path);
  if (!Text)
    return createStringError(Text.getError(), "cannot read %s: %s", Path.c_str(),
                             Text.getError().message().c_str());
  bool Counted = false;
  for (StringRef Line : split((*Text)->getBuffer(), '\n')) {
    // Only a mapping's first line starts with an address, in lower case; the lines about it with a
    // name.
    if (!Line.empty() && isHexDigit(Line[0]) && !isUpper(Line[0])) {
      Counted = mayHoldLinkedCode(Line);
      Sum.Mappings += Counted;
    } else if (uint64_t KiB;
               Counted && Line.consume_front("Pss:") && !Line.trim().consumeInteger(10, KiB)) {
      Sum.Bytes += KiB << 10;
    }
  }
  return Error::success();
}

Expected<Footprint> Footprint::of(ArrayRef<std::string> Processes) {
  Footprint Sum;
  for (const std::string &Process : Processes)
    if (auto E = add(Sum, Process))
      return E;
  return Sum;
}

void keepMallocInHeap() {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_ARENA_MAX, 1);
  setenv("MALLOC_MMAP_MAX_", "0", /*replace=*/1);
  setenv("MALLOC_ARENA_MAX", "1", /*replace=*/1);
#endif
}

void reserveHeap(size_t Bytes) {
#ifdef __GLIBC__
  mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
  void *volatile Block = malloc(Bytes); // volatile: the compiler may drop the pair of calls
  free(Block);
}

} // namespace demo
