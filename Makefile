# All tasks of this project, for people and for CI. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# The conformance data of the reference, if it is next to the checkout. The suite also runs without it.
CONFORMANCE := $(wildcard ../shared/conformance)

# These tests start processes that use orjson in any case, or do not depend on the JSON library.
NOT_IN_PROCESS := --ignore=tests/cli $(patsubst %,--ignore=tests/%.py,codec/test_failing_allocations \
    codec/test_reentrancy streams/test_memory test_adding_a_field test_build test_docs test_readme test_release \
    test_switch) $(patsubst %,--ignore=tests/runner/test_%.py,admission asyncio_in_handlers command drain leaks \
    lifespan metrics options parent process recycling reload slow_peers)

# The tests that need only the codec.
CODEC := tests/codec
# Not run in threads: slow tests, and tests that start interpreters, measure memory or interrupt calls.
SLOW_OR_SPAWNING := $(patsubst %,tests/codec/test_%.py,failing_allocations growth interpreters \
    interruptions reentrancy stream)

# What `make test-quick` leaves out: these files take most of the time.
SLOW := cli/test_check cli/test_decode cli/test_load cli/test_progress cli/test_tap* codec/test_failing_allocations \
    codec/test_fast_paths codec/test_growth codec/test_hostile codec/test_interruptions codec/test_reentrancy \
    codec/test_stream \
    runner/test_asyncio_in_handlers runner/test_command runner/test_drain runner/test_faults runner/test_leaks \
    runner/test_metrics runner/test_options runner/test_process runner/test_recycling runner/test_reload \
    runner/test_slow_peers runner/test_system streams/test_memory test_adding_a_field test_build test_docs \
    test_wrong_use

RUN := $(VENV)/bin
PYTEST := RRQ_FASTWIRE_PURE=0 $(RUN)/python -m pytest
# Many tests wait for other processes and timers, so there may be more workers than CPUs. If a test
# hangs, its worker ends, and another one runs the remaining tests.
WORKERS ?= 3
IN_PARALLEL := --numprocesses=$(WORKERS) --dist=worksteal -o faulthandler_exit_on_timeout=true
READY := $(VENV)/ready

# Archives have the date of the commit, so that they are the same bytes wherever they are built.
COMMIT_DATE := $(shell git log -1 --format=%ct 2>/dev/null)
export SOURCE_DATE_EPOCH := $(or $(SOURCE_DATE_EPOCH),$(COMMIT_DATE),315532800)

