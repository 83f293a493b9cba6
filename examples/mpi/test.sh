#!/bin/bash
# Four processes train what one trains; checkpoints go on with other ranks; a lost rank ends the others. test.sh PROGRAM
set -euo pipefail
train=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

ranks() { # COUNT MPIRUN_OPTIONS... -- ARGUMENTS...
  local count=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none \
    timeout 100 mpirun --allow-run-as-root --oversubscribe -n "$count" "${options[@]}" "$train" "$@"
}
# Weights after as many steps, by another order of sums.
close_to() { "$train" compare "$1" "$2" 1e-5; }

ranks 1 -- "$dir/one" steps=60
ranks 4 -- "$dir/four" latent_ranks=2 steps=60
close_to "$dir/four" "$dir/one"

echo "-- goes on with other ranks"
ranks 4 -- "$dir/half" latent_ranks=2 steps=30
cp -r "$dir/half" "$dir/again"
cp -r "$dir/half" "$dir/alone"
ranks 4 -- "$dir/again" latent_ranks=2 steps=60
cmp "$dir/again/sae.safetensors" "$dir/four/sae.safetensors"
ranks 3 -- "$dir/half" latent_ranks=3 steps=60
close_to "$dir/half" "$dir/four"
ranks 1 -- "$dir/alone" steps=60
close_to "$dir/alone" "$dir/four"

lost() { # HOW MPIRUN_OPTIONS...: rank 2 is lost after the checkpoint of step 10
  local how=$1 status=0 said
  shift
  echo "-- rank 2 is lost: $how"
  local begin=$SECONDS
  said=$(ranks 4 "$@" -- "$dir/$how" latent_ranks=2 steps=60 patience=3 "$how=2" at=15 2>&1) || status=$?
  echo "$said" | grep -m3 '^rank'
  [ "$status" -ne 0 ] && [ "$status" -ne 124 ]
  [ $((SECONDS - begin)) -lt 60 ]
  echo "$said" | grep -q '^rank [013]: .*resume from a checkpoint' # the first to end has mpirun end the others, hung or not
  ranks 4 -- "$dir/$how" latent_ranks=2 steps=60
  cmp "$dir/$how/sae.safetensors" "$dir/four/sae.safetensors"
}
# mpirun itself ends a job of which a process is killed; so that the others are seen to end by themselves, it is told not to.
lost kill --enable-recovery
lost hang
echo "all well"
