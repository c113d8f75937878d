#!/usr/bin/env bash
# Starts the SuperNode of site %%{site} in the foreground; node.toml says where its data are. FEDALIGN_SUPERLINK changes
# the server's address, FEDALIGN_RUNTIME_PORT the port that the SuperNode opens on loopback for its own processes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
%%{environment}
exec flower-supernode --superlink "${FEDALIGN_SUPERLINK:-%%{address}}" --root-certificates ca.crt \
    --auth-supernode-private-key node.key --port "${FEDALIGN_RUNTIME_PORT:-%%{runtime_port}}" --node-config node.toml
