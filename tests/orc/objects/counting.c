// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// Data that each executor has for itself, by way of a pointer in data, and a function of the C
// library.

#include <unistd.h>

static int Count = 40;
static int *Where = &Count;

int countOn(int By) { return *Where += By; }

int whoRunsThis(int Added) { return (int)getpid() + Added; }
