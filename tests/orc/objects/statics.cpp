// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

extern "C" void hostNote(int Id);

namespace {
struct Noisy {
  explicit Noisy(int Id) : Id(Id) { hostNote(Id); }
  ~Noisy() { hostNote(-Id); }
  int Id;
};
Noisy First(1), Second(2);
} // namespace

extern "C" int sumOfStatics() { return First.Id + Second.Id; }
