#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds the examples against an installed jitmem, several at a time, and runs them one after the other.
# usage: run.sh PREFIX LLVM_ROOT WORK
#   PREFIX  where jitmem is installed; LLVM_ROOT  what precedes the release in the folder of an LLVM; WORK  where to build
set -eu -o pipefail
if [ $# -ne 3 ]; then
  sed -n '4,5s/^# //p' "$0" >&2
  exit 2
fi
prefix=$(realpath -- "$1") llvm_root=$2
mkdir -p "$3"
work=$(realpath -- "$3")
cd "$(dirname "$0")/../../examples"
executor=$prefix/bin/jitmem-executor

# Those of LLVM have the releases that they are built with behind the last hyphen.
projects=(interpreter-22 query-server-{22,19} llvm-c-{22,19,16,14} lljit-{22,19,16,15,14} child-cpp-{22,19} untrusted-cpp-22
  plain-c child-c supervised-c profiler-c asmjit untrusted)

# build PROJECT
build() {
  local example=$1 options=()
  if [[ $1 =~ ^(.*)-([0-9]+)$ ]]; then
    example=${BASH_REMATCH[1]}
    options=(-DJITMEM_LLVM_VERSION="${BASH_REMATCH[2]}" -DLLVM_DIR="$llvm_root${BASH_REMATCH[2]}/lib/cmake/llvm")
  fi
  cmake -S "$example" -B "$work/$1" -G Ninja -Wno-dev --no-warn-unused-cli -DCMAKE_PREFIX_PATH="$prefix" "${options[@]}" &&
    cmake --build "$work/$1" --parallel 1
}

build_logged() {
  if build "$1" >"$work/$1.log" 2>&1; then
    echo "built $1"
  else
    echo "FAIL  $1 is not built:"
    tail -n 50 "$work/$1.log"
    return 1
  fi
}
export -f build build_logged
export prefix llvm_root work
printf '%s\n' "${projects[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'build_logged {}'

set -x
cd ..
cargo run --quiet --locked -p jitmem-rust-example -- "$executor"
export CARGO_PROFILE_DEV_DEBUG=false
for example in dynasm cranelift; do
  cargo run --quiet --locked --manifest-path examples/$example/Cargo.toml --target-dir "$work/rust"
done
cargo run --quiet --locked --manifest-path examples/inkwell/Cargo.toml --target-dir "$work/rust" -- "$executor"
"$work/plain-c/jitmem-plain-c"
"$work/child-c/jitmem-child-c"
"$work/supervised-c/jitmem-supervised-c"
examples/profiler-c/test.py "$work/profiler-c/jitmem-profiler-c"
"$work/asmjit/jitmem-asmjit"
"$work/interpreter-22/jitmem-interpreter" "$executor"
"$work/untrusted/jitmem-untrusted"
for project in lljit-{22,19,16,15,14} child-cpp-{22,19} untrusted-cpp-22; do
  "$work/$project/jitmem-${project%-*}"
done
for project in query-server-{22,19}; do
  "$work/$project/jitmem-compile-queries" "$work/$project/image"
  "$work/$project/jitmem-query-server" "$work/$project/image"
done
for project in llvm-c-{22,19,16,14}; do
  for program in here callbacks listener; do "$work/$project/jitmem-llvm-c-$program"; done
  "$work/$project/jitmem-llvm-c-there" "$executor"
done
