// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// What the preloaded library asks of the part that is linked against LLVM. Pointers are LLVM's own
// objects; neither side of this header knows the other's headers.
#ifndef JITMEM_PRELOAD_LAYERS_H
#define JITMEM_PRELOAD_LAYERS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// What was done in this process until now.
struct jitmem_preload_report {
  uint64_t layers;
  uint64_t allocations;
  uint64_t deallocations;
  uint64_t failures;
  uint64_t live_bytes;
  uint64_t committed_bytes;
  const char *mapper;
};

/// Has JITLink layers that are made for a builder (`LLJITBuilderState *`) use jitmem, if it links
/// into this process. Returns why they do not, or NULL; the text stays.
const char *jitmem_preload_configure(void *builder_state);

/// Has a layer of RuntimeDyld's (LLVMOrcObjectLayerRef) use jitmem where it would use LLVM's
/// SectionMemoryManager; leaves any other layer as it is. Returns why not, or NULL.
const char *jitmem_preload_adopt(void *layer);

/// The same for the layer of an `LLJIT *` that has just been made.
const char *jitmem_preload_made(void *jit);

/// A JITLink layer for an `ExecutionSession *` as LLVMOrcObjectLayerRef; NULL: what `why` says.
void *jitmem_preload_layer(void *session, const char **why);

/// When a fork handler is called.
enum jitmem_preload_fork {
  JITMEM_PRELOAD_BEFORE_FORK,
  JITMEM_PRELOAD_IN_PARENT,
  JITMEM_PRELOAD_IN_CHILD,
};

/// Does what jitmem does at a fork. The preloaded library's handlers call it: they are older than
/// the program's, which may use a JIT.
void jitmem_preload_at_fork(enum jitmem_preload_fork when);

void jitmem_preload_figures(struct jitmem_preload_report *report);

#ifdef __cplusplus
}
#endif

#endif // JITMEM_PRELOAD_LAYERS_H
