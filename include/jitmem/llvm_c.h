// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//
// jitmem under LLVM's C API. The functions are in jitmem/llvm_c.cpp, which the host compiles with
// its own LLVM: in CMake by the target jitmem::llvm_c, else by naming that file.
//
//   jitmem_mapper_in_process(JITMEM_IN_PROCESS_AUTO, &mapper, &error);
//   jitmem_manager_create(mapper, NULL, &manager, &error);
//   LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator(builder, jitmem_llvm_object_layer, manager);
//
// The manager is the host's own: jitmem.h has its statistics, look-ups and limits.

#ifndef JITMEM_LLVM_C_H
#define JITMEM_LLVM_C_H

#include "../jitmem.h"

#include <llvm-c/LLJIT.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Creates an object layer over a manager, for LLVMOrcLLJITBuilderSetObjectLinkingLayerCreator and
/// LLVMOrcLLJITBuilder's context. Frames of what is linked are registered with the unwinder.
///
/// `manager` is a `jitmem_manager *` whose memory is where the session's code runs, which several
/// layers may share. The host keeps it and frees it after LLVMOrcDisposeLLJIT. After
/// jitmem_llvm_connect, NULL: the layer uses the manager of that connection.
///
/// Returns NULL where frames can't be registered and where the manager is none, that of another
/// process, or NULL in a session of this process, and reports why to the session. LLVM does not
/// look at that: LLVMOrcCreateLLJIT goes on, and its LLJIT must not be used. A creator of the
/// host's that calls this one can keep what it answers.
LLVMOrcObjectLayerRef jitmem_llvm_object_layer(void *manager, LLVMOrcExecutionSessionRef session,
                                               const char *triple);

/// Connects a builder to an executor, such as `jitmem-executor filedescs=IN,OUT`: `in` is read
/// from, `out` is written to. They are the ends of two pipes, since LLVM's transport can't end a
/// connection over one socket while it reads from it: two descriptors of one file are an error.
/// Both are taken over, and closed on failure. Code is linked here, and runs there. Waits for the
/// executor.
///
/// `options` are those of the manager; NULL for the defaults. `manager` receives it, unless NULL:
/// it belongs to the connection and is valid until LLVMOrcDisposeLLJIT.
///
/// To dispose of a builder of which no LLJIT was made, end the executor first: LLVM's transport
/// waits until it closes its end.
///
/// Sets the builder's executor, its object layer creator and the inactive platform, which runs no
/// static constructors: none of this may be set again.
LLVMErrorRef jitmem_llvm_connect(LLVMOrcLLJITBuilderRef builder, int in, int out,
                                 const jitmem_manager_options *options, jitmem_manager **manager);

/// Runs a function as `int main(int argc, char *argv[])` where the session's code is, and waits for
/// it. `argv` has `argc` strings; the first is the program's name. An error where one is NULL, the
/// address is 0 or `result` is NULL.
LLVMErrorRef jitmem_llvm_run_as_main(LLVMOrcExecutionSessionRef session,
                                     LLVMOrcExecutorAddress address, int argc,
                                     const char *const *argv, int32_t *result);

/// Has a listener (LLVMCreateGDBRegistrationListener, LLVMCreatePerfJITEventListener) told of what
/// a layer of jitmem_llvm_object_layer links in this process: what
/// LLVMOrcRTDyldObjectLinkingLayerRegisterJITEventListener does for RuntimeDyld's. The listener
/// must outlive the layer: LLVM's are static objects of its library, which end at exit, so
/// LLVMOrcDisposeLLJIT is to be called before. To be called before anything is linked. For a layer
/// that is not JITLink's and a listener that is NULL, as LLVM's are where it is built without them,
/// the session is told and nothing is done; for a layer that is NULL nothing is done.
void jitmem_llvm_register_listener(LLVMOrcObjectLayerRef layer, LLVMJITEventListenerRef listener);

#ifdef __cplusplus
}
#endif

#endif // JITMEM_LLVM_C_H
