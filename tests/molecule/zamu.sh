#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a real zamu in the network of a scenario's host, where it listens at 127.0.0.1:8470.
#
#   sh tests/molecule/zamu.sh https|http|stopped DIRECTORY HOST CONTAINER
#
# DIRECTORY holds its state, which stays when it is stopped, its log, and its certificate, zamu.pem.
# HOST has a token of its own, by which it may speak of itself and of `other`.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
directory=$2
export CONTAINERS_CONF="$root/tests/lab/containers.conf" ZAMU_LAB_TOKEN=a-secret-of-the-scenario

stop() {
    start-stop-daemon --stop --quiet --oknodo --pidfile "$directory/pid" --remove-pidfile --retry TERM/60/KILL/5
}

configure() {
    mkdir -p "$directory/inventory"
    [ -e "$directory/zamu.pem" ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 \
        -nodes -days 2 -subj /CN=zamu -addext subjectAltName=IP:127.0.0.1 \
        -keyout "$directory/zamu.key" -out "$directory/zamu.pem" 2>/dev/null
    echo "all: {hosts: {$2: , other: }}" >"$directory/inventory/hosts.yml"
    {
        [ "$1" = http ] || echo "intake: {tls: {certificate: zamu.pem, key: zamu.key}}"
        echo "rulebooks: $root/tests/molecule/zamu/rulebooks"
        echo "inventory: inventory"
        echo "sources:"
        for source in aide auditd fail2ban; do
            echo "  $source: {senders: {host: {token: 'env:ZAMU_LAB_TOKEN', hosts: [$2, other]}}}"
        done
    } >"$directory/zamu.yml"
}

# Waits until it listens.
start() {
    network=--net=/proc/$(podman inspect --format '{{.State.Pid}}' "$1")/ns/net
    start-stop-daemon --start --quiet --background --make-pidfile --pidfile "$directory/pid" \
        --output "$directory/log" --startas /usr/bin/nsenter -- "$network" \
        "$root/.venv/bin/zamu" --config "$directory/zamu.yml" --state "$directory/state" intake
    until [ -s "$directory/pid" ]; do sleep 0.1; done
    until nsenter "$network" bash -c ': </dev/tcp/127.0.0.1/8470' 2>/dev/null; do
        start-stop-daemon --status --pidfile "$directory/pid" || {
            cat "$directory/log" >&2
            exit 1
        }
        sleep 0.2
    done
}

umask 077
stop
configure "$1" "$3"
[ "$1" = stopped ] || start "$4"
