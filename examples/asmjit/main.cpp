// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// asmjit assembles a function that counts its calls, into memory of jitmem: code and its counter
// are one graph, so the code reaches the counter by a 32-bit reference. It takes the place of
// asmjit's own JitRuntime.
#include <asmjit/x86.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <jitmem.h>

namespace x86 = asmjit::x86;

static void check(jitmem_status status, const jitmem_error *error) {
  if (status == JITMEM_OK)
    return;
  std::fprintf(stderr, "asmjit: %s\n", jitmem_error_message(error));
  std::exit(1);
}

static void check(asmjit::Error error) {
  if (error == asmjit::kErrorOk)
    return;
  std::fprintf(stderr, "asmjit: %s\n", asmjit::DebugUtils::errorAsString(error));
  std::exit(1);
}

// int add(int a, int b) { ++counter; return a + b; }, with a section of its own for the counter.
static void assemble(asmjit::CodeHolder &code, asmjit::Section *&data) {
  check(code.init(asmjit::Environment::host()));
  check(code.newSection(&data, ".data", SIZE_MAX, asmjit::SectionFlags::kNone, 8));
  x86::Assembler assembler(&code);
  const asmjit::Label counter = assembler.newLabel();
  check(assembler.inc(x86::dword_ptr(counter)));
  check(assembler.lea(x86::eax, x86::ptr(x86::rdi, x86::rsi)));
  check(assembler.ret());
  check(assembler.section(data));
  check(assembler.bind(counter));
  const int zero = 0;
  check(assembler.embed(&zero, sizeof zero));
}

int main() {
  asmjit::CodeHolder code;
  asmjit::Section *data = nullptr;
  assemble(code, data);
  asmjit::Section *text = code.textSection();

  jitmem_mapper *mapper = nullptr;
  jitmem_manager *manager = nullptr;
  jitmem_error *error = nullptr;
  check(jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error), error);
  check(jitmem_manager_create(mapper, nullptr, &manager, &error), error);

  jitmem_segment segments[2] = {};
  segments[0].content_size = text->bufferSize();
  segments[0].alignment = 16;
  segments[0].protection = JITMEM_PROT_READ | JITMEM_PROT_EXEC;
  segments[1].content_size = data->bufferSize();
  segments[1].alignment = 8;
  segments[1].protection = JITMEM_PROT_READ | JITMEM_PROT_WRITE;
  jitmem_segment_memory memory[2];
  std::uint64_t allocation = 0;
  check(jitmem_manager_allocate(manager, segments, 2, 0, memory, &allocation, &error), error);

  // asmjit resolves references for offsets of sections from one base, here the lower of the two
  // addresses.
  const std::uint64_t base =
      memory[0].address < memory[1].address ? memory[0].address : memory[1].address;
  text->setOffset(memory[0].address - base);
  data->setOffset(memory[1].address - base);
  check(code.resolveUnresolvedLinks());
  check(code.relocateToBase(base));
  check(code.copySectionData(memory[0].working_memory, text->bufferSize(), text->id()));
  check(code.copySectionData(memory[1].working_memory, data->bufferSize(), data->id()));
  check(jitmem_manager_finalize(manager, allocation, nullptr, 0, &error), error);

  const auto add =
      reinterpret_cast<int (*)(int, int)>(static_cast<std::uintptr_t>(memory[0].address));
  const auto *counter =
      reinterpret_cast<const int *>(static_cast<std::uintptr_t>(memory[1].address));
  const int sum = add(40, 2) + add(-1, 1);
  std::printf("40 + 2 = %d, counted %d calls\n", sum, *counter);
  const bool right = sum == 42 && *counter == 2;

  check(jitmem_manager_deallocate(manager, &allocation, 1, &error), error);
  jitmem_manager_free(manager);
  jitmem_mapper_free(mapper);
  return right ? 0 : 1;
}
