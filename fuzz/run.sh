#!/usr/bin/env bash
# Feeds every reader broken files for a while: fuzz/run.sh [SECONDS EACH] (default 60). Needs cargo-fuzz (cargo install
# cargo-fuzz) and a C++ compiler. Begins from the goldens and from fuzz/regressions, files that once broke something; one
# that breaks something now is left in fuzz/artifacts, and belongs into fuzz/regressions once that is mended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-60}

# AddressSanitizer and coverage are not options of the stable compiler; it has them all the same.
export RUSTC_BOOTSTRAP=1

# What is left of a target's scratch files goes with it.
export TMPDIR=$PWD/fuzz/corpus/scratch
rm -rf "$TMPDIR" && mkdir -p "$TMPDIR"
trap 'rm -rf "$TMPDIR"' EXIT

seeds() { # TARGET NAME...   The goldens' files of these names.
  local target=$1 seeds=fuzz/corpus/$1-seeds
  shift
  rm -rf "$seeds" && mkdir -p "$seeds" "fuzz/corpus/$target" "fuzz/regressions/$target"
  local names=()
  for name in "$@"; do names+=(-o -name "$name"); done
  find tests/golden tests/data fuzz/seeds \( "${names[@]:1}" \) -size -128k -print0 | while IFS= read -r -d '' file; do
    cp "$file" "$seeds/$(tr / _ <<<"${file#tests/golden/}")"
  done
}

seeds safetensors '*.safetensors'
seeds torch '*.pt' '*.pth'
seeds npz '*.npz'
seeds json '*.json'
seeds yaml '*.yaml'
seeds arrow '*.arrow'
seeds buffer '*.buffer'
seeds checkpoint '*.checkpoint'

for target in safetensors torch npz json yaml arrow buffer checkpoint; do
  echo "== $target, $seconds seconds"
  cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/corpus/$target-seeds" "fuzz/regressions/$target" -- \
    -max_total_time="$seconds" -max_len=131072 -timeout=10 -malloc_limit_mb=256 -rss_limit_mb=3000 -print_final_stats=1 \
    2>"fuzz/corpus/$target.log" || { tail -n 40 "fuzz/corpus/$target.log"; exit 1; }
  grep -E 'DONE|stat::number_of_executed_units|stat::peak_rss_mb' "fuzz/corpus/$target.log"
done
