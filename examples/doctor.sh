#!/usr/bin/env bash
# Can --ascend-moe serve on this machine, and if not, what is to be done? The exit code says it to scripts.
set -uo pipefail

ascend-moe doctor
case $? in
    0) echo "--ascend-moe can serve here" ;;
    1) echo "--ascend-moe would be refused; the remedies are above" >&2; exit 1 ;;
    *) echo "nothing can be served here; the remedies are above" >&2; exit 3 ;;
esac