.PHONY: help demo test lint typecheck e2e e2e-chaos bench bench-codec bench-runners bench-check
.PHONY: bench-instructions soak docs docs-pictures pictures clean
.PHONY: test-quick test-json test-oldest test-newest test-debian test-threads
.PHONY: test-no-compiler test-examples test-debug sanitize fuzz valgrind analyze audit
.PHONY: coverage mutation
.PHONY: sdist wheel-pure sbom build-requirements wheels wheels-cross release-check

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml setup.py rrq_fastwire/_generic.py $(wildcard rrq_fastwire/_c/*.p* rrq_fastwire/_c/*.h)
	@echo 'Setting up $(VENV): this compiles the package and takes a minute or two.'
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/python -m pip install --quiet --upgrade pip
	@RRQ_FASTWIRE_PURE=0 $(RUN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)  ## compare rrq-runner with this runner over 20,000 jobs
	@$(RUN)/python -m rrq_fastwire demo

test-quick: $(READY)  ## run the fast tests, in less than 90 seconds on two cores
	$(PYTEST) $(IN_PARALLEL) tests $(patsubst %,--ignore-glob='tests/%.py',$(SLOW))

test: $(READY)  ## run the suite over both implementations
	$(PYTEST) $(IN_PARALLEL) tests benchmarks --benchmark-disable $(if $(CONFORMANCE),--conformance=$(CONFORMANCE))
	$(PYTEST) docs  # in one process, because the blocks of a page continue each other

test-json: $(READY)  ## run the suite with the standard library's json instead of orjson
	$(PYTEST) $(IN_PARALLEL) tests --no-orjson $(NOT_IN_PROCESS)

test-oldest:  ## run the suite with the oldest supported dependencies
	$(call fresh,oldest)
	build/oldest/bin/python -m pip install --quiet uv
	RRQ_FASTWIRE_PURE=0 build/oldest/bin/uv pip install --quiet --python build/oldest \
	    --resolution lowest-direct '.[cli,e2e,test]'
	$(call suite,oldest,$(IN_PARALLEL))

test-newest:  ## run the suite with the newest dependencies, pre-releases included
	$(call fresh,newest)
	RRQ_FASTWIRE_PURE=0 build/newest/bin/python -m pip install --quiet --pre '.[cli,e2e,test]'
	$(call suite,newest,$(IN_PARALLEL))

# Debian's patch release of Python has an asyncio that starts to read from a connection even if that
# is paused at once. These tests do not depend on that.
ANY_EVENT_LOOP := $(CODEC) $(filter-out $(wildcard tests/cli/test_tap*.py),$(wildcard tests/cli/test_*.py)) \
    $(patsubst %,tests/%.py,runner/test_command runner/test_json_forms runner/test_leaks runner/test_options \
    runner/test_parent runner/test_reload test_compat test_conformance test_switch)
test-debian: PYTHON := /usr/bin/python3
test-debian:  ## run the tests that depend on the event loop with Debian's own python3
	$(call fresh,debian)
	RRQ_FASTWIRE_PURE=0 build/debian/bin/python -m pip install --quiet '.[cli,e2e,test]'
	$(call suite,debian,$(IN_PARALLEL) $(ANY_EVENT_LOOP:%=--ignore=%))

test-threads:  ## run the codec's tests in eight threads at once
	$(call fresh,threads)
	build/threads/bin/python -m pip install --quiet --prefer-binary \
	    setuptools cython hypothesis pytest-timeout pytest-run-parallel
	RRQ_FASTWIRE_PURE=0 build/threads/bin/python -m pip install --quiet --no-deps --no-build-isolation .
	-build/threads/bin/python -m pip install --quiet --only-binary=:all: orjson
	$(call suite,threads,--parallel-threads=8 -m 'not hypothesis' $(CODEC) $(patsubst %,--ignore=%,$(SLOW_OR_SPAWNING)))

test-no-compiler: $(READY)  ## test builds of the package with and without a C compiler
	$(PYTEST) tests/test_build.py

# Python's own allocator would hide overruns. Leaks are not reported, because Python itself has some.
# The sources are copied, so that other builds do not find instrumented object files.
SANITIZERS := address,undefined
sanitize:  ## run the codec's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(call fresh,sanitize)
	build/sanitize/bin/python -m pip install --quiet --upgrade setuptools cython hypothesis \
	    pytest-timeout pytest-xdist orjson
	mkdir build/sanitize/source
	cp -r LICENSE README.md pyproject.toml setup.py rrq_fastwire build/sanitize/source
	CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=$(SANITIZERS) -fno-sanitize-recover=undefined" \
	LDFLAGS="-fsanitize=$(SANITIZERS)" RRQ_FASTWIRE_PURE=0 \
	    build/sanitize/bin/python -m pip install --quiet --no-deps --no-build-isolation \
	    build/sanitize/source
	cp -r tests pyproject.toml README.md build/sanitize
	cd build/sanitize && PYTHONMALLOC=malloc RRQ_FASTWIRE_PURE=0 ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    bin/python -m pytest $(IN_PARALLEL) --timeout=900 $(CODEC)

# Make a new environment, and run the suite in it without the package's sources.
define fresh
	rm -rf build/$(1) && $(PYTHON) -m venv build/$(1)
	build/$(1)/bin/python -m pip install --quiet --upgrade pip
endef
define suite
	cp -r tests pyproject.toml README.md build/$(1)
	cd build/$(1) && RRQ_FASTWIRE_PURE=0 bin/python -m pytest $(2)
endef

test-examples: $(READY)  ## run the property tests with many more examples
	$(PYTEST) $(CODEC) -m hypothesis --hypothesis-profile=fuzz --timeout=0

# clang compiles the extension in build/fuzz, instrumented for libFuzzer and the sanitizers. Atheris
# instruments the Python code. The inputs that the fuzzer collects stay in build/corpus for the next run.
# An input that fails is written to build/findings.
HARNESSES ?= decode_frame message_decoder encode_frame connection cli_decode
FUZZ_FLAGS := $(SANITIZERS),fuzzer-no-link
FUZZ_ASAN := detect_leaks=0:malloc_context_size=4:quarantine_size_mb=16
build/fuzz/ready: pyproject.toml setup.py $(wildcard rrq_fastwire/*.py rrq_fastwire/*/*.* rrq_fastwire/*/*/*.py)
	$(call fresh,fuzz)
	build/fuzz/bin/python -m pip install --quiet --upgrade setuptools cython atheris orjson click rich
	mkdir build/fuzz/source
	cp -r LICENSE README.md pyproject.toml setup.py rrq_fastwire build/fuzz/source
	find build/fuzz/source -name '*.so' -delete
	CC=clang LDSHARED='clang -shared' RRQ_FASTWIRE_PURE=0 LDFLAGS="-fsanitize=$(FUZZ_FLAGS)" \
	CFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=$(FUZZ_FLAGS) -fno-sanitize-recover=undefined" \
	    build/fuzz/bin/python -m pip install --quiet --no-deps --no-build-isolation build/fuzz/source
	touch $@

