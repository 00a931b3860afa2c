#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Has jitmem-executor run what a plain controller links, by each mapper over each transport, as it is and
# in either profile of its own.
failed=0
for profile in '' --seccomp=no-exec --seccomp=sealed; do
  for transport in unix tcp; do
    for mapper in shared remote; do
      output=$(controller $transport $mapper "$JITMEM_EXECUTOR" $profile)
      echo "$transport $mapper $profile:" $output
      case $output in
        '100 good'*'executor 0') ;;
        *) failed=1 ;;
      esac
    done
  done
done
exit $failed
