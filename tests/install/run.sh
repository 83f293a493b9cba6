#!/usr/bin/env bash
# Installs the library, moves it elsewhere, and there builds and runs programs in C and C++ as a stranger would: with pkg-config
# and with CMake, shared and static. Needs gcc, g++, clang++, pkg-config, cmake, readelf.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD work=$PWD/build/install-test
rm -rf "$work" && mkdir -p "$work"
make() { command make --no-print-directory -s "$@" >>"$work/make.log" 2>&1 || { tail -n 40 "$work/make.log"; exit 1; }; }
say() { printf '%s\n' "-- $*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

say "installed below DESTDIR, then moved"
make install DESTDIR="$work/stage" PREFIX=/opt/sae LIBDIR=lib
mv "$work/stage/opt/sae" "$work/moved"
rm -r "$work/stage"
moved=$work/moved
grep -rIl -e "$work" -e /opt/sae "$moved/lib" && die "these files know where they were installed"
version=$(sed -n 's/^version = "\(.*\)"/\1/p;T;q' Cargo.toml)
soname=$(readelf -d "$moved/lib/libsae.so" | sed -n 's/.*soname: \[\(.*\)\]/\1/p')
[ "$(readlink -f "$moved/lib/$soname")" = "$moved/lib/libsae.so.$version" ] || die "$soname leads elsewhere"
grep -q '^safetensors ' "$moved/share/doc/libsae/THIRD-PARTY.txt" || die "THIRD-PARTY.txt does not name what is inside"

# Runs a program on the example's data, without the environment knowing where the library is, and sees that it is the right one.
tries() { # PROGRAM shared|static [LIBRARY_PATH]
  local uses
  uses=$(LD_LIBRARY_PATH=${3-} ldd "$1" | sed -n 's/.*libsae[^ ]* => \([^ ]*\).*/\1/p')
  case $2 in
    shared) [ "$(readlink -f "$uses")" = "$moved/lib/libsae.so.$version" ] || die "$1 uses ${uses:-no libsae.so}" ;;
    static) [ -z "$uses" ] || die "$1 was to be static, and uses $uses" ;;
  esac
  LD_LIBRARY_PATH=${3-} "$1" "$root/examples/data" >"$work/out" || { cat "$work/out"; die "$1 failed"; }
  [ "$(grep -c 'the same bits' "$work/out")" -eq 5 ] || { cat "$work/out"; die "$1 did not compare everything"; }
}

warnings=(-Wall -Wextra -Wpedantic -Werror -O1)
c=(examples/c/features.c) cpp=(examples/cpp/features.cpp)
flags() { env -u PKG_CONFIG_PATH PKG_CONFIG_LIBDIR="$1/lib/pkgconfig" pkg-config "${@:2}" libsae; }

say "pkg-config, shared"
[ "$(flags "$moved" --modversion)" = "$version" ] || die "pkg-config tells another version"
read -ra shared <<<"$(flags "$moved" --cflags --libs)"
gcc -std=c11 "${warnings[@]}" "${c[@]}" "${shared[@]}" -o "$work/c-shared"
g++ -std=c++17 "${warnings[@]}" "${cpp[@]}" "${shared[@]}" -o "$work/cpp-shared"
clang++ -std=c++20 "${warnings[@]}" "${cpp[@]}" "${shared[@]}" -o "$work/cpp20-shared"
for program in c-shared cpp-shared cpp20-shared; do tries "$work/$program" shared "$moved/lib"; done

say "pkg-config, static: from a tree that has nothing else"
cp -al "$moved" "$work/static" && rm "$work/static"/lib/libsae.so*
read -ra static <<<"$(flags "$work/static" --static --cflags --libs)"
gcc -std=c11 "${warnings[@]}" "${c[@]}" "${static[@]}" -o "$work/c-static"
g++ -std=c++17 "${warnings[@]}" "${cpp[@]}" "${static[@]}" -o "$work/cpp-static"
tries "$work/c-static" static
tries "$work/cpp-static" static