fuzz: SECONDS ?= 60
fuzz: build/fuzz/ready  ## fuzz with each of HARNESSES for SECONDS=60, under the sanitizers
	rm -rf build/fuzz/tests && cp -r tests build/fuzz
	mkdir -p build/findings
	cd build/fuzz && for name in $(HARNESSES); do \
	    echo "$$name:" && log=../findings/$$name.log && PYTHONMALLOC=malloc RRQ_FASTWIRE_PURE=0 \
	    ASAN_OPTIONS=$(FUZZ_ASAN) LD_PRELOAD="$$(echo lib/python*/site-packages/asan_with_fuzzer.so)" \
	    bin/python -m tests.fuzz.run $$name ../corpus/$$name -dict=tests/fuzz/wire.dict -timeout=30 \
	        -artifact_prefix=../findings/$$name- -max_total_time=$(SECONDS) > $$log 2>&1 \
	    || { tail -n 60 $$log; exit 1; }; \
	    grep -E 'inline 8-bit|DONE|^Done' $$log; \
	done

# This Python has CPython's assertions and the checks of its allocator. orjson has no wheels for it.
# The thread that faulthandler starts for a timeout would break an assertion in tests of tracemalloc.
test-debug: PYTHON := /usr/bin/python3-dbg
test-debug:  ## run the codec's tests with Debian's debug build of CPython, in development mode
	$(call fresh,debug)
	build/debug/bin/python -m pip install --quiet --upgrade setuptools cython hypothesis pytest-timeout
	RRQ_FASTWIRE_PURE=0 build/debug/bin/python -m pip install --quiet --no-deps --no-build-isolation .
	cp -r tests pyproject.toml README.md build/debug
	cd build/debug && PYTHONMALLOC=debug RRQ_FASTWIRE_PURE=0 \
	    bin/python -X dev -m pytest --no-orjson --timeout=900 -o faulthandler_timeout=0 $(CODEC)

valgrind: $(READY)  ## run many calls of the compiled codec under valgrind's memcheck
	PYTHONMALLOC=malloc RRQ_FASTWIRE_PURE=0 valgrind --quiet --error-exitcode=1 --num-callers=30 \
	    --suppressions=tests/codec/valgrind.supp $(RUN)/python tests/codec/calls.py

