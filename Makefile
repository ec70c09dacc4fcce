# make demo      train an SE network twice, eager and fused, and compare   (sets up .venv)
# make test      the test suite                                           (sets up .venv)
# make sanitize  the CUDA kernels on the CPU under sanitizers              (sets up .venv)
# make lint      ruff
# make clean     remove .venv and what was built

PYTHON ?= python3
BIN := .venv/bin
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f)

.PHONY: demo test sanitize lint clean
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python benchmarks/train.py

# A backend named in SE_FUSED_REQUIRE must run: its tests fail where they would otherwise be skipped.
test: export SE_FUSED_REQUIRE ?= cpp,triton
test: .venv/ready
	$(BIN)/python -m pytest

sanitize: .venv/ready
	SE_FUSED_SANITIZER=address $(BIN)/python -m pytest -q tests/test_cuda_kernels.py
	SE_FUSED_SANITIZER=thread $(BIN)/python -m pytest -q tests/test_cuda_kernels.py
	SE_FUSED_SANITIZER=initialised $(BIN)/python -m pytest -q tests/test_cuda_kernels.py

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
