#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the image of a lab host on which containers run: podman inside the lab's Debian, from Debian packages alone.
#
#   sh tests/lab/container_host.sh       of Debian 12
#   sh tests/lab/container_host.sh 13    of Debian 13, with Docker's own client and Compose, and a registry
#
# Docker's client finds podman by /run/docker.sock when podman.socket was started.
# Run it as often as you like: podman builds again only what has changed.
set -eu

release=${1:-12}
docker=
[ "$release" = 12 ] || docker="docker-cli docker-compose docker-registry"

here=$(cd "$(dirname "$0")" && pwd)
export CONTAINERS_CONF="$here/containers.conf"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

sh "$here/image.sh" "$release"
# A host of the lab has no network, so all is installed here. Its root is an overlay, on which there cannot be another
# one: vfs copies. What a container says goes into the host's journal, and what does not concern the host stays out:
# the machine's kernel, and complaints of sudo and sshd about the host's own name and a missing file.
if ! podman build --network=host --tag "localhost/debian-containers:$release" - >"$log" 2>&1 <<CONTAINERFILE; then
FROM localhost/debian-systemd:$release
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        busybox-static iptables- libnss-myhostname podman runc $docker \
    && systemctl disable podman.service podman.socket podman-auto-update.service podman-auto-update.timer \
        podman-restart.service ${docker:+docker-registry.service} \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && touch /etc/default/locale && mkdir /etc/systemd/journald.conf.d \
    && printf '%s\n' '[Journal]' 'ReadKMsg=no' >/etc/systemd/journald.conf.d/lab.conf \
    && echo 'L /run/docker.sock - - - - /run/podman/podman.sock' >/etc/tmpfiles.d/docker.conf \
    && printf '%s\n' '[storage]' 'driver = "vfs"' 'runroot = "/run/containers/storage"' \
        'graphroot = "/var/lib/containers/storage"' >/etc/containers/storage.conf \
    && printf '%s\n' '[containers]' 'default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]' \
        'log_driver = "journald"' '[engine]' 'runtime = "runc"' 'cgroup_manager = "cgroupfs"' \
        'events_logger = "file"' >/etc/containers/containers.conf
CONTAINERFILE
    tail -n 30 "$log" >&2
    echo "podman could not build the image of a host with containers; its last lines stand above." >&2
    exit 1
fi
