#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Does what a README tells its reader. Before each fenced block stands a comment that says what to
# do with it:
#   <!-- run -->            commands, run in order, in one shell, in a copy of the sources
#   <!-- excerpt: FILE -->  lines that stand in FILE one after the other, however indented
#   <!-- targets -->        commands `make TARGET  # words`: the targets exist
# Links to files must lead somewhere.
# usage: readme.sh README WORK
set -eu -o pipefail
readme=$(realpath -- "$1") work=$(realpath -m -- "$2")
source=$(dirname "$readme")
passed=0 failed=0

report() {
  if [ "$1" -eq 0 ]; then
    passed=$((passed + 1))
    echo "ok    $2"
  else
    failed=$((failed + 1))
    echo "FAIL  $2"
  fi
}

# The blocks, as $work/blocks/<line>, their comments in $work/blocks/<line>.kind.
mkdir -p "$work/home"
rm -rf "$work/blocks"
mkdir "$work/blocks"
awk -v out="$work/blocks/" '
  /^```/ && !block { block = sprintf("%s%04d", out, NR); print comment >(block ".kind"); printf "" >block; next }
  /^```/ { close(block); close(block ".kind"); block = ""; comment = ""; next }
  block { print >block; next }
  /^<!-- .* -->$/ { comment = substr($0, 6, length($0) - 9); next }
  NF { comment = "" }' "$readme"

unindented() {
  sed 's/^[ \t]*//' "$1"
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

# The block of targets: each line is one that make knows.
targets_exist() {
  local line
  while read -r line; do
    line=${line%%#*}
    [[ $line =~ ^make\ [a-z-]+\ *$ ]] && make -C "$source" -n ${line#make} >/dev/null || return 1
  done <"$1"
}

commands=$work/commands.sh
echo 'set -eux' >"$commands"
for kind in "$work"/blocks/*.kind; do
  block=${kind%.kind}
  line="line $((10#$(basename "$block")))"
  status=0
  case $(<"$kind") in
    run)
      cat "$block" >>"$commands"
      continue
      ;;
    "excerpt: "*)
      file=$(sed 's/^excerpt: //' "$kind")
      contains "$block" "$source/$file" || status=$?
      report $status "$line: excerpt of $file"
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
  [ -e "$source/$link" ] || status=$?
  report $status "link to $link"
done < <(grep -o '](\([^)#:]*\))' "$readme" | sed 's/^](//; s/)$//' | sort -u)

# What earlier runs built in the copy stays, so that only what has changed is built anew.
copy=$work/source
mkdir -p "$copy"
find "$copy" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf '{}' +
tar -C "$source" --exclude=./build --exclude=./target --exclude=./.git -cf - . | tar -C "$copy" -xf -
# The reader's home directory is not the place for a test's files; Rust stays where it is.
status=0
(
  cd "$copy"
  export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo} RUSTUP_HOME=${RUSTUP_HOME:-$HOME/.rustup}
  export HOME=$work/home
  unset PKG_CONFIG_PATH
  bash "$commands"
) >"$work/commands.log" 2>&1 </dev/null || status=$?
[ $status -eq 0 ] || tail -n 30 "$work/commands.log" | sed 's/^/      /'
report $status "$(grep -vc '^set -eux$' "$commands") lines of commands"
echo "README: $passed passed, $failed failed"
[ $failed -eq 0 ]
