# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# A host that starts executors knows where the program is.
add_custom_command(
  OUTPUT executor.txt
  COMMAND jitmem::executor --version > executor.txt
  DEPENDS jitmem::executor
  VERBATIM)
add_custom_target(executor ALL DEPENDS executor.txt)
