#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages named as arguments, if any of them is missing: packages.sh NAME...
#
# The packages' own services are neither started nor stopped (SYSTEMD_OFFLINE): a test that needs
# an Alertmanager starts one of its own and must not leave another on the developer's machine.
set -eu

missing=
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing:$missing. Install them, or run this as root." >&2
    exit 1
fi

# Tests that run side by side may want packages at the same time.
exec 9>/run/lock/zamu-packages
flock 9
echo "Installing Debian packages:$missing."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1
# shellcheck disable=SC2086  # a list of package names, split on purpose
if ! { apt-get update && apt-get install --yes --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "apt-get could not install$missing; its last lines stand above." >&2
    exit 1
fi