say "a host shaped like TensorRT"
g++ -std=c++17 "${warnings[@]}" examples/tensorrt_host/main.cpp "${shared[@]}" -pthread -o "$work/tensorrt_host"
LD_LIBRARY_PATH=$moved/lib "$work/tensorrt_host" examples/data >"$work/out" 2>&1 || { cat "$work/out"; die "tensorrt_host failed"; }

say "32 threads with one model; one of everything, 10,000 times"
for program in threads cycles; do
  g++ -std=c++17 "${warnings[@]}" "tests/install/programs/$program.cpp" "${shared[@]}" -pthread -o "$work/$program"
  LD_LIBRARY_PATH=$moved/lib "$work/$program" examples/data | tee "$work/out"
done
if LD_LIBRARY_PATH=$moved/lib "$work/cycles" examples/data 300 leak >"$work/out"; then die "cycles did not see a leak: $(<"$work/out")"; fi

say "CMake, both"
cmake -S tests/install/cmake -B "$work/cmake" -DCMAKE_PREFIX_PATH="$moved" -DEXAMPLES="$root/examples" >"$work/cmake.log" 2>&1 ||
  { cat "$work/cmake.log"; die "CMake did not find it"; }
cmake --build "$work/cmake" >>"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; die "CMake could not build"; }
for program in c cpp; do
  tries "$work/cmake/$program-shared" shared
  tries "$work/cmake/$program-static" static
done

say "CMake, versions"
finds() { # VERSION…: whether find_package takes the library for it
  printf 'cmake_minimum_required(VERSION 3.19)\nproject(finds C)\nfind_package(sae %s CONFIG QUIET)\nif(NOT sae_FOUND)\nmessage(FATAL_ERROR no)\nendif()\n' "$*" \
    >"$work/CMakeLists.txt"
  rm -rf "$work/finds"
  cmake -S "$work" -B "$work/finds" -DCMAKE_PREFIX_PATH="$moved" >"$work/finds.log" 2>&1
}
IFS=. read -r major minor _ <<<"$version"
for served in "" "$major.$minor" "$version EXACT" "$major.$minor...<$((major + 1))"; do
  finds "$served" || { cat "$work/finds.log"; die "version '$served' was asked for, and $version not found"; }
done
for refused in "$major.$((minor + 1))" "$((major + 1))" "$version.1" "$major.$((minor + 1))...$((major + 1))"; do
  if finds "$refused"; then die "version '$refused' was asked for, and $version taken for it"; fi
done
rm "$moved/lib/libsae.a"
if finds ""; then die "a tree without libsae.a was taken for whole"; fi
cp -l "$work/static/lib/libsae.a" "$moved/lib/libsae.a"

say "another folder for libraries"
make install DESTDIR="$work/multiarch" PREFIX=/usr LIBDIR=lib/x86_64-linux-gnu
env -u PKG_CONFIG_PATH PKG_CONFIG_LIBDIR="$work/multiarch/usr/lib/x86_64-linux-gnu/pkgconfig" pkg-config --cflags --libs libsae >"$work/flags"
read -ra multiarch <"$work/flags"
gcc -std=c11 "${c[@]}" "${multiarch[@]}" -o "$work/c-multiarch"
cmake -S tests/install/cmake -B "$work/cmake-multiarch" -DCMAKE_PREFIX_PATH="$work/multiarch/usr" -DEXAMPLES="$root/examples" \
  -DCMAKE_LIBRARY_ARCHITECTURE=x86_64-linux-gnu >"$work/cmake.log" 2>&1 || { cat "$work/cmake.log"; die "CMake did not find it"; }
make uninstall DESTDIR="$work/multiarch" PREFIX=/usr LIBDIR=lib/x86_64-linux-gnu
left=$(find "$work/multiarch" ! -type d)
[ -z "$left" ] || die "uninstalling left $left"

say "that programs see what they are to see"
cp -r examples/data "$work/data"
printf '\x01' | dd of="$work/data/expected/x_hat.f32" bs=1 seek=73727 conv=notrunc status=none
for program in c-static cpp-static; do
  if "$work/$program" "$work/data" >"$work/out"; then die "$program did not see that a bit is another"; fi
  grep -q 'x_hat.f32: DIFFERENT' "$work/out" || die "$program did not say which file differs"
done
say "ok"
