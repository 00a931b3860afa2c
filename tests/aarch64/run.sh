#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds jitmem for AArch64 and runs its tests in an emulated machine: a whole one, since the emulation of
# single programs does not notice code that is written through another view.
# usage: run.sh WORK PAGES [TEST...]
#   WORK   where to build; PAGES  4k or 16k, those of the machine's kernel, or both: two machines at a time
#   TEST   patterns of names, such as rust-jitmem or 'c-*'; without any, all tests run
set -eu -o pipefail
case ${2-} in
  4k | 16k) sizes=("$2") ;;
  both) sizes=(4k 16k) ;;
  *)
    sed -n '5,7s/^# //p' "$0" >&2
    exit 2
    ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
source=$(realpath -- "$here/../..")
mkdir -p "$1"
work=$(realpath -- "$1")
shift 2
for pages in "${sizes[@]}"; do "$here/tools.sh" "$work" "$pages"; done

target=aarch64-unknown-linux-gnu
out=$work/target/$target
disk=$work/disk
libraries=usr/lib/aarch64-linux-gnu
export RUSTC=$work/rustc CARGO_BUILD_TARGET=$target CARGO_TARGET_DIR=$work/target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Library, executor and tests are built soon, and share what they depend on: one profile. Unoptimized tests would
# take minutes to fill pages.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=0
export CARGO_PROFILE_RELEASE_OPT_LEVEL=1
checked=(--config 'profile.release.package.jitmem.debug-assertions=true'
  --config 'profile.release.package.jitmem.overflow-checks=true')

wanted() {
  local pattern
  [ ${#patterns[@]} -gt 0 ] || return 0
  for pattern in "${patterns[@]}"; do
    # shellcheck disable=SC2053 # it is a pattern
    [[ $1 != $pattern ]] || return 0
  done
  return 1
}
patterns=("$@")

# Whether a pattern may mean a test of Rust: to build them takes longest.
wanted_of_rust() {
  [ ${#patterns[@]} -gt 0 ] || return 0
  [[ " ${patterns[*]} " =~ \ (rust|[*?[]) ]]
}

# install FILE NAME: strips a program, and puts it among the tests if it is wanted.
install_test() {
  ! wanted "$2" || aarch64-linux-gnu-strip -g -o "$disk/tests/$2" "$1"
}

rm -rf "$disk"
mkdir -p "$disk"/{bin,dev,etc,proc,root,sys,tmp,tests,"$libraries"}
cd "$source"
cargo rustc --quiet --locked --release "${checked[@]}" --lib --features c-library --crate-type staticlib
cargo build --quiet --locked --release "${checked[@]}" --package jitmem-executor
if wanted_of_rust; then
  cargo test --quiet --locked --release "${checked[@]}" --workspace --lib --bins --no-run --message-format=json |
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])
' | while read -r name program; do install_test "$program" "rust-$name"; done
fi

# compile NAME SOURCE... [FLAG...]
compile() {
  local name=$1
  shift
  aarch64-linux-gnu-gcc -std=gnu11 -O1 -Wall -Wextra -Wpedantic -Werror -Iinclude \
    -isystem "$work/arm64/usr/include" -o "$work/programs/$name" "$@" \
    -L "$work/programs" -ljitmem -lpthread -ldl -lm
}
mkdir -p "$work/programs"
sed 's/@.*@/0/' cmake/jitmem.map.in >"$work/jitmem.map"
aarch64-linux-gnu-gcc -shared -s -o "$work/programs/libjitmem.so" -Wl,--gc-sections,-z,defs \
  -Wl,--version-script,"$work/jitmem.map" -Wl,--whole-archive "$out/release/libjitmem.a" -Wl,--no-whole-archive \
  -lgcc_s -lpthread -ldl -lm
# CONTRIBUTING.md says what is left out, and why.
for test in capi-tests/*_test.c; do
  name=$(basename "$test" _test.c)
  case $name in stock | heap_*) continue ;; esac
  wanted "c-$name" || continue
  compile "c-$name" -D_GNU_SOURCE "$test" "$work/arm64/$libraries/libcmocka.so.0"
  install_test "$work/programs/c-$name" "c-$name"
done

compile controller tests/executor/controller.c
install -m 755 "$work/programs/controller" "$out/release/jitmem-executor" "$disk/bin/"
install -m 755 "$work/programs/libjitmem.so" "$disk/$libraries/"
! wanted executor || install -m 755 "$here/executor.sh" "$disk/tests/executor"
plain=(-O1 -fno-builtin -fno-stack-protector -fno-tree-loop-distribute-patterns)
aarch64-linux-gnu-gcc -std=c11 -D_GNU_SOURCE "${plain[@]}" -Wall -Wextra -Wpedantic -Werror -Iinclude \
  -c examples/untrusted/untrusted.c -o "$work/programs/untrusted.o"
# What is linked by copying it refers to nothing outside.
if aarch64-linux-gnu-objdump -r -j untrusted "$work/programs/untrusted.o" | grep R_AARCH64; then exit 1; fi
# What takes a second may take many here; the example itself gives up after 20.
sed 's/--time-limit=5/--time-limit=15/' examples/untrusted/main.c >"$work/programs/untrusted.c"
compile untrusted -D_GNU_SOURCE '-DJITMEM_EXECUTOR="/bin/jitmem-executor"' -Iexamples/untrusted \
  "$work/programs/untrusted.c" examples/untrusted/executor.c \
  "$work/programs/untrusted.o"
install_test "$work/programs/untrusted" untrusted

cp -a "$work/arm64/lib" "$disk/"
cp -a "$work/arm64/$libraries"/lib*.so* "$disk/$libraries/"
cp "$work/arm64/bin/busybox" "$disk/bin/"
cp "$here/init" "$disk/init"
(cd "$disk" && find . | cpio --quiet -o -H newc) >"$work/disk.cpio"

# Processors take turns: with a thread for each, the emulator can translate what another one is just storing, and
# go on running what was there before. So a machine takes one core of this one. Signing of pointers by an algorithm of
# the emulator's own is the quick one. The machine powers itself off.
run_machine() {
  local kernel
  kernel=$(find "$work/kernel-$1/boot" -name 'vmlinuz-*' | head -1)
  timeout 7200 qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -accel tcg,thread=single -smp 2 -m 3G \
    -nographic -no-reboot -nic none -kernel "$kernel" -initrd "$work/disk.cpio" \
    -append 'console=ttyAMA0 quiet panic=-1' </dev/null |
    stdbuf -oL tr -d '\r' | tee "$work/machine-$1.log" | sed -u "s/^/$1: /"
}
for pages in "${sizes[@]}"; do run_machine "$pages" & done
wait
failed=0
for pages in "${sizes[@]}"; do
  grep -q '^all tests have run$' "$work/machine-$pages.log" || {
    echo "$pages: the machine ended before its tests" >&2
    failed=1
  }
  ! grep -H '^FAILED' "$work/machine-$pages.log" || failed=1
done
exit $failed
