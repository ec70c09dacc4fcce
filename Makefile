# make demo      train an SE network twice, eager and fused, and compare   (sets up .venv)
# make test      that it works: every room, backend and public function    (sets up .venv)
# make test-all  the whole test suite                                     (sets up .venv)
# make bench     SE blocks and networks, timed and reported in benchmarks/results and README
# make bench-full  the same, every map, contender, dtype and layout: hours   (both set up .venv)
# make gpu       tests on the GPU, then make bench there                   (sets up .venv)
# make sanitize  the CUDA kernels on the CPU under sanitizers              (sets up .venv)
# make lint      ruff
# make clean     remove .venv and what was built

PYTHON ?= python3
BIN := .venv/bin
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test test-all bench bench-full gpu sanitize lint clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python benchmarks/train.py

# A backend named in SE_FUSED_REQUIRE must run: its tests fail where they would otherwise be skipped.
# A process for each of up to 8 processors, of two threads each, which do not spin while they wait.
test test-all: export SE_FUSED_REQUIRE ?= cpp,triton
test test-all: export OMP_NUM_THREADS ?= 2
test test-all: export OMP_WAIT_POLICY ?= passive
test test-all: PARALLEL := -n logical --maxprocesses 8 --dist worksteal
test: .venv/ready
	$(BIN)/python -m pytest $(PARALLEL)
test-all: test
	$(BIN)/python -m pytest $(PARALLEL) -m "thorough and not slow"

# Blocks with a malloc that keeps freed memory: the kernels' speed. Networks as users run them.
bench-full: ROWS := --full
bench bench-full: PYTEST := $(BIN)/python -m pytest -q --benchmark-quiet
bench bench-full: .venv/ready
	mkdir -p out
	$(BIN)/python benchmarks/malloc.py $(PYTEST) benchmarks/test_block.py benchmarks/test_block_tail.py $(ROWS) \
	  --benchmark-json=out/block.json
	$(PYTEST) benchmarks/test_network.py $(ROWS) --benchmark-json=out/network.json
	file=$$($(BIN)/python benchmarks/collect.py out/block.json out/network.json) && \
	  $(BIN)/python benchmarks/report.py "$$file" --readme --plots "$${file%.json}"

# No time of a wrong result: the tests first.
gpu: .venv/ready
	$(BIN)/python -c "import torch; assert torch.cuda.is_available(), 'torch sees no GPU'"
	$(BIN)/python -m pytest -q -k cuda
	$(MAKE) bench

SANITIZERS := address thread initialised
sanitize: $(SANITIZERS:%=sanitize-%)
sanitize-%: .venv/ready
	SE_FUSED_SANITIZER=$* $(BIN)/python -m pytest -q -m "not slow" tests/cuda_host/test_cuda_kernels.py

lint: .venv/ready
	$(BIN)/ruff check .

.venv/ready: $(BUILD_INPUTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet "torch>=2.10" numpy
	SE_FUSED_NO_EXT=0 $(BIN)/python -m pip install --quiet --no-build-isolation -e ".[test,demo]" ruff
	touch $@

clean:
	rm -rf .venv build *.egg-info se_fused/*.so out
