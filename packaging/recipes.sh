#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Writes the recipes for vcpkg, Conan, Spack and Meson with the version and the checksums of a source tarball, and the
# address from which it will be had.
# usage: recipes.sh TARBALL URL OUT
set -eu -o pipefail
if [ $# -ne 3 ]; then
  sed -n '5s/^# //p' "$0" >&2
  exit 2
fi
tarball=$(realpath -- "$1") url=$2 out=$(realpath -m -- "$3")
cd "$(dirname "$0")"
version=$(basename "$tarball" .tar.xz)
version=${version#jitmem-}
sha256=$(sha256sum "$tarball" | cut -d' ' -f1)
sha512=$(sha512sum "$tarball" | cut -d' ' -f1)

rm -rf "$out"
mkdir -p "$out"
cp -r conan meson spack vcpkg "$out"
cp ../tests/package/c/answer.c "$out/conan/test_package"
find "$out" -type f -exec sed -i \
  -e "s|@VERSION@|$version|g; s|@URL@|$url|g; s|@SHA256@|$sha256|g; s|@SHA512@|$sha512|g" '{}' +
echo "$out"
