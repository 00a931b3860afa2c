# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#
# Fails unless TEST calls every function that jitmem.h in one of INCLUDES declares.
find_file(HEADER jitmem.h PATHS ${INCLUDES} NO_DEFAULT_PATH REQUIRED)
file(STRINGS ${HEADER} DECLARATIONS REGEX "^[a-z].*[ *]jitmem_[a-z_]+\\(")
file(READ ${TEST} SOURCE)
list(LENGTH DECLARATIONS COUNT)
if(COUNT LESS 28)
  message(FATAL_ERROR "only ${COUNT} functions found in ${HEADER}: is it written differently now?")
endif()
foreach(DECLARATION IN LISTS DECLARATIONS)
  string(REGEX REPLACE "^.*[ *](jitmem_[a-z_]+)\\(.*$" "\\1" NAME "${DECLARATION}")
  string(FIND "${SOURCE}" "${NAME}(" PLACE)
  if(PLACE EQUAL -1)
    message(SEND_ERROR "${TEST} does not call ${NAME}")
  endif()
endforeach()
message(STATUS "${COUNT} functions")
