#!/usr/bin/env bash
# How large the windows of MODEL are on RANKS ranks, for decode steps of 128 tokens per rank, in bfloat16 and with int8
# rows. Nothing is allocated.
set -euo pipefail
usage="usage: examples/plan.sh MODEL [RANKS]"
model=${1:?$usage}
ranks=${2:-2}

ascend-moe plan memory --model "$model" --ranks "$ranks" --max-tokens 128 --role decode
echo
ascend-moe plan memory --model "$model" --ranks "$ranks" --max-tokens 128 --role decode --quant int8
