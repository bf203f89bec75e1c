#!/usr/bin/env bash
# Prefill on one server, decode on another, a router in front, two ranks each. Asks a question through the router, and
# compares what it answers, token by token, with what one server that does both has answered before.
set -euo pipefail
usage="usage: examples/disagg.sh MODEL [PORT]"
model=${1:?$usage}
port=${2:-8000}
url=http://127.0.0.1:$port
folder=$(mktemp --directory)

set -m # jobs of their own, which Ctrl-C does not reach: they are interrupted below, once
job=
trap 'test -z "$job" || kill -INT $job 2> /dev/null || true' EXIT

start() { # start SIGN COMMAND...: until its output has a line with SIGN
    "${@:2}" &> "$folder/log" &
    job=$!
    until grep --quiet "$1" "$folder/log"; do
        kill -0 $job 2> /dev/null || { tail --lines 5 "$folder/log" >&2; exit 1; }
        sleep 1
    done
}

stop() {
    kill -INT $job
    wait $job
    job=
}

echo "one server, whose answers are recorded"
start "ready to roll" ascend-moe serve "$model" --tp-size 2 --port "$port"
ascend-moe disagg check --url "$url" --record "$folder/answers.json"
stop

echo "a prefill server, a decode server and a router; their logs are in $folder"
start "serving at" ascend-moe disagg up --model-path "$model" --tp-size 2 --port "$port" --logs "$folder"
curl --silent --show-error --fail "$url/generate" --header 'Content-Type: application/json' \
    --data '{"text": "The experts", "sampling_params": {"temperature": 0, "max_new_tokens": 16}}' \
    | python -c 'import json, sys; print("through the router:", repr(json.load(sys.stdin)["text"]))'
ascend-moe disagg check --url "$url" --reference "$folder/answers.json"
stop
echo "stopped"
