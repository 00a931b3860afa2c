#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Has an installed jitmem-executor, and an executor in C built against the installed library, driven by
# real controllers and by one that breaks the protocol.
# usage: run.sh PREFIX [WORK [TEST...]]
#   PREFIX  where jitmem is installed; WORK  where to build; TEST  as python3 -m unittest takes them
set -eu -o pipefail
if [ $# -lt 1 ]; then
  sed -n '4,6s/^# //p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(realpath -- "$1")
work=$(realpath -m -- "${2:-build/executor}")
shift $(($# < 2 ? $# : 2))
rm -rf "$work/objects"
mkdir -p "$work/objects"

export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
flags=(-std=c11 -O2 -Wall -Wextra -Wpedantic -Werror)
read -ra include < <(pkg-config --cflags jitmem)
read -ra shared < <(pkg-config --libs jitmem)
read -ra static < <(pkg-config --static --libs jitmem | sed 's/-ljitmem/-l:libjitmem.a/')
cc "${flags[@]}" "${include[@]}" "$here/executor.c" -o "$work/executor" "${shared[@]}" \
  "-Wl,-rpath,$prefix/lib"
cc "${flags[@]}" "${include[@]}" "$here/executor.c" -o "$work/executor-static" -rdynamic \
  "${static[@]}"

compile() {
  local source=$1 object=$work/objects/$2.o
  shift 2
  case $source in
    *.c) cc -O1 -fPIC -Wall -Wextra -c "$here/objects/$source" -o "$object" "$@" ;;
    *) c++ -std=c++17 -O1 -fPIC -Wall -Wextra -c "$here/objects/$source" -o "$object" "$@" ;;
  esac
}
for source in "$here"/objects/*; do
  source=${source##*/}
  case $source in
    part.c | *.h) ;;
    *) compile "$source" "${source%.*}" ;;
  esac
done
compile catches.cpp catches-debug -g
compile throws.cpp throws-debug -g
last=149
for ((part = 0; part <= last; part++)); do
  if [ $part -lt $last ]; then
    compile part.c part-$part -DPART=$part -DNEXT=$((part + 1))
  else
    compile part.c part-$part -DPART=$part
  fi
done
rm -f "$work/objects/libparts.a"
ar rcs "$work/objects/libparts.a" "$work"/objects/part-*.o
for library in library wrappers attacks; do
  cc -shared "$work/objects/$library.o" -o "$work/objects/lib$library.so"
done

export EXECUTOR_TEST_PREFIX=$prefix EXECUTOR_TEST_WORK=$work
cd "$here"
exec python3 -B -W error main.py "$@"
