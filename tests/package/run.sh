#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds and runs hosts against an installed jitmem, in every way that a host may find it.
# usage: run.sh PREFIX LLVM_DIR WORK
#   PREFIX    where jitmem is installed; LLVM_DIR  where LLVMConfig.cmake is; WORK  where to build
set -u -o pipefail
if [ $# -ne 3 ]; then
  sed -n '3,5s/^# //p' "$0" >&2
  exit 2
fi
prefix=$(realpath -- "$1") llvm=$2 work=$(realpath -m -- "$3")
here=$(cd "$(dirname "$0")" && pwd)
source=$(cd "$here/../.." && pwd)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$source/Cargo.toml" | head -n 1)
answer="jitmem $version answers 42"
. "$here/check.sh"
mkdir -p "$work"
# What is built here shows how hosts find it; PREFIX has what is optimized as a release.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_EXECUTOR_OPT_LEVEL=0

fail() {
  echo "$*"
  return 1
}

answers() {
  local said
  said=$("$@")
  [ "$said" = "$answer" ] || fail "$* says \"$said\", not \"$answer\""
}

# loads <program>: succeeds if it needs the shared library.
loads() {
  readelf -d "$1" | grep 'NEEDED.*libjitmem' >/dev/null
}

library_names() {
  local lib=$1/lib soname
  [ -f "$lib/libjitmem.so.$version" ]
  [ ! -L "$lib/libjitmem.so.$version" ]
  soname=$(readelf -d "$lib/libjitmem.so" | sed -n 's/.*(SONAME).*\[\(.*\)\]/\1/p')
  case $version in
    0.*) [ "$soname" = "libjitmem.so.${version%.*}" ] || fail "soname $soname" ;;
    *) [ "$soname" = "libjitmem.so.${version%%.*}" ] || fail "soname $soname" ;;
  esac
  [ "$(readlink "$lib/$soname")" = "libjitmem.so.$version" ]
  [ "$(readlink "$lib/libjitmem.so")" = "$soname" ]
}

# Exactly the symbols of symbols.txt are exported, and the header declares exactly those.
exported_symbols() {
  nm -D --defined-only --without-symbol-versions "$prefix/lib/libjitmem.so" |
    awk '$2 == "T" { print $3 }' | LC_ALL=C sort | diff "$here/symbols.txt" -
  sed -n 's/^[a-z].*[ *]\(jitmem_[a-z_]*\)(.*/\1/p' "$prefix/include/jitmem.h" |
    grep -v '_fn$' | LC_ALL=C sort | diff "$here/symbols.txt" -
}

# Each of them has the version of this ABI, and programs ask for it.
symbol_versions() {
  local node=JITMEM_${version%.*}
  sed "s/\$/@@$node/" "$here/symbols.txt" >"$work/versioned.txt"
  nm -D --defined-only "$prefix/lib/libjitmem.so" | awk '$2 == "T" { print $3 }' | LC_ALL=C sort |
    diff "$work/versioned.txt" -
  echo 'int jitmem_version(void); int main(void) { return jitmem_version() == 0; }' >"$work/ask.c"
  cc "$work/ask.c" -o "$work/ask" -L"$prefix/lib" -ljitmem -Wl,-rpath,"$prefix/lib"
  readelf -V "$work/ask" | grep "Name: $node " || fail "the program does not ask for $node"
  "$work/ask"
}

# smaller <bytes> <file>
smaller() {
  local size
  size=$(stat -Lc %s "$2")
  echo "$2: $size bytes"
  [ "$size" -lt "$1" ] || fail "$2 is not smaller than $1 bytes"
  ! readelf -SW "$2" | grep -F .debug_info || fail "$2 has debug information"
}

stripped_libraries() {
  smaller 3350000 "$prefix/lib/libjitmem.so"
  smaller 10000000 "$prefix/lib/libjitmem.a"
  [ -z "$(find "$prefix" -name '*.debug')" ] || fail "debug information that was not asked for"
}

header_alone() {
  echo '#include <jitmem.h>' >"$work/header.c"
  cp "$work/header.c" "$work/header.cpp"
  local flags="-I$prefix/include -Wall -Wextra -Wpedantic -Werror -fsyntax-only" standard
  for standard in c99 c11 c17 c2x; do
    cc -std=$standard $flags "$work/header.c"
  done
  for standard in c++17 c++20; do
    c++ -std=$standard $flags "$work/header.cpp"
  done
}

# build <project> <directory> [<cmake argument>...]
build() {
  local project=$1 directory=$2
  shift 2
  cmake -S "$here/$project" -B "$directory" "$@"
  cmake --build "$directory"
}

c_find_package() {
  local out=$work/c
  rm -rf "$out"
  build c "$out" -DCMAKE_PREFIX_PATH="$prefix"
  answers "$out/with-shared"
  answers "$out/with-static"
  loads "$out/with-shared"
  ! loads "$out/with-static" || fail "with-static needs the shared library"
  names_executor "$out"
}

# names_executor <directory>: succeeds if the host that was built there has run the program.
names_executor() {
  grep -x "jitmem-executor $version" "$1/executor.txt"
}

