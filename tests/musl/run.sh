#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds libjitmem.a for musl, and programs that are linked statically with it, and runs them. Rust's standard library is
# built too, by Debian's rustc, whose sources it has; what conflicts with rustup is unpacked.
# usage: run.sh WORK
#   WORK   where to unpack and to build
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
source=$(realpath -- "$here/../..")
mkdir -p "$1"
work=$(realpath -- "$1")

if ! dpkg -s musl-tools >/dev/null 2>&1; then
  [ "$(id -u)" -eq 0 ] || {
    echo "check-musl: a package is missing: sudo apt-get install musl-tools" >&2
    exit 1
  }
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install musl-tools
fi

# rustc takes the standard library of exactly its own version, and its unwinder for musl is LLVM's.
rust=$(apt-cache policy rustc-web | sed -n 's/ *Candidate: //p')
packages=("rustc-web=$rust" "libstd-rust-web-dev=$rust" "libstd-rust-web-$(cut -d. -f1,2 <<<"$rust")=$rust"
  "rust-web-src=$rust" libunwind-19-dev)
tools=$work/tools
if [ ! -e "$work/rustc" ]; then
  mkdir -p "$work/deb" "$tools"
  cd "$work/deb"
  apt-get -q -oAPT::Sandbox::User=root download "${packages[@]}"
  for package in *.deb; do dpkg-deb -x "$package" "$tools"; done
  cd "$work"
  rm -r deb
  ln -sfn "$(echo "$tools"/usr/src/rustc-*)" "$tools/usr/lib/rustlib/src/rust"
  cat >rustc.new <<END
#!/bin/sh
export LD_LIBRARY_PATH='$tools/usr/lib/x86_64-linux-gnu'
exec '$tools/usr/bin/rustc' "\$@"
END
  chmod +x rustc.new
  mv rustc.new rustc
fi

cd "$source"
target=x86_64-unknown-linux-musl
# To build a standard library is left to nightly compilers otherwise.
RUSTC=$work/rustc RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$work/target cargo rustc --locked --lib -Zbuild-std=std,panic_unwind \
  --target $target --crate-type staticlib

# link PROGRAM SOURCE: Debian's libunwind is compiled for glibc, with its checks.
link() {
  musl-gcc -D_GNU_SOURCE -static -Wl,--eh-frame-hdr -Iinclude "$2" "$here/fortify.c" -o "$work/$1" \
    "$work/target/$target/debug/libjitmem.a" "$(echo "$tools"/usr/lib/llvm-*/lib/libunwind.a)"
}
link answer tests/package/c/answer.c
link frames tests/package/pkg-config/frames.c
link threads "$here/threads.c"
"$work/answer" | grep "answers 42"
"$work/frames" | grep -x "frames are found"
"$work/threads" | grep -x "all threads have run what they linked, and the child too"
