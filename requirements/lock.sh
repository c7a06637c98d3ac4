#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Pins every package with its hashes, for all platforms, without naming a package index.
set -eu
cd "$(dirname "$0")"
compile() {
    ../.venv/bin/uv pip compile --quiet --universal --python-version 3.12 --upgrade --generate-hashes \
        --no-emit-index-url --no-header --no-annotate "$@"
}
compile ../pyproject.toml --output-file runtime.lock
compile ../pyproject.toml --group ../pyproject.toml:dev --constraint runtime.lock --output-file dev.lock
echo "uv" | compile - --output-file uv.lock