# Cython's generated code has implicit conversions between signed and unsigned, and dead stores. So
# the checks for those run only on the header.
INCLUDES = -isystem $$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') -Irrq_fastwire/_c
ANALYZED := frames codec _generic
analyze: $(READY)  ## analyze the compiled code statically, with Cython, gcc and clang
	mkdir -p build/analyze
	for source in _c/frames.pyx _c/codec.pyx _generic.py; do \
	    $(RUN)/cython -3 -Wextra --warning-errors -o build/analyze/$$(basename $${source%.*}).c \
	        rrq_fastwire/$$source || exit 1; done
	gcc -std=c11 -O1 -fanalyzer -Wall -Wextra -Wconversion -Wsign-compare -Wshadow -Wpedantic -Werror \
	    $(INCLUDES) -c tests/codec/scan_header.c -o /dev/null
	clang-tidy --quiet --warnings-as-errors='*' tests/codec/scan_header.c \
	    --checks='-*,bugprone-*,cert-*,clang-analyzer-*' -- -std=c11 $(INCLUDES)
	for name in $(ANALYZED); do \
	    gcc -std=c11 -O1 -Wall -Wextra -Wsign-compare -Werror $(INCLUDES) \
	        -c build/analyze/$$name.c -o /dev/null && \
	    clang --analyze --analyzer-output text -Werror -Xclang -analyzer-disable-checker \
	        -Xclang deadcode.DeadStores $(INCLUDES) build/analyze/$$name.c || exit 1; done

# Line tracing makes compiled code several times slower, so it is turned on in a copy of the sources.
# The tests that are left out build packages, trace code themselves, or measure memory or allocations, which
# tracing changes. In others, coverage's tracer crashes, because Cython calls it in several threads, in another
# interpreter or without memory; or it swallows what a signal handler raises. Some of the remaining tests
# fail, because coverage prints to stderr or writes files. This does not matter for what is measured.
TRACED := build/coverage/source
UNTRACED := --ignore=tests/test_build.py --ignore=tests/test_release.py --ignore=tests/test_adding_a_field.py \
    $(patsubst %,--ignore=tests/codec/test_%.py,interpreters interruptions reentrancy threads) \
    --deselect=tests/codec/test_failing_allocations.py::test_each_failed_allocation_is_a_memory_error_and_loses_nothing \
    --deselect=tests/codec/test_hostile.py::test_an_exception_of_a_signal_handler_leaves_the_decoder_usable \
    --ignore=tests/streams/test_memory.py --ignore=tests/runner/test_leaks.py
