#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds the Debian packages from a source tarball and packaging/debian, and has lintian look at them. Rust is
# the one on PATH: Debian's own may be older than jitmem needs.
# usage: deb.sh TARBALL OUT
set -eu -o pipefail
if [ $# -ne 2 ]; then
  sed -n '5s/^# //p' "$0" >&2
  exit 2
fi
tarball=$(realpath -- "$1") out=$(realpath -m -- "$2")
debian=$(cd "$(dirname "$0")" && pwd)/debian
name=$(basename "$tarball" .tar.xz)
version=${name#jitmem-}
packaged=$(dpkg-parsechangelog -l "$debian/changelog" -S Version)
if [ "${packaged%-*}" != "$version" ]; then
  echo "deb: packaging/debian/changelog is of version $packaged, the sources are $version: add an entry" >&2
  exit 1
fi
missing=$(dpkg-checkbuilddeps -P pkg.jitmem.rustup "$debian/control" 2>&1 || true)
if [ -n "$missing" ]; then
  echo "deb: $missing" >&2
  exit 1
fi

rm -rf "$out"
mkdir -p "$out"
cp "$tarball" "$out/jitmem_$version.orig.tar.xz"
tar -C "$out" -xf "$tarball"
cp -r "$debian" "$out/$name/debian"
# debhelper gives what it calls a home directory of its own, without rustup's toolchains.
export RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
cd "$out/$name"
dpkg-buildpackage --build-profiles=pkg.jitmem.rustup --unsigned-source --unsigned-changes >../build.log 2>&1 || {
  tail -n 40 ../build.log >&2
  echo "deb: the build failed: $out/build.log" >&2
  exit 1
}
cd "$out"
rm -rf "${out:?}/$name"
# No bug of Debian's asks for these packages.
lintian --allow-root --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs ./*.changes
ls ./*.deb
