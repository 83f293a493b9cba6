# libsae. `make demo` shows it inside a real engine; `make test` is everything that CI runs.

CARGO ?= cargo
PYTHON ?= python3
CARGO_TARGET_DIR ?= target
BUILD := build
LIB := $(CARGO_TARGET_DIR)/release

.PHONY: all lib install uninstall dist sanitizers tool demo test inlined ports kernels kernels-check python goldens round_trips fuzz book bench gpu-bundle header clean

all: lib

# The library laid out as C and C++ programs use it, with symbols for debuggers and profilers: build/include, build/lib.
lib:
	$(MAKE) -f packaging/Makefile install DESTDIR= PREFIX=$(BUILD) LIBDIR=lib STRIP=true

# The library where PREFIX says (/usr/local), and archives of it for other machines: packaging/Makefile.
install uninstall dist:
	$(MAKE) -f packaging/Makefile $@

# The program `sae`, in build/bin.
tool:
	$(CARGO) build --release --features tool --bin sae
	mkdir -p $(BUILD)/bin
	install -m 755 $(LIB)/sae $(BUILD)/bin/sae

# Streams text through a language model in llama.cpp, trains an SAE on it, and steers by its features.
demo:
	$(MAKE) -C examples/llama_cpp demo

test:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --features tool -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps
	$(CARGO) test --features tool
	tests/install/run.sh
	$(MAKE) inlined kernels-check ports goldens round_trips book
	$(MAKE) fuzz FUZZ_SECONDS=20
	$(MAKE) -C bindings/go test
	$(MAKE) -C bindings/julia test
	$(MAKE) -C bindings/python test
	$(MAKE) -C examples/mpi test
	$(MAKE) -C examples/llama_cpp test
	$(MAKE) -C examples/onnxruntime test
	cd examples/candle && CARGO_TARGET_DIR=$(abspath $(CARGO_TARGET_DIR))/candle $(CARGO) test --quiet

# No vector instruction stands in a function of its own: there, each would cost a call.
inlined: lib
	! nm -C $(BUILD)/lib/libsae.so | grep 'core_arch::' | grep -v xgetbv

# The library itself instrumented against memory errors and data races, beneath programs in C and C++: after changes to unsafe code
# or to what threads share. (`make test` has valgrind look at the same programs.) Needs: rustup component add rust-src
sanitizers:
	tests/install/sanitizers.sh

# Other machines: the kernels and sessions of aarch64 run here under emulation, and what cannot run is at least checked.
# Needs aarch64-linux-gnu-gcc, qemu-aarch64, and the targets: rustup target add TARGET.
ARM := aarch64-unknown-linux-gnu
ports: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER = aarch64-linux-gnu-gcc
ports: export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER = qemu-aarch64 -L /usr/aarch64-linux-gnu
ports:
	$(CARGO) test --target $(ARM) --lib
	PROPTEST_CASES=50 $(CARGO) test --target $(ARM) --test session --test training_kernels
	PROPTEST_CASES=4 $(CARGO) test --target $(ARM) --test screen nothing_gets_lost
	$(CARGO) check --lib --target aarch64-apple-darwin --target x86_64-pc-windows-gnu

# The original libraries, in build/python.
python: $(BUILD)/python/ready

$(BUILD)/python/ready: tests/golden/requirements.txt
	$(PYTHON) -m venv $(BUILD)/python
	$(BUILD)/python/bin/pip install --disable-pip-version-check --progress-bar off -r $<
	touch $@

# The CUDA kernels for every target, checked in beside their sources: `make kernels` after a change, `make kernels-check` in CI.
# Needs no GPU; the compiler comes as a wheel, into build/nvrtc.
KERNELS := src/backend/cuda/kernels
kernels: $(BUILD)/nvrtc/ready
	$(BUILD)/nvrtc/bin/python $(KERNELS)/compile.py

kernels-check: $(BUILD)/nvrtc/ready
	$(BUILD)/nvrtc/bin/python $(KERNELS)/compile.py --check

$(BUILD)/nvrtc/ready: $(KERNELS)/requirements.txt
	$(PYTHON) -m venv $(BUILD)/nvrtc
	$(BUILD)/nvrtc/bin/pip install --disable-pip-version-check --progress-bar off --no-deps -r $<
	touch $@

# Has the original libraries make every golden anew, and compares.
goldens: python
	$(BUILD)/python/bin/python tests/golden/check.py

# Saves every golden in every layout that can say it, and has the layouts' own libraries (tests/golden/requirements.txt)
# load them and compute the same.
round_trips: python
	rm -rf $(BUILD)/round_trips
	SAE_ROUND_TRIPS=$(abspath $(BUILD))/round_trips $(CARGO) test --test formats round_trips
	for script in tests/round_trips/with_*.py; do $(BUILD)/python/bin/python $$script $(BUILD)/round_trips || exit 1; done

# Feeds every reader broken files, FUZZ_SECONDS each. Needs cargo-fuzz: cargo install cargo-fuzz --locked
FUZZ_SECONDS ?= 300
fuzz:
	fuzz/run.sh $(FUZZ_SECONDS)

# The book: docs as pages, in build/book; a link that leads nowhere fails.
book: $(BUILD)/mkdocs/ready
	$(BUILD)/mkdocs/bin/mkdocs build --quiet --strict

$(BUILD)/mkdocs/ready: docs/requirements.txt
	$(PYTHON) -m venv $(BUILD)/mkdocs
	$(BUILD)/mkdocs/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Our operations beside torch, sae-lens, sparsify and dictionary_learning in one process, and beside what the machine can do at
# most. ARGS=--quick: does it work? KEEP=1: figures into benches/results and docs/performance.md.
bench:
	$(MAKE) -C benches

# One folder to take to a machine with a GPU: parity with the processor, capture and replay, allocations, times beside PyTorch's.
# `build/gpu-bundle/run` there runs all of it; where there is no device, it says so.
gpu-bundle:
	$(CARGO) build --release --example gpu_check
	rm -rf $(BUILD)/gpu-bundle
	mkdir -p $(BUILD)/gpu-bundle
	install -m 755 -s $(LIB)/examples/gpu_check $(BUILD)/gpu-bundle/gpu-check
	install -m 755 benches/gpu/run $(BUILD)/gpu-bundle/run
	install -m 644 benches/gpu/peers.py $(BUILD)/gpu-bundle/peers.py
	du -sh $(BUILD)/gpu-bundle

# Makes include/sae.h anew from src/capi.
header:
	SAE_BLESS=1 $(CARGO) test --test capi header::

clean:
	$(CARGO) clean
	rm -rf $(BUILD)
