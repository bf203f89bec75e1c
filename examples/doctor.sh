#!/usr/bin/env bash
# Can --ascend-moe serve on this machine? The first line says it, with what to do if not; the exit code tells scripts.
set -uo pipefail

ascend-moe doctor
code=$?
echo
case $code in
    0) echo "exit code 0: start a server" ;;
    1) echo "exit code 1: --ascend-moe would be refused until the above is done" ;;
    *) echo "exit code $code: nothing can be served here until the above is done" ;;
esac
exit $code
