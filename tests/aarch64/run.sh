#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds jitmem for AArch64 and runs its tests in an emulated machine: a whole one, since the emulation of
# single programs does not notice code that is written through another view.
# usage: run.sh [PAGES [WORK]]
#   PAGES  4k or 16k, the pages of the machine's kernel; WORK  where to build
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(realpath -- "$here/../..")
pages=${1:-4k}
work=$(realpath -m -- "${2:-build/aarch64}")
"$here/tools.sh" "$work" "$pages"

target=aarch64-unknown-linux-gnu
out=$work/target/$target
disk=$work/disk-$pages
libraries=usr/lib/aarch64-linux-gnu
cat >"$work/rustc" <<END
#!/bin/sh
export LD_LIBRARY_PATH='$work/rust/usr/lib/x86_64-linux-gnu'
exec '$work/rust/usr/bin/rustc' "\$@"
END
chmod +x "$work/rustc"
export RUSTC=$work/rustc CARGO_BUILD_TARGET=$target CARGO_TARGET_DIR=$work/target
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# What is emulated shall be fast, what is built soon done.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
fast=(--config 'profile.dev.package.jitmem.opt-level=1')
strip() { aarch64-linux-gnu-strip -g -o "$2" "$1"; }

rm -rf "$disk"
mkdir -p "$disk"/{bin,dev,etc,proc,root,sys,tmp,tests,"$libraries"}
cd "$source"
cargo rustc --quiet --locked --lib --release --features c-library --crate-type staticlib
cargo test --quiet --locked --workspace --lib --no-run "${fast[@]}" --message-format=json |
  python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["profile"]["test"]:
        print(message["target"]["name"], message["executable"])
' | while read -r name program; do strip "$program" "$disk/tests/rust-$name"; done
for test in ; do
  name=$(basename "$test" _test.c)
  aarch64-linux-gnu-gcc -std=gnu11 -D_GNU_SOURCE -O1 -Wall -Wextra -Wpedantic -Werror -Iinclude \
    -isystem "$work/arm64/usr/include" "$test" -o "$disk/tests/c-$name" "$out/release/libjitmem.a" \
    "$work/arm64/$libraries/libcmocka.so.0" -lpthread -ldl -lm
done

cp -a "$work/arm64/lib" "$disk/"
cp -a "$work/arm64/$libraries"/lib*.so* "$disk/$libraries/"
cp "$work/arm64/bin/busybox" "$disk/bin/"
cp "$here/init" "$disk/init"
(cd "$disk" && find . | cpio --quiet -o -H newc) | gzip -1 >"$work/disk-$pages.gz"

# Firmware's clock and log are of no use here. The machine powers itself off.
kernel=$(find "$work/kernel-$pages/boot" -name 'vmlinuz-*' | head -1)
qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -smp 2 -m 3G -nographic -no-reboot -nic none \
  -kernel "$kernel" -initrd "$work/disk-$pages.gz" -append 'console=ttyAMA0 quiet panic=-1' </dev/null |
  tr -d '\r' | tee "$work/machine-$pages.log"
grep -q '^all tests have run$' "$work/machine-$pages.log"
! grep '^FAILED' "$work/machine-$pages.log"
