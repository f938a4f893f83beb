#!/usr/bin/env bash
# What waits for a GPU, in one command that ends in time and keeps what it has made (docs/gpu.md).
#
#   tools/gpu_check.sh                 on the machine with the GPU
#   tools/gpu_check.sh --dry           every part at smoke size; nothing is recorded. Anywhere: DEVICE=cpu JOBS=2
#   tools/gpu_check.sh --record OUT    at home: what came back in OUT goes to runs/gpu and results/
#
# In the environment:
#   SECONDS_IN_ALL=570   the script ends within these
#   PARTS="tests=70 table3=110 table4=80 study"   what, in which order, and seconds for each; without, all that are left
#   SECONDS_PER_PART=N   for every part, in the place of those
#   DEVICE=cuda  JOBS=12 (training runs side by side)  PYTHON=python3  OUT=gpu_out (what is to come back)
#   WHEELS=wheels        Python packages that the machine lacks
set -uo pipefail
cd "$(dirname "$0")/.." || exit
OUT=${OUT:-gpu_out} DEVICE=${DEVICE:-cuda} JOBS=${JOBS:-12} PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels} PARTS=${PARTS:-tests=70 table3=110 table4=80 study}
RESERVE=30 # seconds for ending the last part and packing
end=$((SECONDS + ${SECONDS_IN_ALL:-570} - RESERVE))
export PYTHONPATH=$PWD/src OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1

record() { # at home
  cat "$1"/made.tar.gz.* | tar xz || exit
  "$PYTHON" - <<'PYTHON'
from pathlib import Path

from gcond.study import pages, tables

pages.make("bench", Path("results"))
for done in sorted(Path("runs/gpu").glob("*/*/DONE")):
    tables.record(done.parent, Path("results/study"))
    print("recorded", done.parent.name)
PYTHON
}

say() { echo "$*" | tee -a "$OUT/summary.txt"; }

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 left=$((end - SECONDS)) began=$SECONDS status=0
  shift 2
  seconds=${SECONDS_PER_PART:-$seconds}
  [ "$seconds" -lt "$left" ] || seconds=$left
  [ "$seconds" -gt 0 ] || { say "$name: no time left"; return; }
  timeout --kill-after=10 "$seconds" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  case $status in
    0) say "$name: done in $((SECONDS - began)) s" ;;
    124) say "$name: ended at its limit of $seconds s; what it had made is kept" ;;
    *) say "$name: failed with status $status after $((SECONDS - began)) s"; failed=1 ;;
  esac
  tail -n 3 "$OUT/$name.log"
}

root=. made=made queue=study/gpu.yaml rounds=3 failed=0 shapes=()
case ${1:-} in
  --record) record "${2:?expected the folder that came back}"; exit ;;
  --dry)
    root=$OUT/dry made=dry queue=$OUT/queue.yaml rounds=1
    shapes=(scale.image_size=64 scale.accumulation_steps=2 scale.micro_batch=1 precision=fp32)
    mkdir -p "$root"
    sed -e 's/^scale: .*/scale: smoke/' -e 's/\[headneck, imagenet84\]/[photos]/' study/gpu.yaml >"$queue" ;;
  "") ;;
  *) echo "expected nothing, --dry or --record OUT, found $1" >&2; exit 2 ;;
esac
mkdir -p "$OUT"
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  site=$(mktemp -d)
  "$PYTHON" -m pip install -q --no-index --no-deps --target "$site" "$WHEELS"/*.whl || exit
  PYTHONPATH=$PYTHONPATH:$site
fi
"$PYTHON" -c "from gcond.engine.device import describe, pick; print(describe(pick('$DEVICE', 1)))" | tee "$OUT/summary.txt" || exit

bench=("$PYTHON" bench/steps.py --device "$DEVICE" --rounds $rounds --results "$root/results")
for entry in $PARTS; do
  name=${entry%=*} seconds=${entry#"$name"}
  seconds=${seconds#=}
  case $name in
    tests) command=("$PYTHON" -m pytest -q -m cuda $(grep -rl 'pytest.mark.cuda' tests)) ;;
    table3) command=("${bench[@]}" table3 strategy=baseline,cagrad,gradnorm,gcond_stochastic "${shapes[@]}") ;;
    table4) command=("${bench[@]}" table4 strategy=baseline,gcond_stochastic "${shapes[@]}") ;;
    study) command=("$PYTHON" -m gcond.study --queue "$queue" --results "$root/results/study" --jobs "$JOBS"
      "device=$DEVICE" "runs=$root/runs/gpu" reconstructions.images=0) ;;
    *) echo "PARTS: expected tests, table3, table4 and study, found $name" >&2; exit 2 ;;
  esac
  part "$name" "${seconds:-$((end - SECONDS))}" "${command[@]}"
done

# What is to come back, in pieces that small transfers take.
listed=$(mktemp)
(cd "$root" && { find results/bench.csv; find runs/gpu -name DONE; } 2>/dev/null) |
  sed -E 's|(.*/)DONE$|\1DONE\n\1config.yaml\n\1report.json\n\1metrics.jsonl|' >"$listed"
tar cz -C "$root" -T "$listed" | split -b 15M - "$OUT/$made.tar.gz."
say "$(grep -c DONE "$listed") runs finished; $(du -shc "$OUT/$made".tar.gz.* | tail -n 1 | cut -f 1) in $OUT"
exit $failed
