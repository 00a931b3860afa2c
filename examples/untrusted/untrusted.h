// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The code that the host does not trust. Its functions lie in a section of their own, whose machine
// code refers to nothing outside of it: so it can be linked by copying it.
#ifndef UNTRUSTED_H
#define UNTRUSTED_H

#include <stdint.h>

// Where the section begins and ends, from the linker.
extern const char __start_untrusted[], __stop_untrusted[];

// Gives its argument twice: what an executor that still works answers.
int32_t twice(int32_t number);

// Each gives the negative errno of what stopped it, or what it has got; some never return.
int32_t crash(int32_t address);
int32_t loop(int32_t unused);
int32_t allocate(int32_t most);   // MiB, until there are so many
int32_t hold_files(int32_t most); // MiB in files in memory, which no address space is needed for
int32_t make_code_writable(int32_t unused);
int32_t write_code(int32_t unused);
int32_t make_code(int32_t unused);
int32_t flood(int32_t unused);
int32_t write_to(int32_t descriptor); // 4096 bytes that are no message
int32_t start_processes(int32_t most);
int32_t kill_parent(int32_t unused);
int32_t open_file(int32_t unused);
int32_t open_socket(int32_t unused);
int32_t stop_itself(int32_t unused);
int32_t close_all(int32_t unused);
int32_t leave(int32_t code);

#endif
