#!/usr/bin/env bash
# Submits the run, shows its log, and ends with 0 only if the run was completed (flwr itself ends with 0 in any case).
# ./run.sh resume=DIR goes on with an earlier run; other arguments are overrides to run instead of those in run.toml.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
config=run.toml
if [ $# -gt 0 ]; then
    mkdir -p state
    config=state/overrides.toml
    printf "nodes = %%{sites}\noverrides = '''%s'''\n" "$*" > "$config"
fi
started="$(./flower.sh run app federation --run-config "$config" --format json)"
run="$(printf '%s' "$started" | sed -n 's/.*"run-id": *"\([0-9]*\)".*/\1/p')"
if [ -z "$run" ]; then
    printf '%s\n' "$started" >&2
    exit 1
fi
echo "run $run"
while true; do
    ./flower.sh log "$run" federation --stream || true
    status="$(./flower.sh list federation --run-id "$run" --format json)" || status=""
    case "$status" in
        *finished:completed*) echo "run $run is completed"; exit 0 ;;
        *finished:*) echo "run $run has failed or was stopped; go on with ./run.sh resume=DIR" >&2; exit 1 ;;
    esac
    sleep 2
done
