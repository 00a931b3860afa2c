#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Makes the source tarball that all packages are built from: the files that git knows, as they are now, with the
# crates of Cargo.lock in vendor/, so that nothing is fetched when it is built.
# usage: dist.sh OUT
#   prints the tarball's path, OUT/jitmem-VERSION.tar.xz
set -eu -o pipefail
if [ $# -ne 1 ]; then
  sed -n '5,6s/^# //p' "$0" >&2
  exit 2
fi
out=$(realpath -m -- "$1")
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=jitmem-$version
rm -rf "$out"
mkdir -p "$out/$name/.cargo"
git ls-files -z | tar --null -T - -cf - | tar -C "$out/$name" -xf -
cargo vendor --locked --quiet "$out/$name/vendor" >/dev/null
cat >"$out/$name/.cargo/config.toml" <<'END'
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"
END
# The same bytes from the same commit.
tar -C "$out" --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
  --mtime="@$(git log -1 --format=%ct)" -cf - "$name" | xz -T0 -3 >"$out/$name.tar.xz"
rm -rf "${out:?}/$name"
echo "$out/$name.tar.xz"
