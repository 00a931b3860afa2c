#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Installs the Debian packages in a fresh system, runs the tests of packaging/debian/tests there, and removes them.
# The system is made by debootstrap from where this machine's apt has its packages. Takes root.
# usage: deb.sh TARBALL DEBS WORK
#   TARBALL  the sources, for the tests; DEBS  the folder of the packages; WORK  where the system is made
set -u -o pipefail
if [ $# -ne 3 ]; then
  sed -n '5,6s/^# //p' "$0" >&2
  exit 2
fi
if [ "${JITMEM_DEB_UNSHARED:-}" != 1 ]; then
  # What is mounted here goes with this process.
  JITMEM_DEB_UNSHARED=1 exec unshare --mount --pid --fork --kill-child --propagation private "$0" "$@"
fi
tarball=$(realpath -- "$1") debs=$(realpath -- "$2") work=$(realpath -m -- "$3")
control=$(realpath -- "$(dirname "$0")/../../packaging/debian/tests/control")
root=$work/root
. "$(dirname "$0")/check.sh"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

# Everything of Debian's that apt knows of: "URI suite component" in each line.
# shellcheck disable=SC2016  # apt replaces these
sources=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
  'Created-By: Packages' 'Origin: Debian' | sort -u)
codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(awk -v suite="$codename" '$2 == suite { print $1; exit }' <<<"$sources")
[ -n "$mirror" ] || { echo "deb: apt knows of no packages of $codename: run apt-get update" >&2; exit 1; }

# What this environment says of compilers and caches is not of that system; how it reaches others is.
here() {
  local kept=() name
  for name in http_proxy https_proxy no_proxy DEBIAN_FRONTEND LC_ALL; do
    [ -z "${!name:-}" ] || kept+=("$name=${!name}")
  done
  chroot "$root" /usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    "${kept[@]}" "$@"
}

install() {
  here apt-get install -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@"
}

fresh_system() {
  mkdir -p "$work/archives"
  debootstrap --variant=minbase --cache-dir="$work/archives" "$codename" "$root" "$mirror"
  sed 's/^/deb /' <<<"$sources" >"$root/etc/apt/sources.list"
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
  mkdir "$root/src"
  tar -C "$root/src" --strip-components=1 --exclude=vendor -xf "$tarball"
  cp -r "$(dirname "$control")" "$root/tests"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind "$work/archives" "$root/var/cache/apt/archives"
  here apt-get update -q
}

packages() {
  for deb in "$debs"/*.deb; do
    case $deb in *-dbgsym_*) ;; *) dpkg-deb -f "$deb" Package ;; esac
  done
}

install_packages() {
  mkdir "$root/debs"
  cp "$debs"/*.deb "$root/debs"
  rm -f "$root"/debs/*-dbgsym_*
  (cd "$root" && printf '/%s\n' debs/*.deb) | xargs chroot "$root" apt-get install -q -y --no-install-recommends
  # shellcheck disable=SC2046
  here dpkg --verify $(packages)
}

# run_test <name> <packages>: as autopkgtest would, in one line.
run_test() {
  # shellcheck disable=SC2046
  install $(tr -d ',' <<<"$2")
  here sh -euc 'export AUTOPKGTEST_TMP=$(mktemp -d); cd /src; "/tests/$1"' sh "$1"
}

remove_packages() {
  # shellcheck disable=SC2046
  here apt-get purge -q -y $(packages)
  rm -r "$root/debs"
  here find / -xdev -name '*jitmem*' -not -path '/src/*' -not -path '/tmp/*' -not -path '/var/cache/apt/*' \
    -print | (! grep .)
}

rm -rf "$root"
mkdir -p "$root"
check fresh-system fresh_system
# They stay mounted for what follows.
mountpoint -q "$root/proc" || { echo "Debian packages: no system to try them in"; exit 1; }
check install install_packages
while read -r name needs; do
  check "$name" run_test "$name" "$needs"
done < <(awk '/^Tests:/ { name = $2 } /^Depends:/ { sub(/^Depends: */, ""); print name, $0 }' "$control")
check remove remove_packages
umount -R "$root/proc" "$root/dev" "$root/var/cache/apt/archives"
[ $failed -gt 0 ] || rm -rf "$root"
echo "Debian packages: $passed passed, $failed failed"
[ $failed -eq 0 ]
