#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Builds the wheel from an installed jitmem, installs it into a new environment and tests it there, then runs the
# examples with it.
# usage: test.sh PREFIX WORK
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=$(realpath -- "$1") work=$(realpath -m -- "$2")
rm -rf "$work/source" "$work/wheel" "$work/installed"
mkdir -p "$work/source"
cp -r "$here"/{pyproject.toml,setup.py,src} "$work/source"

# The tools stay from one run to the next.
[ -x "$work/tools/bin/pip" ] || python3 -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check 'setuptools==80.9.0' 'wheel==0.45.1' \
  'mypy==1.18.2'
JITMEM_PREFIX=$prefix "$work/tools/bin/pip" wheel --quiet --disable-pip-version-check --no-deps \
  --no-build-isolation --wheel-dir "$work/wheel" "$work/source"
python3 -m venv "$work/installed"
"$work/installed/bin/pip" install --quiet --disable-pip-version-check --no-index "$work"/wheel/jitmem-*.whl
"$work/tools/bin/mypy" --strict --cache-dir "$work/mypy" "$here/src/jitmem"

python=$work/installed/bin/python
cd "$work"
unset JITMEM_LIBRARY JITMEM_EXECUTOR PYTHONPATH
JITMEM_TEST_INCLUDE=$prefix/include "$python" -B -W error -m unittest discover -s "$here/tests"
# The library and the program of an installed jitmem, with the package alone.
JITMEM_LIBRARY=$prefix/lib/libjitmem.so JITMEM_EXECUTOR=$prefix/bin/jitmem-executor PYTHONPATH=$work/source/src \
  python3 -B -W error -m unittest discover -s "$here/tests" -p 'test_[em]*.py'

examples=$here/../examples/python
"$python" -W error "$examples/main.py"
if [ "$(uname -m)" = x86_64 ]; then
  "$work/installed/bin/pip" install --quiet --disable-pip-version-check 'llvmlite==0.50.0'
  "$python" -W error "$examples/llvmlite_object.py"
else
  echo "skipped: llvmlite_object.py, which resolves x86-64's references only"
fi
