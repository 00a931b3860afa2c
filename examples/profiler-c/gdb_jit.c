// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// GDB's manual, "JIT Compilation Interface", has the names and structures below.
#include "listeners.h"

#include <elf.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
enum { MACHINE = EM_X86_64 };
#elif defined(__aarch64__)
enum { MACHINE = EM_AARCH64 };
#elif defined(__riscv)
enum { MACHINE = EM_RISCV };
#endif

enum { NO_ACTION, REGISTER, UNREGISTER };

struct jit_code_entry {
  struct jit_code_entry *next_entry, *prev_entry;
  const char *symfile_addr;
  uint64_t symfile_size;
};

struct jit_descriptor {
  uint32_t version, action_flag;
  struct jit_code_entry *relevant_entry, *first_entry;
};

// A debugger looks for these two names, and has a breakpoint in the function.
void __jit_debug_register_code(void);
struct jit_descriptor __jit_debug_descriptor = {1, NO_ACTION, NULL, NULL};
__attribute__((noinline)) void __jit_debug_register_code(void) {
  __asm__ volatile("" ::: "memory");
}

// An object file whose code is elsewhere: a section without bytes for each segment of code, at its
// address, with a symbol for all of it.
enum { NONE, SYMTAB, STRTAB, FIRST_CODE, MOST_CODE = 8, MOST_SECTIONS = FIRST_CODE + MOST_CODE };

struct object {
  struct jit_code_entry entry;
  uint64_t allocation;
  struct object *next;
  Elf64_Ehdr header;
  Elf64_Shdr sections[MOST_SECTIONS];
  Elf64_Sym symbols[1 + MOST_CODE];
  // The names of sections and symbols.
  char strings[];
};

static struct object *objects;

static const char NAMES[] = "\0.symtab\0.strtab\0.text";
enum { SYMTAB_NAME = 1, STRTAB_NAME = 9, TEXT_NAME = 17 };

static void tell(struct jit_code_entry *entry, uint32_t action) {
  __jit_debug_descriptor.relevant_entry = entry;
  __jit_debug_descriptor.action_flag = action;
  __jit_debug_register_code();
}

static void add_code(struct object *object, unsigned number,
                     const jitmem_allocation_segment *segment) {
  object->sections[FIRST_CODE + number] = (Elf64_Shdr){.sh_name = TEXT_NAME,
                                                       .sh_type = SHT_NOBITS,
                                                       .sh_flags = SHF_ALLOC | SHF_EXECINSTR,
                                                       .sh_addr = segment->address,
                                                       .sh_size = segment->size,
                                                       .sh_addralign = 1};
  object->symbols[1 + number] = (Elf64_Sym){.st_name = sizeof NAMES,
                                            .st_info = ELF64_ST_INFO(STB_GLOBAL, STT_FUNC),
                                            .st_shndx = (Elf64_Half)(FIRST_CODE + number),
                                            .st_size = segment->size};
}

static void add(const jitmem_allocation *it) {
  const char *name = it->name ? it->name : "linked_code";
  size_t strings = sizeof NAMES + strlen(name) + 1;
  struct object *object = calloc(1, sizeof *object + strings);
  if (object == NULL)
    return;
  memcpy(object->strings, NAMES, sizeof NAMES);
  memcpy(object->strings + sizeof NAMES, name, strlen(name) + 1);
  unsigned code = 0;
  for (size_t i = 0; i < it->segment_count && code < MOST_CODE; i++)
    if (is_code(&it->segments[i]))
      add_code(object, code++, &it->segments[i]);
  const size_t start = offsetof(struct object, header);
  object->sections[SYMTAB] = (Elf64_Shdr){.sh_name = SYMTAB_NAME,
                                          .sh_type = SHT_SYMTAB,
                                          .sh_offset = offsetof(struct object, symbols) - start,
                                          .sh_size = (1 + code) * sizeof(Elf64_Sym),
                                          .sh_link = STRTAB,
                                          .sh_info = 1, // the first global symbol
                                          .sh_addralign = 8,
                                          .sh_entsize = sizeof(Elf64_Sym)};
  object->sections[STRTAB] = (Elf64_Shdr){.sh_name = STRTAB_NAME,
                                          .sh_type = SHT_STRTAB,
                                          .sh_offset = offsetof(struct object, strings) - start,
                                          .sh_size = strings,
                                          .sh_addralign = 1};
  object->header = (Elf64_Ehdr){
      .e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
      .e_type = ET_REL, // symbols count from their sections
      .e_machine = MACHINE,
      .e_version = EV_CURRENT,
      .e_shoff = offsetof(struct object, sections) - start,
      .e_ehsize = sizeof(Elf64_Ehdr),
      .e_shentsize = sizeof(Elf64_Shdr),
      .e_shnum = (Elf64_Half)(FIRST_CODE + code),
      .e_shstrndx = STRTAB};
  object->allocation = it->allocation;
  object->entry = (struct jit_code_entry){.next_entry = __jit_debug_descriptor.first_entry,
                                          .symfile_addr = (const char *)&object->header,
                                          .symfile_size = sizeof *object - start + strings};
  if (object->entry.next_entry != NULL)
    object->entry.next_entry->prev_entry = &object->entry;
  __jit_debug_descriptor.first_entry = &object->entry;
  object->next = objects;
  objects = object;
  tell(&object->entry, REGISTER);
}

static void drop(uint64_t allocation) {
  struct object **place = &objects;
  while (*place != NULL && (*place)->allocation != allocation)
    place = &(*place)->next;
  struct object *object = *place;
  if (object == NULL)
    return;
  *place = object->next;
  struct jit_code_entry *entry = &object->entry;
  if (entry->next_entry != NULL)
    entry->next_entry->prev_entry = entry->prev_entry;
  if (entry->prev_entry != NULL)
    entry->prev_entry->next_entry = entry->next_entry;
  else
    __jit_debug_descriptor.first_entry = entry->next_entry;
  tell(entry, UNREGISTER);
  free(object);
}

void gdb_jit_event(const jitmem_event *event) {
  const jitmem_allocation *it = event->allocation;
  if (event->kind == JITMEM_EVENT_DEALLOCATED)
    drop(it->allocation);
  if (event->kind != JITMEM_EVENT_FINALIZED)
    return;
  for (size_t i = 0; i < it->segment_count; i++)
    if (is_code(&it->segments[i])) {
      add(it);
      return;
    }
}
