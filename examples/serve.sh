#!/usr/bin/env bash
# Serves MODEL on two ranks, half of the experts on each, asks it one question, and stops it.
set -euo pipefail
usage="usage: examples/serve.sh MODEL [PORT]"
model=${1:?$usage}
port=${2:-30000}
url=http://127.0.0.1:$port
log=$(mktemp --suffix=.log)

set -m # a job of its own, which Ctrl-C does not reach: it is interrupted below, once
ascend-moe serve "$model" --tp-size 2 --port "$port" &> "$log" &
server=$!
trap 'kill -INT $server 2> /dev/null || true' EXIT

echo "starting; its log is $log"
until curl --silent --fail --output /dev/null "$url/health"; do
    kill -0 $server 2> /dev/null || { tail --lines 5 "$log" >&2; exit 1; }
    sleep 1
done

echo "asking $url/generate how 'The experts' goes on:"
curl --silent --show-error --fail "$url/generate" --header 'Content-Type: application/json' \
    --data '{"text": "The experts", "sampling_params": {"temperature": 0, "max_new_tokens": 16}}' \
    | python -c 'import json, sys; print("   ", repr(json.load(sys.stdin)["text"]))'

kill -INT $server
wait $server # its exit code is ours: 0 if it ended well
trap - EXIT
echo "stopped"
