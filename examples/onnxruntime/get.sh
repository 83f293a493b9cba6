#!/bin/bash
# get.sh FOLDER: brings ONNX Runtime's C and C++ headers (Debian 13's package, unpacked, not installed) into FOLDER/include, and the
# packages of requirements.txt, among them the runtime itself, into FOLDER/python.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)

if [ ! -f "$folder/include/onnxruntime_cxx_api.h" ]; then
  . "$here/../../packaging/debian.bash"
  debs=$folder/debs
  debian_packages trixie "$debs" download libonnxruntime-dev
  dpkg-deb -x "$debs"/libonnxruntime-dev_*.deb "$debs/root"
  rm -rf "$folder/include"
  mv "$debs/root/usr/include/onnxruntime" "$folder/include"
  rm -rf "$debs"
fi

if ! cmp -s "$here/requirements.txt" "$folder/python/requirements.txt"; then
  rm -rf "$folder/python"
  python3 -m venv "$folder/python"
  "$folder/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$folder/python/requirements.txt"
fi
