# make demo          train, score and draw a two-layer VampPrior VAE on real handwritten digits, in four minutes
# make test          the test suite, on TensorFlow and on JAX
# make test-slow     the tests that take long
# make test-all      both
# make test-cluster  grids on a Ray cluster
# make test-browser  pages in Chromium; SCREENSHOTS=DIR keeps pictures of them
# make docs          the README and the guides as a site with search, in site/
# Each makes its environment in .venv first. PYTHON chooses the interpreter, 3.11 or newer. A worker that dies is not
# replaced, since pytest-xdist may then wait forever.

PYTHON ?= python3
BIN := .venv/bin
SIDE_BY_SIDE := -n 2 --dist loadfile --max-worker-restart 0
DEMO_FLAGS := --data_set mnist5k --model hvae --prior vamp --network mlp --epochs 80 --batch_size 64 --lr 2e-3 \
  --lr_schedule cosine --num_pseudo_inputs 100 --beta_warmup 40
DEMO_RUN := runs/mnist5k_hvae_vamp_bs64_dim2_mlp_epochs80_lr0.002_schedulecosine_K100_warmup40

.PHONY: demo docs test test-slow test-all test-cluster test-browser lint clean

demo: .venv/run
	test -f $(DEMO_RUN)/metrics.json || $(BIN)/python train.py $(DEMO_FLAGS)
	$(BIN)/python evaluate.py $(DEMO_RUN)
	$(BIN)/python plot.py $(DEMO_RUN)
	$(BIN)/python plot.py $(DEMO_RUN) --explore
	@echo "Look at the pictures in $(DEMO_RUN)/figures, and open the page that ends in _explore.html in a browser"

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Look at site/index.html"

test: .venv/dev
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(SIDE_BY_SIDE)
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m keras

test-slow: .venv/dev
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow and keras"

test-all: test test-slow

test-cluster: .venv/dev .venv/extras
	$(BIN)/python -m pytest tests/grids/test_cluster.py

test-browser: .venv/dev .venv/browser
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m browser $(if $(SCREENSHOTS),--screenshots="$(SCREENSHOTS)")

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/run: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev: requirements-dev.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv/extras: requirements/extras.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/extras.txt
	@touch $@

.venv/browser: requirements/browser.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/browser.txt
	@touch $@

.venv/docs: requirements/docs.txt .venv/run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

clean:
	rm -rf .venv