build/coverage/ready: pyproject.toml setup.py rrq_fastwire/_generic.py $(wildcard rrq_fastwire/_c/*.p* rrq_fastwire/_c/*.h)
	$(call fresh,coverage)
	mkdir $(TRACED)
	git ls-files -z | xargs -0 cp --parents -t $(TRACED)
	sed -i '1s/# cython: /&linetrace=True, /' $(TRACED)/rrq_fastwire/_c/*.pyx
	build/coverage/bin/python -m pip install --quiet --upgrade setuptools cython coverage
	cd $(TRACED) && CFLAGS=-DCYTHON_TRACE_NOGIL=1 RRQ_FASTWIRE_PURE=0 \
	    ../bin/python -m pip install --quiet --no-build-isolation --editable '.[cli,e2e,test]'
	cp $(TRACED)/build/cython/rrq_fastwire/_c/*.c $(TRACED)/rrq_fastwire/_c
	touch $@

COVERAGE = cd $(TRACED) && RRQ_FASTWIRE_PURE=0 ../bin/python -m coverage
coverage: build/coverage/ready  ## measure the coverage of lines and branches, and of Cython's lines
	git ls-files -z '*.py' | xargs -0 cp --parents -t $(TRACED)
	$(COVERAGE) erase
	-$(COVERAGE) run -m pytest tests $(IN_PARALLEL) --timeout=600 $(UNTRACED)
	-$(COVERAGE) run -m pytest tests $(IN_PARALLEL) --timeout=600 --no-orjson $(UNTRACED) $(NOT_IN_PROCESS)
	$(COVERAGE) combine --quiet
	$(COVERAGE) report

# The mutants are in the pure implementation, so only that is tested.
MODULES ?= rrq_fastwire/_py/*.py rrq_fastwire/_generic.py rrq_fastwire/_json.py
TESTS ?= $(patsubst %,tests/codec/test_%.py,frames stream encode wire_table messages hostile implementations)
mutation: SECONDS ?= 10
mutation: $(READY)  ## change MODULES in small ways, and list the changes that no test of TESTS notices
	$(RUN)/python -m pip install --quiet 'mutmut>=3.8'
	nice -n 10 $(RUN)/python .ci/mutation.py $(MODULES) --tests $(TESTS) --seconds $(SECONDS)

sdist: $(READY)  ## build the sdist into dist/
	PIP_CONSTRAINT=build-requirements.txt $(RUN)/python -m build --sdist --outdir dist

wheel-pure: sdist  ## build the pure Python wheel from the sdist
	RRQ_FASTWIRE_PURE=1 $(RUN)/python -m pip wheel --quiet --no-deps --wheel-dir dist \
	    --build-constraint build-requirements.txt dist/*.tar.gz

# Uses a new environment, so that it lists only what users install, and no development tools.
sbom: wheel-pure  ## list what users install with the package, as CycloneDX, in build/sbom/
	rm -rf build/sbom && $(RUN)/python -m venv --without-pip build/sbom/venv
	$(RUN)/python -m pip --python build/sbom/venv install --quiet dist/*-none-any.whl
	$(RUN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
	    --output-file build/sbom/rrq-fastwire.cdx.json build/sbom/venv

build-requirements:  ## pin the newest build requirements by hash, in build-requirements.txt
	$(call fresh,pins)
	build/pins/bin/python -m pip install --quiet pip-tools
	build/pins/bin/pip-compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras --no-header \
	    --no-emit-index-url --no-emit-find-links --no-annotate --only-build-deps \
	    --build-deps-for=sdist --build-deps-for=wheel --output-file=build/pins/pinned pyproject.toml
	{ head -n 2 build-requirements.txt; cat build/pins/pinned; } > build/pins/new
	mv build/pins/new build-requirements.txt

wheels: $(READY)  ## build and test the files of a release, for PYTHONS="3.11 3.13" or for all that it finds
	$(RUN)/python .ci/platforms.py
	$(RUN)/python .ci/wheels.py $(PYTHONS)

wheels-cross: sdist  ## build wheels for aarch64 and musl, and test those that run here
	$(RUN)/python -m pip install --quiet ziglang
	mkdir -p build/cross
	$(RUN)/python .ci/cross.py dist/*.tar.gz build/cross $(CODEC)

audit: $(READY)  ## check the packages in .venv for known vulnerabilities; needs the network
	$(RUN)/pip-audit --skip-editable

release-check: $(READY)  ## check that TAG=v1.2.3 can be released
	$(RUN)/python .ci/release.py $(TAG)

lint: $(READY)  ## check style, formatting, workflows, and the README's table of wheels
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/jactionlint --strict-exit --shellcheck=$(RUN)/shellcheck
	$(RUN)/zizmor --quiet --offline .
	$(RUN)/python .ci/platforms.py

typecheck: $(READY)  ## check types with mypy and pyright, both strict
	$(RUN)/mypy
	$(RUN)/mypy tests/typing_examples.py
	$(RUN)/pyright

# One process runs all tests of a file, because they share runs of the orchestrator.
e2e: $(READY)  ## run real jobs with Redis, the published orchestrators and every runner
	$(PYTEST) --numprocesses=2 --dist=loadfile tests/e2e --ignore=tests/e2e/test_chaos.py

e2e-chaos: SECONDS ?= 60
e2e-chaos: $(READY)  ## kill runners, Redis and orchestrators at random for SECONDS=60, and look for lost jobs
	$(PYTEST) tests/e2e/test_chaos.py --capture=no --timeout=0 --chaos-seconds=$(SECONDS)

bench: bench-codec bench-runners  ## measure everything in benchmarks/, and write benchmarks/results/

bench-codec: $(READY)
	mkdir -p build
	$(PYTEST) benchmarks --benchmark-only --benchmark-json=build/benchmark.json
	-$(RUN)/python -m benchmarks.check --json build/check.json
	$(RUN)/python -m benchmarks.report --codec build/benchmark.json build/check.json

# A measurement exits with 1 if a row falls short of its aim. This is ignored, because the report shows it.
BENCH_PYTHONS ?= 3.11 3.13
bench-runners: $(READY) $(BENCH_PYTHONS:%=build/bench-%/ready)  ## measure the runners on CPython 3.11 and 3.13; ROUNDS=1 is quick and rough
	rm -f build/bench-*.json
	for version in $(BENCH_PYTHONS); do for part in orchestrator runner process; do \
	    $(RUN)/python -m benchmarks.$$part $(ROUNDS:%=--rounds %) \
	        --python build/bench-$$version/bin/python --json build/bench-$$version.json || true; \
	done; done
	$(RUN)/python -m benchmarks.report --runners $(BENCH_PYTHONS:%=build/bench-%.json)

build/bench-%/ready: $(READY) $(wildcard rrq_fastwire/*.py rrq_fastwire/*/*.py rrq_fastwire/*/*/*.py)
	python=$$($(RUN)/python -c 'import findpython; print(findpython.find("$*").executable)') && \
	    rm -rf build/bench-$* && $$python -m venv build/bench-$*
	RRQ_FASTWIRE_PURE=0 build/bench-$*/bin/python -m pip install --quiet '.[cli,e2e]'
	touch $@

