#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the roles' Molecule scenarios, each on a Debian host of its own, and stops at the first failure.
#
#   sh tests/molecule/run.sh                       all scenarios of all roles
#   sh tests/molecule/run.sh restart_unit          those of one role
#   sh tests/molecule/run.sh restart_unit/default  one of them
#
# It needs root and .venv (make setup); what else is missing is installed, and the image is built.
# The output of a scenario is shown only if it fails; MOLECULE_OUTPUT=all shows all of it.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
export PATH="$root/.venv/bin:$PATH"
log=
trap '[ -z "$log" ] || rm -f "$log"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

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

[ -x "$root/.venv/bin/molecule" ] || fail "Molecule is not installed in .venv: run make setup first."
wanted=$(scenarios "${1:-}")
[ -n "$wanted" ] || fail "There is no scenario '${1:-}' below roles/. A scenario is named ROLE/SCENARIO."
sh "$root/tests/lab/image.sh"

total=$(echo "$wanted" | wc -l)
passed=0
log=$(mktemp)
for name in $wanted; do
    echo "[$((passed + 1))/$total] Testing $name."
    began=$(date +%s)
    if [ "${MOLECULE_OUTPUT:-}" = all ]; then
        (run_scenario "$name") && result=0 || result=$?
    else
        (run_scenario "$name") >"$log" 2>&1 && result=0 || result=$?
        [ "$result" -eq 0 ] || cat "$log"
    fi
    if [ "$result" -ne 0 ]; then
        echo "The scenario $name failed (exit code $result); its output stands above." >&2
        echo "$passed passed, 1 failed"
        exit 1
    fi
    passed=$((passed + 1))
    echo "        $name passed in $(($(date +%s) - began)) s."
done
echo "$passed passed, 0 failed"
