# Shared by all start scripts: nothing is sent to Flower's makers, nothing is installed at run time.
umask 077
mkdir -p state
export FLWR_HOME="$PWD/state/flower" FEDALIGN_CACHE="${FEDALIGN_CACHE:-$PWD/state/cache}"
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export RAY_USAGE_STATS_ENABLED=0
# Seconds between two looks for work; Flower's own default is 1.
export FLWR_SUPEREXEC_TASK_POLL_INTERVAL="${FLWR_SUPEREXEC_TASK_POLL_INTERVAL:-0.5}"
if [ -n "${FEDALIGN_BIN:-}" ]; then
    export PATH="$FEDALIGN_BIN:$PATH"
fi
if ! command -v flower-superlink >/dev/null; then
    echo "no flower-superlink on the PATH: activate the environment that fedalign is installed in, or set FEDALIGN_BIN" \
        "to its bin folder" >&2
    exit 2
fi
