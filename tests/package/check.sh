# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Checks that are counted, for the scripts of this folder; their logs lie in $work.
# A script that has `set -e` can't use it: bash leaves -e out of what stands in a condition, and without one the
# first check that fails would end the script.
passed=0 failed=0

# check <name> <command> [<argument>...]: runs a function of the script in a shell of its own, where the first
# command that fails ends it.
check() {
  local name=$1 log=$work/$1.log status
  shift
  (set -e; "$@") >"$log" 2>&1
  status=$?
  if [ $status -eq 0 ]; then
    passed=$((passed + 1))
    echo "ok    $name"
  else
    failed=$((failed + 1))
    echo "FAIL  $name (exit $status); the end of $log:"
    tail -n 30 "$log" | sed 's/^/      /'
  fi
}
