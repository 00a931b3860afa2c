// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "machine.hpp"
#include "system_error.hpp"

#include "llvm/Support/MemoryBuffer.h"
#include "llvm/TargetParser/Host.h"

#include <cerrno>
#include <sys/utsname.h>
#include <unistd.h>

using namespace llvm;

namespace bench {

static Expected<uint64_t> mostMappings() {
  static constexpr StringLiteral File = "/proc/sys/vm/max_map_count";
  auto Text = MemoryBuffer::getFileAsStream(File);
  if (!Text)
    return systemError(Text.getError().value(), "read " + File);
  uint64_t Most;
  if ((*Text)->getBuffer().trim().getAsInteger(10, Most))
    return createStringError(File + " holds no number");
  return Most;
}

Expected<Machine> thisMachine() {
  Machine M;
  if (Error Err = mostMappings().moveInto(M.MostMappings))
    return Err;
  utsname System;
  if (uname(&System) != 0)
    return systemError(errno, "uname");
  // Without what a distributor or an owner of the machine appends to the version.
  StringRef Release = StringRef(System.release).split('-').first;
  M.System = (Twine(System.sysname) + " " + Release + " " + System.machine).str();
  M.Processor = sys::getHostCPUName().str();
  M.Processors = unsigned(sysconf(_SC_NPROCESSORS_ONLN));
  return M;
}

} // namespace bench
