#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Does what README and the pages beside it and in docs tell their reader. Before each fenced block
# stands a comment that says what to do with it, and one may stand before a table:
#   <!-- run -->            commands, run in order, in one shell for each page, README's first, all in
#                           one copy of the sources
#   <!-- excerpt: FILE -->  lines that stand in FILE one after the other, however indented, or in its
#                           Rust documentation
#   <!-- targets -->        commands `make TARGET  # words`: the targets exist
#   <!-- rows: FILE -->     the rows of this table, but the first two, stand in FILE
# Links to files lead somewhere, and so do the paths that a page names in `backquotes`. README has at
# most 900 words. The picture is what its program writes.
# usage: readme.sh README WORK
set -eu -o pipefail
readme=$(realpath -- "$1") work=$(realpath -m -- "$2")
source=$(dirname "$readme")
pages=(README.md CONTRIBUTING.md SECURITY.md docs/*.md)
passed=0 failed=0
cd "$source"

report() {
  if [ "$1" -eq 0 ]; then
    passed=$((passed + 1))
    echo "ok    $2"
  else
    failed=$((failed + 1))
    echo "FAIL  $2"
  fi
}

# blocks <page> <folder>: its blocks and marked tables, as <folder>/<line>, their comments in
# <folder>/<line>.kind.
blocks() {
  awk -v out="$2/" '
    function end() { close(block); close(block ".kind"); block = ""; comment = ""; table = 0 }
    function begin() {
      block = sprintf("%s%04d", out, NR)
      print comment >(block ".kind")
      printf "" >block
    }
    table && !/^[|]/ { end() }
    /^```/ && !block { begin(); next }
    /^```/ { end(); next }
    !block && /^[|]/ && comment ~ /^rows: / { table = 1; begin() }
    block { print >block; next }
    /^<!-- .* -->$/ { comment = substr($0, 6, length($0) - 9); next }
    NF { comment = "" }' "$1"
}

unindented() {
  sed 's/^[ \t]*//; s|^//! *||' "$1"
}

# contains <lines> <file>: the lines stand there in a row.
contains() {
  [ -s "$1" ] && [ -f "$2" ] && awk '
    NR == FNR { wanted[n++] = $0; next }
    { here[m++] = $0 }
    END {
      for (i = 0; i + n <= m; i++) {
        for (j = 0; j < n && here[i + j] == wanted[j]; j++);
        if (j == n) exit 0
      }
      exit 1
    }' <(unindented "$1") <(unindented "$2")
}

# rows_stand <table> <file>: so does each row of figures.
rows_stand() {
  [ "$(wc -l <"$1")" -gt 2 ] && ! sed 1,2d "$1" | grep -qvxFf "$2"
}

# The block of targets: each line is one that make knows.
targets_exist() {
  local line
  while read -r line; do
    line=${line%%#*}
    [[ $line =~ ^make\ [a-z-]+\ *$ ]] && make -C "$source" -n ${line#make} >/dev/null || return 1
  done <"$1"
}

# links <page>: the files that it links to, from its own folder.
links() {
  sed '/^```/,/^```/d' "$1" | grep -o '](\([^)#:]*\)[^):]*)' | sed 's/^](//; s/[#)].*//' | sort -u || true
}

# named_paths <page>: what it names of the tree, but for what is built, and for patterns.
named_paths() {
  local top
  top=$(find . -mindepth 1 -maxdepth 1 ! -name build ! -name target ! -name .git -printf '%f\n' |
    sed 's/[.]/[.]/g' | paste -sd'|')
  grep -o '`[^` ]*`' "$1" | tr -d '`' | grep -E "^($top)(/|$)" | grep -v '[*<{:]' | sort -u || true
}

rm -rf "$work/pages"
for page in "${pages[@]}"; do
  folder=$work/pages/${page//\//-}
  mkdir -p "$folder"
  blocks "$page" "$folder"
  echo 'set -eux' >"$folder/commands.sh"
  for kind in "$folder"/*.kind; do
    [ -e "$kind" ] || continue
    block=${kind%.kind}
    line="$page:$((10#$(basename "$block")))"
    status=0
    case $(<"$kind") in
      run)
        cat "$block" >>"$folder/commands.sh"
        continue
        ;;
      "excerpt: "*)
        file=$(sed 's/^excerpt: //' "$kind")
        contains "$block" "$file" || status=$?
        report $status "$line: excerpt of $file"
        ;;
      "rows: "*)
        file=$(sed 's/^rows: //' "$kind")
        rows_stand "$block" "$file" || status=$?
        report $status "$line: rows of $file"
        ;;
      targets)
        targets_exist "$block" || status=$?
        report $status "$line: make's targets"
        ;;
      *) report 1 "$line: a block without a comment that says how to test it" ;;
    esac
  done
  while read -r link; do
    status=0
    [ -e "$(dirname "$page")/$link" ] || status=$?
    report $status "$page: link to $link"
  done < <(links "$page")
done

# ARCHITECTURE's blocks are pictures, so of it only what it names is looked at.
for page in "${pages[@]}" ARCHITECTURE.md; do
  while read -r path; do
    status=0
    [ -e "$path" ] || status=$?
    report $status "$page: path $path"
  done < <(named_paths "$page")
done

status=0
words=$(wc -w <README.md)
[ "$words" -le 900 ] || status=1
report $status "README.md: $words words of 900"
status=0
python3 docs/two_views.py | cmp - docs/two-views.svg || status=$?
report $status "docs/two-views.svg is what docs/two_views.py writes"

# What earlier runs built in the copy stays, so that only what has changed is built anew.
copy=$work/source
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf '{}' +
tar -C "$source" --exclude=./build --exclude=./target --exclude=./.git -cf - . | tar -C "$copy" -xf -
# The reader's home directory is not the place for a test's files; Rust stays where it is.
mkdir -p "$work/home"
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
export HOME=$work/home
unset PKG_CONFIG_PATH
# What the commands build need not be as fast as a release, and is built soon.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
export CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_EXECUTOR_OPT_LEVEL=0
cd "$copy"
for page in "${pages[@]}"; do
  folder=$work/pages/${page//\//-}
  lines=$(($(wc -l <"$folder/commands.sh") - 1))
  [ $lines -gt 0 ] || continue
  status=0
  bash "$folder/commands.sh" >"$folder/commands.log" 2>&1 </dev/null || status=$?
  [ $status -eq 0 ] || tail -n 30 "$folder/commands.log" | sed 's/^/      /'
  report $status "$page: $lines lines of commands"
done
echo "README and docs: $passed passed, $failed failed"
[ $failed -eq 0 ]
