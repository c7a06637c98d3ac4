#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpacks Debian packages of any suite below a directory: from_suite.sh SUITE DIRECTORY NAME...
#
# The system stays as it is: nothing is installed, and its lists of packages are not touched. Packages come
# from the mirror of this machine, with its key. Dependencies are not followed: name them, too.
# A package that was unpacked there before is left out.
set -eu

suite=$1
directory=$2
shift 2
mkdir -p "$directory/.unpacked"

wanted=
for package in "$@"; do
    [ -e "$directory/.unpacked/$package" ] || wanted="$wanted $package"
done
[ -n "$wanted" ] || exit 0

mirror=$(sed -n 's/^URIs: *//p; s/^deb  *\(\[[^]]*\] *\)\{0,1\}\(http[^ ]*\).*/\2/p' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
if [ -z "$mirror" ]; then
    echo "No mirror is named in /etc/apt/sources.list.d/debian.sources or /etc/apt/sources.list." >&2
    exit 1
fi

apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources"
cat >"$apt/apt.conf" <<EOF
Dir::Etc::sourcelist "$apt/sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt";
APT::Sandbox::User "root";
EOF
export APT_CONFIG="$apt/apt.conf"

cd "$apt"
# shellcheck disable=SC2086  # a list of package names, split on purpose
if ! { apt-get update && apt-get download $wanted; } >"$apt/log" 2>&1; then
    tail -n 20 "$apt/log" >&2
    echo "These packages of $suite could not be downloaded:$wanted." >&2
    exit 1
fi
for archive in *.deb; do
    dpkg-deb --extract "$archive" "$directory"
done
for package in $wanted; do
    touch "$directory/.unpacked/$package"
done
