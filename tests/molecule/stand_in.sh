#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts or ends a stand-in for an API (tests/roles/stand_in.py), which listens on a free port.
#
#   sh tests/molecule/stand_in.sh start DIRECTORY firewalls|guests STATE
#   sh tests/molecule/stand_in.sh stop DIRECTORY
#
# DIRECTORY holds what it writes, and is removed when it has ended.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
order=$1
directory=$2
python=$root/.venv/bin/python

# Waits until it says that it answers, at most a minute (the default of --notify-timeout).
start() {
    mkdir -p "$directory"
    start-stop-daemon --start --quiet --background --notify-await --make-pidfile --pidfile "$directory/pid" \
        --output "$directory/log" --chdir "$root/tests" --exec "$python" -- \
        -m roles.stand_in "$1" "$directory" "$2" || {
        cat "$directory/log" >&2
        echo "The stand-in did not start; what it said stands above." >&2
        exit 1
    }
}

stop() {
    start-stop-daemon --stop --quiet --oknodo --pidfile "$directory/pid" --exec "$python" --retry TERM/10/KILL/5
    rm -rf "$directory"
}

umask 077
shift 2
"$order" "$@"
