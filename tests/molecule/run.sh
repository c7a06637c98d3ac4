#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the roles' Molecule scenarios, each on Debian hosts or a stand-in for an API of its own, and stops at the first
# failure.
#
#   sh tests/molecule/run.sh                       all scenarios of all roles
#   sh tests/molecule/run.sh restart_unit          those of one role
#   sh tests/molecule/run.sh restart_unit/default  one of them
#
# It needs root and .venv (make setup); what else is missing is installed, and the images are built if a host is needed.
# As many run at the same time as the machine has processors, at most four; MOLECULE_JOBS overrides that.
# The output of a scenario is shown only if it fails; MOLECULE_OUTPUT=all shows all of it, one after the other.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"
# Where this is set, each of some hundred starts compiles all of Ansible anew.
unset PYTHONDONTWRITEBYTECODE

fail() {
    echo "$*" >&2
    exit 1
}

# The scenarios that were asked for, as ROLE/SCENARIO, one a line.
scenarios() {
    role=${1%%/*}
    scenario=
    case ${1:-} in */*) scenario=${1#*/} ;; esac
    for file in "$root"/roles/${role:-*}/molecule/${scenario:-*}/molecule.yml; do
        [ -f "$file" ] || continue
        directory=$(dirname "$file")
        echo "$(basename "$(dirname "$(dirname "$directory")")")/$(basename "$directory")"
    done
}

run_scenario() {
    for playbook in converge verify; do
        [ -f "$root/roles/${1%/*}/molecule/${1#*/}/$playbook.yml" ] || {
            echo "The scenario has no $playbook.yml."
            return 1
        }
    done
    cd "$root/roles/${1%/*}"
    molecule test --scenario-name "${1#*/}"
}

# One of several at the same time; none is begun after a failure.
run_one() {
    [ ! -e "$MOLECULE_RUN/failed" ] || exit 0
    began=$(date +%s)
    log=$(mktemp "$MOLECULE_RUN/XXXXXX")
    if [ "${MOLECULE_OUTPUT:-}" = all ]; then
        (run_scenario "$1") && result=0 || result=$?
    else
        (run_scenario "$1") >"$log" 2>&1 && result=0 || result=$?
    fi
    if [ "$result" -ne 0 ]; then
        touch "$MOLECULE_RUN/failed"
        cat "$log"
        echo "The scenario $1 failed (exit code $result); its output stands above." >&2
        exit 1
    fi
    echo "$1 passed in $(($(date +%s) - began)) s."
}

if [ "${1:-}" = --one ]; then
    run_one "$2"
    exit
fi

[ -x "$root/.venv/bin/molecule" ] || fail "Molecule is not installed in .venv: run make setup first."
wanted=$(scenarios "${1:-}")
[ -n "$wanted" ] || fail "There is no scenario '${1:-}' below roles/. A scenario is named ROLE/SCENARIO."
# Those that speak to a stand-in for an API need no host.
for one in $wanted; do
    grep -qE 'groups: \[(firewalls|guests)\]' "$root/roles/${one%/*}/molecule/${one#*/}/molecule.yml" && continue
    sh "$root/tests/lab/packages.sh" openssl
    sh "$root/tests/molecule/image.sh"
    break
done

jobs=${MOLECULE_JOBS:-$(($(nproc) < 4 ? $(nproc) : 4))}
[ "${MOLECULE_OUTPUT:-}" != all ] || jobs=1
MOLECULE_RUN=$(mktemp -d)
export MOLECULE_RUN
trap 'rm -rf "$MOLECULE_RUN"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
total=$(echo "$wanted" | wc -l)
echo "Testing $total scenarios, $jobs at a time."
echo "$wanted" | xargs -P "$jobs" -I '{}' sh "$0" --one '{}' || fail "Not all of the $total scenarios passed."
echo "$total passed, 0 failed"
