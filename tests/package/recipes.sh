#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds jitmem from a source tarball by the recipes for Conan, Meson, Spack and vcpkg, and hosts against each result.
# Conan and Meson are installed from PyPI. Spack and vcpkg are in no package registry: where the variables SPACK and
# VCPKG name their programs, these run; stand-ins of this folder run the recipes anyway, without them.
# usage: recipes.sh TARBALL WORK
set -u -o pipefail
if [ $# -ne 2 ]; then
  sed -n '6s/^# //p' "$0" >&2
  exit 2
fi
tarball=$(realpath -- "$1") work=$(realpath -m -- "$2")
here=$(cd "$(dirname "$0")" && pwd)
version=$(basename "$tarball" .tar.xz)
version=${version#jitmem-}
recipes=$work/recipes
. "$here/check.sh"
skipped=0
# The recipes are tested and not the library: it is compiled several times here, as fast as that goes.
for profile in RELEASE EXECUTOR; do
  export CARGO_PROFILE_${profile}_LTO=off CARGO_PROFILE_${profile}_CODEGEN_UNITS=16 \
    CARGO_PROFILE_${profile}_OPT_LEVEL=0 CARGO_PROFILE_${profile}_DEBUG=false
done

# check_tool <name> <program> <variable> <command>...
check_tool() {
  local name=$1 program=$2 variable=$3
  shift 3
  if [ -n "$program" ]; then
    check "$name" "$@"
  else
    skipped=$((skipped + 1))
    echo "skip  $name: $variable names no program"
  fi
}

# hosts <prefix> <folder>: a C host over each library, by CMake.
hosts() {
  rm -rf "$2"
  cmake -S "$here/c" -B "$2" -DCMAKE_PREFIX_PATH="$1"
  cmake --build "$2"
  "$2/with-shared"
  "$2/with-static"
  grep -x "jitmem-executor $version" "$2/executor.txt"
}

tools() {
  [ -x "$work/tools/bin/pip" ] || python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install --quiet --disable-pip-version-check 'conan==2.34.0' 'meson==1.12.1'
}

write_recipes() {
  "$here/../../packaging/recipes.sh" "$tarball" "file://$tarball" "$recipes"
  ! grep -rnE '@(VERSION|URL|SHA256|SHA512)@' "$recipes"
}

# Conan builds the package, and its test_package with it.
conan_recipe() {
  export CONAN_HOME=$work/conan
  [ -e "$CONAN_HOME/profiles/default" ] || "$work/tools/bin/conan" profile detect
  # The CMake that is here, and not one from Conan's server.
  printf '[platform_tool_requires]\ncmake/%s\n' "$(cmake --version | sed -n 's/cmake version //p')" >"$work/profile"
  "$work/tools/bin/conan" create "$recipes/conan" --version "$version" --no-remote \
    --profile:all default --profile:all "$work/profile" --build 'jitmem/*'
}

meson_wrap() {
  local host=$work/meson
  rm -rf "$host"
  mkdir -p "$host/subprojects"
  cp "$here/meson/meson.build" "$here/c/answer.c" "$host"
  cp -r "$recipes"/meson/* "$host/subprojects"
  "$work/tools/bin/meson" setup --wrap-mode=forcefallback "$host/build" "$host"
  "$work/tools/bin/meson" test -C "$host/build" --print-errorlogs
}

spack_stand_in() {
  rm -rf "$work/spack-prefix"
  "$here/spack_package.py" "$recipes/spack/package.py" "$tarball" "$work/spack-source" "$work/spack-prefix"
  hosts "$work/spack-prefix" "$work/spack-hosts"
}

vcpkg_stand_in() {
  cmake -DPORT_DIR="$recipes/vcpkg" -DWORK="$work/vcpkg-stand-in" -P "$here/vcpkg_port.cmake"
  hosts "$work/vcpkg-stand-in/packages" "$work/vcpkg-stand-in/hosts"
}

# A repository with one package, beside Spack's own.
spack_package() {
  local repository=$work/spack-repository/spack_repo/jitmem_recipe
  export SPACK_USER_CONFIG_PATH=$work/spack-config
  rm -rf "$work/spack-repository"
  mkdir -p "$repository/packages/jitmem"
  printf "repo:\n  namespace: jitmem_recipe\n  api: v2.0\n" >"$repository/repo.yaml"
  cp "$recipes/spack/package.py" "$repository/packages/jitmem"
  "$SPACK" repo remove jitmem_recipe || true
  "$SPACK" repo add "$repository"
  "$SPACK" external find cmake gcc gmake
  "$SPACK" external find --path "$(rustc --print sysroot)" rust
  "$SPACK" uninstall -y --all jitmem || true
  "$SPACK" install --fail-fast --no-cache jitmem
  hosts "$("$SPACK" location -i jitmem)" "$work/spack-package-hosts"
}

vcpkg_port() {
  local installed=$work/vcpkg-installed
  rm -rf "$installed"
  export VCPKG_FORCE_SYSTEM_BINARIES=1 VCPKG_DISABLE_METRICS=1
  "$VCPKG" install jitmem --classic --overlay-ports="$recipes/vcpkg" --x-install-root="$installed" \
    --x-buildtrees-root="$work/vcpkg-buildtrees" --x-packages-root="$work/vcpkg-packages" \
    --downloads-root="$work/vcpkg-downloads" --binarysource=clear
  hosts "$(echo "$installed"/*-linux)" "$work/vcpkg-hosts"
}

mkdir -p "$work"
check tools tools
check recipes write_recipes
check conan conan_recipe
check meson meson_wrap
check spack-stand-in spack_stand_in
check vcpkg-stand-in vcpkg_stand_in
check_tool spack "${SPACK:-}" SPACK spack_package
check_tool vcpkg "${VCPKG:-}" VCPKG vcpkg_port
echo "recipes: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
