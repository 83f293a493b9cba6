#!/bin/bash
# get.sh FOLDER: brings ONNX Runtime's C and C++ headers (Debian 13's package, unpacked, not installed) into FOLDER/include, and the
# packages of requirements.txt, among them the runtime itself, into FOLDER/python.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

if [ ! -f "$folder/include/onnxruntime_cxx_api.h" ]; then
  mirror=$(apt-cache policy | grep -oE 'https?://[^ ]*/debian( |$)' | head -1 | tr -d ' ' || true)
  apt=$folder/apt
  rm -rf "$apt"
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/etc"
  touch "$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror:-http://deb.debian.org/debian} trixie main" >"$apt/sources.list"
  options=(
    -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/etc" -o Dir::Etc::PreferencesParts="$apt/etc"
    -o Dir::State="$apt" -o Dir::State::Status="$apt/status" -o Dir::State::Lists="$apt/lists"
    -o Dir::Cache="$apt" -o Dir::Cache::Archives="$apt/archives" -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1
  )
  apt-get "${options[@]}" -qq update
  (cd "$apt" && apt-get "${options[@]}" -qq download libonnxruntime-dev)
  dpkg-deb -x "$apt"/libonnxruntime-dev_*.deb "$apt/root"
  rm -rf "$folder/include"
  mv "$apt/root/usr/include/onnxruntime" "$folder/include"
  rm -rf "$apt"
fi

if ! cmp -s "$here/requirements.txt" "$folder/python/requirements.txt"; then
  rm -rf "$folder/python"
  python3 -m venv "$folder/python"
  "$folder/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$folder/python/requirements.txt"
fi