bench-check: $(READY)  ## compare speed with the ratios to reach; exits with 1 if a row falls short
	$(RUN)/python -m benchmarks.check; codec=$$?; $(RUN)/python -m benchmarks.runner && exit $$codec

soak: SECONDS ?= 3600
soak: $(READY)  ## load runners for SECONDS=3600, and compare memory and CPU with those of the tenth minute
	$(RUN)/python -m benchmarks.soak --seconds $(SECONDS) --results build/soak

bench-instructions: $(READY)  ## count instructions with valgrind, and compare with the stored counts
	$(RUN)/python -m benchmarks.instructions

pictures: $(READY)  ## run the commands that the pages show, and draw their output
	$(RUN)/python -m benchmarks.pictures

# The documentation has its own environment, which is ready in a minute, because it needs few packages. The
# pure implementation has the same docstrings as the compiled one, and needs no compiler.
DOCS := build/docs-venv/bin
build/docs-venv/ready: pyproject.toml
	@$(PYTHON) -m venv build/docs-venv
	@$(DOCS)/python -m pip install --quiet --upgrade pip
	@RRQ_FASTWIRE_PURE=1 $(DOCS)/python -m pip install --quiet --editable '.[cli,docs]'
	@touch $@

docs: build/docs-venv/ready  ## build the documentation into build/docs; ONLINE=1 also checks links to other sites
	RRQ_FASTWIRE_PURE=1 $(DOCS)/sphinx-build --fail-on-warning --keep-going --fresh-env --quiet docs build/docs
ifeq ($(ONLINE),1)
	RRQ_FASTWIRE_PURE=1 $(DOCS)/sphinx-build --fail-on-warning --quiet --builder linkcheck docs build/docs-links
else
	@echo 'Not checked: links to other sites. With a network, run make docs ONLINE=1.'
endif

docs-pictures: docs  ## check the layout of the pages in Chromium, and write screenshots to build/docs-pictures
	@$(DOCS)/python -m pip install --quiet playwright
	@$(DOCS)/python docs/pictures.py build/docs build/docs-pictures

clean:  ## remove everything that the other targets have made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find rrq_fastwire tests benchmarks -name '*.so' -delete -o -name '__pycache__' -prune -exec rm -rf {} +
