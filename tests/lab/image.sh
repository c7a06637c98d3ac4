#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the image of the lab's hosts from Debian packages alone; no image registry is asked.
#
#   sh tests/lab/image.sh       of Debian 12
#   sh tests/lab/image.sh 13    of Debian 13
#
# Run it as often as you like: the image is built again only when this file changes, and the
# Debian tree below it (.cache/lab/) only when the list of packages does.
# ZAMU_LAB_MIRROR overrides the Debian mirror, which otherwise is the one this machine's apt uses.
set -eu

release=${1:-12}
image=localhost/debian-systemd:$release
packages=python3,systemd,systemd-sysv,dbus,openssh-server,iproute2,ca-certificates,sudo

here=$(cd "$(dirname "$0")" && pwd)
cache=$(cd "$here/../.." && pwd)/.cache/lab
export CONTAINERS_CONF="$here/containers.conf"

fail() {
    echo "$*" >&2
    exit 1
}

# The first archive of Debian itself (not of its security updates) in apt's own configuration.
debian_mirror() {
    # shellcheck disable=SC2016  # apt fills these in, not the shell
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk '$1 == "Debian" { print $2; exit }'
}

build_tree() {
    mirror=${ZAMU_LAB_MIRROR:-$(debian_mirror)}
    if [ -z "$mirror" ]; then
        apt-get update >/dev/null || true
        mirror=$(debian_mirror)
    fi
    [ -n "$mirror" ] ||
        fail "apt on this machine knows no Debian archive. Name one in ZAMU_LAB_MIRROR and run this again."
    if ! debootstrap --variant=minbase --include="$packages" "$suite" "$work/tree" "$mirror" >"$work/log" 2>&1; then
        tail -n 30 "$work/log" >&2
        fail "debootstrap could not build Debian $suite from $mirror; its last lines stand above."
    fi
    rm -rf "$work"/tree/var/cache/apt/* "$work"/tree/var/lib/apt/lists/*
    tar --create --file "$work/tree.tar" --directory "$work/tree" --numeric-owner .
    mv "$work/tree.tar" "$tree_tar"
}

# Makes a plain Debian into a host of the lab.
configure() {
    root=$1

    # Each host makes its own identity when it boots.
    rm -f "$root"/etc/ssh/ssh_host_*
    : >"$root/etc/machine-id"

    # Keys only, for root and for zamu; the lab puts its public key in when it starts a host.
    cat >"$root/etc/ssh/sshd_config.d/zamu-lab.conf" <<'CONF'
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
CONF
    cat >"$root/etc/systemd/system/zamu-lab-host-key.service" <<'UNIT'
[Unit]
Description=Make the host key of this lab host
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
RequiredBy=ssh.service
UNIT

    chroot "$root" useradd --create-home --shell /bin/bash zamu
    echo 'zamu ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/zamu"
    chmod 0440 "$root/etc/sudoers.d/zamu"
    chroot "$root" install --directory --mode=0700 --owner=root --group=root /root/.ssh
    chroot "$root" install --directory --mode=0700 --owner=zamu --group=zamu /home/zamu/.ssh

    # What the tests break and repair, and what nobody can repair.
    install -d "$root/srv/zamu-lab-web"
    echo 'The lab answers.' >"$root/srv/zamu-lab-web/index.html"
    cat >"$root/etc/systemd/system/zamu-lab-web.service" <<'UNIT'
[Unit]
Description=A small web server for the tests to break and to repair

[Service]
ExecStart=/usr/bin/python3 -m http.server 8000 --bind 0.0.0.0 --directory /srv/zamu-lab-web
Restart=no
DynamicUser=yes

[Install]
WantedBy=multi-user.target
UNIT
    cat >"$root/etc/systemd/system/zamu-lab-broken.service" <<'UNIT'
[Unit]
Description=A unit that can never become active

[Service]
ExecStart=/bin/false
Restart=no
UNIT
    chroot "$root" systemctl --quiet enable ssh.service zamu-lab-host-key.service zamu-lab-web.service

    # A host of the lab is privileged and shares the machine's kernel: what would change kernel
    # settings or devices, or take a terminal of the machine, and what needs a network, stays off.
    chroot "$root" systemctl --quiet mask \
        systemd-sysctl.service systemd-modules-load.service systemd-udevd.service \
        systemd-random-seed.service systemd-pstore.service systemd-remount-fs.service \
        kmod-static-nodes.service sys-kernel-config.mount sys-kernel-debug.mount \
        sys-kernel-tracing.mount proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount \
        getty.target console-getty.service getty@.service serial-getty@.service \
        apt-daily.timer apt-daily-upgrade.timer
}

case $release in
    12) suite=bookworm ;;
    13) suite=trixie ;;
    *) fail "There is no image of Debian '$release': name 12 or 13." ;;
esac
[ "$(id -u)" -eq 0 ] || fail "The lab's hosts need root: run sudo sh tests/lab/image.sh."
mkdir -p "$cache"
# Two test runs at once build one image.
exec 9>"$cache/image.lock"
flock 9

sh "$here/packages.sh" podman runc debootstrap iproute2 openssh-client uidmap

recipe=$(sha256sum "$here/image.sh" | cut -c1-16)
built_from=$(podman image inspect --format '{{index .Labels "zamu.lab.recipe"}}' "$image" 2>/dev/null || true)
if [ "$built_from" = "$recipe" ]; then
    echo "The image $image is there and up to date."
    exit 0
fi

tree_tar=$cache/$suite-$(echo "$packages" | sha256sum | cut -c1-16).tar
rm -rf --one-file-system "$cache"/work.*
work=$(mktemp -d "$cache/work.XXXXXX")
chmod 0755 "$work"
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -f "$tree_tar" ]; then
    echo "[1/3] Taking the Debian $suite tree of an earlier run."
    mkdir "$work/tree"
    tar --extract --file "$tree_tar" --directory "$work/tree" --numeric-owner
else
    echo "[1/3] Building a Debian $suite tree with debootstrap (about a minute)."
    build_tree
fi
echo "[2/3] Making it a host of the lab: sshd with keys only, the user zamu, the units that tests break."
configure "$work/tree"
echo "[3/3] Importing it into podman as $image."
tar --create --directory "$work/tree" --numeric-owner . |
    podman import --quiet --change "LABEL zamu.lab.recipe=$recipe" - "$image" >/dev/null
# What an earlier version of this file built.
podman image prune --force --filter label=zamu.lab.recipe >/dev/null
echo "The image $image is ready."
