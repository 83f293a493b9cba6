#!/usr/bin/env bash
# The library itself instrumented, not only the programs around it: memory errors (AddressSanitizer) and data races
# (ThreadSanitizer, for which the standard library is compiled too). Needs gcc, g++, clang++, and the component rust-src.
# `sanitizers.sh [address] [thread]`: default both.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD work=$PWD/build/sanitizers target=x86_64-unknown-linux-gnu
mkdir -p "$work"
export RUSTC_BOOTSTRAP=1
say() { printf '%s\n' "-- $*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }
passes() { "$@" >"$work/out" 2>&1 || { tail -n 60 "$work/out"; die "$* failed"; }; }
sees() { # WHAT PROGRAM…: the sanitizer has to end the program with that word
  if "${@:2}" >"$work/out" 2>&1; then die "${*:2}: nothing was seen"; fi
  grep -q "$1" "$work/out" || { tail -n 60 "$work/out"; die "${*:2} failed without a word of $1"; }
}

address() {
  local lib=$work/address/$target/debug
  say "address: the library"
  RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=$work/address cargo build --quiet --lib --target $target
  nm -D "$lib/libsae.so" | grep -q __asan_report_load || die "the library is not instrumented"
  build() { # COMPILER PROGRAM SOURCE FLAGS…
    "$1" -fsanitize=address,undefined -fno-sanitize-recover=all -g -O1 -pthread "${@:4}" -I include "$3" \
      -L "$lib" -Wl,-rpath,"$lib" -lsae -lm -o "$work/$2"
  }
  mkdir -p "$lib/links" && ln -sf ../libsae.so "$lib/links/$(readelf -d "$lib/libsae.so" | sed -n 's/.*soname: \[\(.*\)\]/\1/p')"
  export LD_LIBRARY_PATH=$lib/links ASAN_OPTIONS=detect_leaks=1
  build gcc overread tests/install/programs/overread.c -std=c11
  say "address: what it has to see"
  sees heap-buffer-overflow "$work/overread" examples/data read
  sees heap-buffer-overflow "$work/overread" examples/data write
  say "address: programs in C and C++"
  for name in consumer buffer; do
    build gcc "$name-c" "tests/capi/programs/$name.c" -std=c11
    rm -rf "$work/dir" && mkdir "$work/dir" && passes "$work/$name-c" "$work/dir"
  done
  build g++ consumer-cpp tests/capi/programs/consumer.cpp -std=c++17
  rm -rf "$work/dir" && mkdir "$work/dir" && passes "$work/consumer-cpp" "$work/dir"
  build gcc features-c examples/c/features.c -std=c11
  build g++ features-cpp examples/cpp/features.cpp -std=c++17
  build g++ threads-cpp tests/install/programs/threads.cpp -std=c++17
  passes "$work/features-c" examples/data
  passes "$work/features-cpp" examples/data
  passes "$work/threads-cpp" examples/data 3
  build g++ cycles-cpp tests/install/programs/cycles.cpp -std=c++17
  passes "$work/cycles-cpp" examples/data 0
  unset LD_LIBRARY_PATH ASAN_OPTIONS
}

thread() {
  local lib=$work/thread/$target/debug
  say "thread: the library, with Rust's own"
  RUSTFLAGS=-Zsanitizer=thread CARGO_TARGET_DIR=$work/thread CARGO_PROFILE_DEV_OPT_LEVEL=0 cargo build --quiet --lib --target $target -Zbuild-std
  nm -D "$lib/libsae.so" | grep -q __tsan_write || die "the library is not instrumented"
  mkdir -p "$lib/links" && ln -sf ../libsae.so "$lib/links/$(readelf -d "$lib/libsae.so" | sed -n 's/.*soname: \[\(.*\)\]/\1/p')"
  export LD_LIBRARY_PATH=$lib/links TSAN_OPTIONS=halt_on_error=1
  clang++ -std=c++17 -fsanitize=thread -g -O1 -pthread -I include tests/install/programs/threads.cpp -L "$lib" -lsae -o "$work/threads-tsan"
  clang++ -std=c++17 -fsanitize=thread -g -O1 -pthread -DRACE -I include tests/install/programs/threads.cpp -L "$lib" -lsae -o "$work/threads-race"
  say "thread: what it has to see"
  sees 'data race' "$work/threads-race" examples/data 3 2
  say "thread: 32 threads, one model, a session each"
  passes "$work/threads-tsan" examples/data 3
  cat "$work/out"
  unset LD_LIBRARY_PATH TSAN_OPTIONS
}

for which in "${@:-address thread}"; do
  for one in $which; do "$one"; done
done
say "ok"