# The program stands alone: it needs the C library and the unwinder, and exports what a debugger and
# linked code look for by name: exactly what is in executor-symbols.txt.
executor_program() {
  local program=$prefix/bin/jitmem-executor
  [ "$("$program" --version)" = "jitmem-executor $version" ]
  printf '%s\n' ld-linux-x86-64.so.2 libc.so.6 libgcc_s.so.1 >"$work/executor.needed"
  readelf -d "$program" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | LC_ALL=C sort |
    comm -13 "$work/executor.needed" - | (! grep .)
  nm -D --defined-only "$program" | awk '{ print $3 }' | LC_ALL=C sort >"$work/executor.symbols"
  diff "$here/executor-symbols.txt" "$work/executor.symbols"
  [ "$(stat -c %s "$program")" -lt 1500000 ] || fail "$(stat -c %s "$program") bytes are no small program"
}

# Man pages name all options and all functions, and no others.
man_pages() {
  local man=$prefix/share/man
  "$prefix/bin/jitmem-executor" --help | grep -oE '^ *--[a-z-]+(, --[a-z]+)?' | grep -oE -e '--[a-z-]+' |
    LC_ALL=C sort -u >"$work/options.txt"
  grep -oE 'Fl -[a-z-]+' "$man/man1/jitmem-executor.1" | sed 's/Fl -/--/' | LC_ALL=C sort -u |
    grep -v -x -e --rlimit-as | diff "$work/options.txt" -
  grep -oE 'Fn jitmem_[a-z_]+' "$man/man3/jitmem.3" | sed 's/Fn //' | LC_ALL=C sort -u |
    diff "$here/symbols.txt" -
}

pkg_config_programs() {
  local out=$1
  rm -rf "$out"
  mkdir -p "$out"
  export PKG_CONFIG_PATH=$2/lib/pkgconfig
  [ "$(pkg-config --modversion jitmem)" = "$version" ]
  make -C "$here/pkg-config" OUT="$out"
  answers "$out/with-shared"
  answers "$out/with-archive"
  answers "$out/all-static"
  "$out/frames-static" | grep -x "frames are found"
  ! loads "$out/plugin.so" || fail "plugin.so needs the shared library"
  timeout 60 "$out/plugin-host" "$out/plugin.so" "$2/bin/jitmem-executor" | grep -x "threads outlive a dlclose"
  loads "$out/with-shared"
  ! loads "$out/with-archive" || fail "with-archive needs the shared library"
}

# jitmem in a plugin that its host closes, while threads of the plugin's connection are there.
plugin_closed() {
  local out=$work/plugin
  rm -rf "$out"
  build plugin "$out" -DCMAKE_PREFIX_PATH="$prefix"
  ! loads "$out/libplugin.so" || fail "the plugin needs the shared library"
  ctest --test-dir "$out" --output-on-failure --no-tests=error
}

orc_find_package() {
  local out=$work/orc
  build orc "$out" -G Ninja -DCMAKE_PREFIX_PATH="$prefix" -DLLVM_DIR="$llvm"
  ctest --test-dir "$out" --output-on-failure --no-tests=error
  loads "$out/consumer"
  ! loads "$out/consumer-static" || fail "consumer-static needs the shared library"
}

# Nothing that needs LLVM or a C++ compiler happens to a C host.
no_llvm_needed() {
  local out=$work/no-llvm
  rm -rf "$out"
  build c "$out" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_DISABLE_FIND_PACKAGE_LLVM=ON \
    -DCMAKE_CXX_COMPILER=/nonexistent
  answers "$out/with-shared"
}

version_request() {
  local request=$1 expected=$2 out=$work/version-$1 said
  rm -rf "$out"
  said=$(cmake -S "$here/version" -B "$out" -DCMAKE_PREFIX_PATH="$prefix" -DREQUESTED="$request")
  echo "$said"
  grep "answer: $expected" <<<"$said"
}

# A host that builds jitmem with itself; building again links nothing anew, and the host's
# installation does not bring jitmem along.
subproject() {
  local by=$1 out=$work/$1 before after
  shift
  # What debug_information chose there in an earlier run is forgotten.
  build subproject "$out" -U'JITMEM_[ID]*' -DJITMEM_SOURCE="$source" -DJITMEM_BY="$by" "$@"
  answers "$out/with-shared"
  answers "$out/with-static"
  before=$(stat -c %y "$out/with-shared" "$out/with-static")
  cmake --build "$out"
  after=$(stat -c %y "$out/with-shared" "$out/with-static")
  [ "$before" = "$after" ] || fail "linked anew although nothing changed"
  names_executor "$out"
  rm -rf "$out/prefix"
  cmake --install "$out" --prefix "$out/prefix"
  answers "$out/prefix/bin/with-static"
  [ -z "$(find "$out/prefix" -name '*jitmem*')" ] || fail "the host's installation has jitmem's files"
}

