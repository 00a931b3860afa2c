#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Runs main.c with an installed jitmem-executor in a virtual machine, whose kernel has control groups of
# version 2 whatever this machine has. Needs no rights and no acceleration; for x86-64.
# usage: run.sh PREFIX WORK
#   PREFIX  where jitmem is installed; WORK  where to build
set -eu -o pipefail
if [ $# -ne 2 ]; then
  sed -n '5,6s/^# //p' "$0" >&2
  exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(realpath -- "$1")
mkdir -p "$2"
work=$(realpath -- "$2")
attacks=$here/../../examples/untrusted
rm -rf "$work/root"
mkdir -p "$work/root/bin" "$work/root/proc" "$work/root/sys" "$work/root/dev" "$work/root/tmp" "$work/kernel"

# As the example builds them: what is linked is the machine code of untrusted.c.
plain=(-O1 -fno-builtin -fno-stack-protector -fno-tree-loop-distribute-patterns)
flags=(-std=c11 -D_GNU_SOURCE -Wall -Wextra -Wpedantic -Werror -I "$prefix/include" -I "$attacks")
cc "${flags[@]}" "${plain[@]}" -c "$attacks/untrusted.c" -o "$work/untrusted.o"
cc "${flags[@]}" -O1 "$here/main.c" "$attacks/executor.c" "$work/untrusted.o" -o "$work/root/bin/cgroup" \
  -L "$prefix/lib" -ljitmem -Wl,-rpath,/lib
cp "$prefix/bin/jitmem-executor" "$work/root/bin/"
cp /bin/busybox "$work/root/bin/"
cp_library() {
  mkdir -p "$work/root$(dirname "$1")"
  cp -L "$1" "$work/root$1"
}
mkdir -p "$work/root/lib"
cp -L "$prefix/lib/libjitmem.so.0.1" "$work/root/lib/"
libraries=$(LD_LIBRARY_PATH=$prefix/lib ldd "$work/root/bin/cgroup" "$work/root/bin/jitmem-executor" |
  grep -oE '/[^ ]+' | grep -v libjitmem | grep -v ':$' | sort -u)
for library in $libraries; do cp_library "$library"; done
# C++'s, which the executor loads before it is sealed.
for library in libstdc++.so.6 libgcc_s.so.1 libm.so.6; do
  cp_library "$(cc -print-file-name=$library)"
done
cat >"$work/root/init" <<'INIT'
#!/bin/busybox sh
export PATH=/bin
busybox mkdir -p /sys /proc /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox ln -s busybox /bin/sh
busybox ln -s /proc/self/fd /dev/fd
cgroup /bin/jitmem-executor
echo "cgroup: exit code $?"
busybox poweroff -f
INIT
chmod +x "$work/root/init"
(cd "$work/root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd.gz"

# The kernel of Debian, without installing it here.
if ! ls "$work"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)
  (cd "$work/kernel" && apt-get -q download "$kernel" >/dev/null 2>&1)
  dpkg-deb --fsys-tarfile "$work"/kernel/linux-image-*.deb |
    tar -x -C "$work/kernel" --wildcards './boot/vmlinuz-*'
fi
timeout 600 qemu-system-x86_64 -accel tcg -cpu max -m 1024 -smp 2 -display none -serial stdio -no-reboot \
  -kernel "$work"/kernel/boot/vmlinuz-* -initrd "$work/initrd.gz" -append "console=ttyS0 quiet panic=-1" \
  </dev/null | tee "$work/output"
grep -q 'cgroup: exit code 0' "$work/output"
