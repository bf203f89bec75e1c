#!/usr/bin/env bash
# Moves the same rows between two processes in several ways, and shows the times as a table; keeps the records in
# RECORDS. Takes about a minute. Nothing else should run meanwhile.
set -euo pipefail
records=${1:-exchange.json}

ascend-moe bench exchange --preset quick --json "$records"
echo
echo "$records holds the records; \`ascend-moe bench report $records\` shows them again"