# The debug information is installed if it is asked for, where debuggers look for it. Goes on in the
# build of FetchContent.
debug_information() {
  local out=$work/FetchContent lib=$work/FetchContent/debug/lib
  cmake -S "$here/subproject" -B "$out" -DJITMEM_INSTALL=ON -DJITMEM_DEBUG_INFO=ON
  cmake --build "$out"
  rm -rf "$out/debug"
  cmake --install "$out" --prefix "$out/debug"
  smaller 100000000 "$lib/libjitmem.so"
  readelf -p .gnu_debuglink "$lib/libjitmem.so" | grep -F "libjitmem.so.$version.debug"
  readelf -SW "$lib/libjitmem.so.$version.debug" | grep -F .debug_info >/dev/null
  readelf -SW "$lib/libjitmem.a.debug" | grep -F .debug_info >/dev/null
}

# components <known or unknown> <component>...
components() {
  local expected=$1 out=$work/components-$2 said status=0
  shift
  rm -rf "$out"
  said=$(cmake -S "$here/version" -B "$out" -DCMAKE_PREFIX_PATH="$prefix" -DCOMPONENTS="$*" 2>&1) ||
    status=$?
  echo "$said"
  case $expected in
    known) [ $status -eq 0 ] ;;
    unknown) [ $status -ne 0 ] && grep "has no component \"$1\"" <<<"$said" ;;
    without-cxx) [ $status -ne 0 ] && tr -s ' \n' ' ' <<<"$said" | grep -F "add CXX to the LANGUAGES" ;;
  esac
}

# The targets are what a refusal and the guide name.
component_names() {
  local targets name said
  targets=$(sed -nE 's/^add_(library|executable)\(jitmem::([a-z_]*) .*/\2/p' \
    "$prefix/lib/cmake/jitmem/jitmemTargets.cmake")
  [ "$(wc -w <<<"$targets")" -ge 7 ]
  said=$(components unknown neither | tr -s ' \n' ' ' | grep -oE 'it has [a-z_, ]+ and [a-z_]+')
  for name in $targets; do
    grep -w -e "$name" <<<"$said" || fail "find_package does not name $name"
    grep -F "| \`jitmem::$name\` |" "$source/docs/getting-started.md" || fail "the guide does not name $name"
  done
}

# What is compiled by the host is missed where the project has no C++, also when that is added later.
llvm_c_needs_cxx() {
  local out=$work/llvm-c said
  rm -rf "$out"
  ! said=$(cmake -S "$here/llvm_c" -B "$out" -DCMAKE_PREFIX_PATH="$prefix" 2>&1) ||
    fail "configured without C++: $said"
  tr -s ' \n' ' ' <<<"$said" | grep -F "needs enable_language(CXX)"
  rm -rf "$out"
  cmake -S "$here/llvm_c" -B "$out" -DCMAKE_PREFIX_PATH="$prefix" -DWITH_CXX=ON
}

# The whole prefix goes elsewhere: nothing in it refers to the place where it was made.
moved_prefix() {
  local first=$work/moved/first second=$work/moved/elsewhere/second
  rm -rf "$work/moved"
  mkdir -p "$first" "$work/moved/elsewhere"
  cp -a "$prefix/." "$first"
  build c "$work/moved/build" -DCMAKE_PREFIX_PATH="$first"
  answers "$work/moved/build/with-shared"
  mv "$first" "$second"
  ! "$work/moved/build/with-shared" || fail "a program still finds the library at the old place"
  ! grep -rI -e "$first" -e "$prefix" "$second/lib/cmake" "$second/lib/pkgconfig" ||
    fail "the package names the place where it was"
  build c "$work/moved/build" -UCMAKE_PREFIX_PATH -Ujitmem_DIR -DCMAKE_PREFIX_PATH="$second"
  answers "$work/moved/build/with-shared"
  answers "$work/moved/build/with-static"
  pkg_config_programs "$work/moved/pkg-config" "$second"
}

check library-names library_names "$prefix"
check exported-symbols exported_symbols
check symbol-versions symbol_versions
check stripped-libraries stripped_libraries
check header-alone header_alone
check c-find-package c_find_package
check c-pkg-config pkg_config_programs "$work/pkg-config" "$prefix"
check c-without-llvm no_llvm_needed
check plugin-closed plugin_closed
check executor-program executor_program
check man-pages man_pages
check orc-find-package orc_find_package
minor=${version%.*}
check version-none version_request "" accepted
check version-minor version_request "$minor" accepted
check version-same version_request "$version" accepted
check version-next-patch version_request "$minor.$((${version##*.} + 1))" refused
check version-next-minor version_request "${minor%.*}.$((${minor#*.} + 1))" refused
check version-9.9 version_request 9.9 refused
check components-all components known jitmem static orc orc_static unwind executor
check components-llvm_c components without-cxx llvm_c
check component-names component_names
check llvm_c-needs-cxx llvm_c_needs_cxx
check components-nosuch components unknown nosuch
check add_subdirectory subproject add_subdirectory -G Ninja
check FetchContent subproject FetchContent -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Debug
check debug-information debug_information
check moved-prefix moved_prefix
echo "tests/package: $passed passed, $failed failed"
[ $failed -eq 0 ]
