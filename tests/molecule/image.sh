#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the images of the scenarios' hosts: those of the lab, with the programs that the reporters report on and
# that the remedies mend; and those of the lab's hosts with containers.
# They are installed here because a scenario's host has no network, and none of them runs by itself.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
export CONTAINERS_CONF="$here/../lab/containers.conf"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

for release in 12 13; do
    # One host has chrony and the other has systemd-timesyncd, because Debian allows only one of them.
    time=chrony
    [ "$release" = 12 ] || time=systemd-timesyncd
    sh "$here/../lab/image.sh" "$release"
    if ! podman build --network=host --tag "localhost/zamu-molecule:$release" - >"$log" 2>&1 <<CONTAINERFILE; then
FROM localhost/debian-systemd:$release
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        aide auditd caddy fail2ban procps python3-cryptography restic $time \
    && systemctl disable caddy.service fail2ban.service $time.service \
    && systemctl mask auditd.service audit-rules.service \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
CONTAINERFILE
        tail -n 30 "$log" >&2
        echo "podman could not build the image of Debian $release; its last lines stand above." >&2
        exit 1
    fi
    sh "$here/../lab/container_host.sh" "$release"
done
echo "The images localhost/zamu-molecule:12 and :13, localhost/debian-containers:12 and :13 are there."
