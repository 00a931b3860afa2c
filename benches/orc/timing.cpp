// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "timing.hpp"

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <memory>
#include <sys/resource.h>
#include <unistd.h>

using namespace llvm;

namespace bench {

static double seconds(clockid_t Clock) {
  timespec Now;
  clock_gettime(Clock, &Now);
  return double(Now.tv_sec) + double(Now.tv_nsec) / 1e9;
}

Expected<Sample> TimingProbe::read() const {
  Sample Now;
  if (Where && Where->OwnTraffic) {
    Traffic Own = Where->OwnTraffic();
    Now.OwnMessages = Own.Messages;
    Now.OwnBytes = Own.Bytes;
  }
  if (const Executor *Other = Where ? Where->Other.get() : nullptr) {
    Traffic EPC = Other->traffic();
    Now.Messages = EPC.Messages;
    Now.Bytes = EPC.Bytes;
    Expected<uint64_t> Faults = Other->minorFaults();
    if (!Faults)
      return Faults.takeError();
    Now.ExecutorFaults = *Faults;
    Now.ExecutorProcessorNs = Other->processorSeconds() * 1e9;
  }
  rusage Usage;
  getrusage(RUSAGE_SELF, &Usage);
  Now.Faults = Usage.ru_minflt;
  Now.ProcessorNs = seconds(CLOCK_PROCESS_CPUTIME_ID) * 1e9;
  return Now;
}

Error TimingProbe::measure(StringRef Name, uint64_t Operations, function_ref<Error()> Body) {
  Expected<Sample> Before = read();
  if (!Before)
    return Before.takeError();
  double Start = seconds(CLOCK_MONOTONIC);
  Error Err = Body();
  double Wall = seconds(CLOCK_MONOTONIC) - Start;
  if (Err)
    return Err;
  Expected<Sample> Used = read();
  if (!Used)
    return Used.takeError();
  Before->scale(-1);
  *Used += *Before;
  Used->WallNs = Wall * 1e9;
  Used->scale(1 / double(Operations));

  Cell &Measured = R.phase(W, Name).cell(C.row());
  Measured.ByProcessor = W.Compares == Contest::InOneProcess && !W.InChildren;
  Measured.Samples.push_back(*Used);
  return Error::success();
}

MachineUse::MachineUse()
    : Start(bench::seconds(CLOCK_MONOTONIC)), BusyBefore(busy()), OursBefore(ours()) {}

double MachineUse::seconds() const { return bench::seconds(CLOCK_MONOTONIC) - Start; }

double MachineUse::ofOthers() const {
  double All = seconds() * double(sysconf(_SC_NPROCESSORS_ONLN));
  return std::max(0.0, (busy() - BusyBefore - (ours() - OursBefore)) / All);
}

double MachineUse::busy() {
  std::unique_ptr<FILE, int (*)(FILE *)> File(fopen("/proc/stat", "re"), fclose);
  double User = 0, Nice = 0, System = 0, Idle, Wait, Interrupts = 0, SoftInterrupts = 0, Stolen = 0;
  // Where it can't be read, the share of others is shown as none.
  if (File && fscanf(File.get(), "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &User, &Nice, &System,
                     &Idle, &Wait, &Interrupts, &SoftInterrupts, &Stolen) != 8)
    return 0;
  return (User + Nice + System + Interrupts + SoftInterrupts + Stolen) /
         double(sysconf(_SC_CLK_TCK));
}

double MachineUse::ours() {
  double Sum = 0;
  for (int Who : {RUSAGE_SELF, RUSAGE_CHILDREN}) {
    rusage Usage;
    getrusage(Who, &Usage);
    for (timeval Part : {Usage.ru_utime, Usage.ru_stime})
      Sum += double(Part.tv_sec) + double(Part.tv_usec) / 1e6;
  }
  return Sum;
}

} // namespace bench
