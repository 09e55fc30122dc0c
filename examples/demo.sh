#!/usr/bin/env bash
# The whole road on the tiny checkpoint beside this file: inspect, calibrate, convert, evaluate. Under a minute.
set -euo pipefail
cd "$(dirname "$0")/.."
work=build/demo
mkdir -p "$work"
show() { printf '\n$ %s\n' "$*"; "$@"; }

show ropecli inspect examples/tiny
show ropecli calibrate examples/tiny --data examples/text/calibration --factor 4 --force --output $work/calibration.json
show ropecli convert examples/tiny --from $work/calibration.json --output $work/tiny-1k --force
show ropecli inspect $work/tiny-1k
show ropecli evaluate examples/tiny $work/tiny-1k --data examples/text/heldout --lengths 256,1k --documents 12
