PYTHON ?= python3
BIN = .venv/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
IN ?=
BPP ?= 0.01
CLIPS ?= clips
PHOTOS ?= photos
METRICS ?= metrics
RUN ?= build/small

.DEFAULT_GOAL := help
.PHONY: help demo test check types fast test-full vectors fuzz bench models small dist clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt hatchling editables hypothesis import-linter matplotlib mypy pytest pytest-xdist ruff
	$(BIN)/pip install --quiet -c constraints.txt --no-build-isolation -e .
	touch $@

demo: .venv/ready ## encode and decode one clip, print the figures, draw demo/side-by-side.png (IN=clip.mp4, BPP=0.003)
	$(BIN)/python -m semvc.demo --out demo --bpp $(BPP) $(if $(IN),--input "$(IN)")

test: .venv/ready ## the whole test suite
	$(PYTEST)

check: .venv/ready ## format, lint, types, layers, fast tests
	$(BIN)/ruff format --check semvc tests
	$(BIN)/ruff check semvc tests
	@$(MAKE) --no-print-directory -j 2 types fast

types: .venv/ready # beside the tests, as it takes one core
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: .venv/ready
	$(PYTEST) -m "not nightly and not slow"

test-full: .venv/ready ## tests at the full sizes of the test plan (hours)
	$(PYTEST) -m "nightly or not nightly"

vectors: .venv/ready ## rewrite the golden vectors; say why in the commit
	$(BIN)/python -m tests.make_vectors

fuzz: .venv/ready ## mutate streams for a while; finds are kept in tests/corpus
	$(BIN)/python -m tests.fuzz

bench: .venv/ready ## start-up, memory and speed figures
	$(BIN)/python -m tests.bench

models: .venv/ready ## check every bundled model against its hash
	$(BIN)/semvc models verify

small: .venv/ready ## rebuild the bundled model from nothing (CLIPS=, PHOTOS=, METRICS= folders; RUN= gets it; goes on)
	$(BIN)/semvc train prepare $(RUN)/cache --clips "$(CLIPS)" --photos "$(PHOTOS)"
	$(BIN)/semvc train run models/disco-small-v1/recipe.toml $(RUN)/run --metric-weights "$(METRICS)" \
		--cache $(RUN)/cache/clips --cache $(RUN)/cache/photos
	$(BIN)/semvc train export models/disco-small-v1/recipe.toml $(RUN)/run $(RUN)/disco-small-v1

dist: .venv/ready ## build the wheel
	$(BIN)/pip wheel --no-deps --no-build-isolation -w dist .

clean: ## remove what the other targets made
	rm -rf .venv demo dist build
