#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Gets what building for AArch64 and running that takes. Packages of this machine are installed; those of
# arm64, and Debian's rustc, which has a standard library for arm64 and conflicts with rustup, are unpacked.
# usage: tools.sh WORK PAGES
#   WORK   where to unpack: rustc, arm64 (libraries and headers), kernel-PAGES
#   PAGES  4k or 16k, the kernel's pages
set -eu -o pipefail
work=$(realpath -m -- "$1")
pages=$2

installed=(qemu-system-arm gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross cpio)
if ! dpkg -s "${installed[@]}" >/dev/null 2>&1; then
  [ "$(id -u)" -eq 0 ] || {
    echo "check-aarch64: packages are missing: sudo apt-get install ${installed[*]}" >&2
    exit 1
  }
  apt-get -q update
  DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "${installed[@]}"
fi

mkdir -p "$work"/{lists/partial,deb}
cd "$work/deb"
arm64=(-oAPT::Architecture=arm64 -oAPT::Architectures=arm64 -oDir::State::Lists="$work/lists"
  -oDir::Cache::pkgcache= -oDir::Cache::srcpkgcache= -oAPT::Sandbox::User=root)
lists() { [ -n "$(find "$work/lists" -name '*_Packages*' -print -quit)" ] || apt-get -q "${arm64[@]}" update; }

# unpack FOLDER ARCHITECTURE PACKAGE...: unless that was done. PACKAGE may have "=version" at its end.
unpack() {
  local folder=$work/$1 architecture=$2 options=() package name
  shift 2
  [ "$architecture" = amd64 ] || options=("${arm64[@]}")
  mkdir -p "$folder"
  for package; do
    name=${package%%=*}
    [ ! -e "$folder/.$name.$architecture" ] || continue
    [ "$architecture" = amd64 ] || lists
    rm -f "$name"_*_"$architecture".deb
    apt-get -q "${options[@]}" download "$package"
    dpkg-deb -x "$name"_*_"$architecture".deb "$folder"
    rm "$name"_*_"$architecture".deb
    touch "$folder/.$name.$architecture"
  done
}

# rustc takes the standard library of exactly its own version.
rust=$(apt-cache policy rustc-web | sed -n 's/ *Candidate: //p')
unpack rust amd64 "rustc-web=$rust" "libstd-rust-web-dev=$rust" "libstd-rust-web-$(cut -d. -f1,2 <<<"$rust")=$rust"
unpack rust arm64 "libstd-rust-web-dev=$rust"
unpack arm64 arm64 busybox-static libc6 libgcc-s1 libstdc++6 libcmocka0 libcmocka-dev
# It needs the libraries that it was unpacked with.
cat >"$work/rustc" <<END
#!/bin/sh
export LD_LIBRARY_PATH='$work/rust/usr/lib/x86_64-linux-gnu'
exec '$work/rust/usr/bin/rustc' "\$@"
END
chmod +x "$work/rustc"

case $pages in
  4k) kernel=linux-image-arm64 ;;
  16k) kernel=linux-image-6.12-arm64-16k ;;
esac
if [ ! -e "$work/kernel-$pages/.done" ]; then
  lists
  image=$(apt-cache "${arm64[@]}" depends $kernel | sed -n 's/.*Depends: \(linux-image-.*\)/\1/p' | head -1)
  unpack "kernel-$pages" arm64 "$image"
  touch "$work/kernel-$pages/.done"
fi
