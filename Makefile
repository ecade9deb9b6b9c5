# Python 3.11 to 3.13 and make are all that these commands need. The first one builds
# .venv (minutes, about 2 GB); the later ones start at once.
#   make demo                     another Python: make demo PYTHON=/path/to/python3.12
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.ready
LOG := $(VENV)/setup.log
CELL_SECONDS := 300
BESIDE := -n 2 --dist loadfile
# Idle OpenMP threads do not spin: see benchmarks/README.md.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo gallery test test-browser lab docs publish lint clean setup
.DEFAULT_GOAL := help

help:
	@echo "make demo    make shapes, train on them, and report what the model does"
	@echo "make gallery reports/gallery anew, from the package's models"
	@echo "make test    all tests: code, notebooks, and a run in batch"
	@echo "make test-browser   notebooks and scenes in a real Chromium"
	@echo "make lab     open the notebooks in JupyterLab"
	@echo "make docs    the reference of the library as pages: reports/api/index.html"
	@echo "make publish ADDRESS=https://github.com/OWNER/NAME   badges, links, Colab's copies"
	@echo "make lint    ruff over code and notebooks"
	@echo "make clean   remove .venv and caches; data/ and reports/ stay"

demo: $(STAMP)
	@echo "Making shapes, training, evaluating: some minutes on two cores."
	@$(RUN) -m d2im.run 01 02 03 04 05 --params notebooks/params/demo.yaml --name demo
	@echo "Open reports/demo/index.html in a browser."

gallery: $(STAMP)
	$(RUN) notebooks/gallery.py

# Two files at a time, and no more threads: the models of the tests are tiny, a second
# thread costs more than it does. The notebooks are tried in a copy, so that nothing made
# before is found or lost.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(BESIDE)
	rm -rf reports/tried reports/smoke
	mkdir -p reports/tried
	cp -r d2im notebooks pyproject.toml reports/tried
	rm -r reports/tried/d2im/models
	cd reports/tried && PYTHONPATH=$$PWD OMP_NUM_THREADS=1 ../../$(RUN) -m pytest $(BESIDE) \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_SECONDS) notebooks
	$(RUN) -m d2im.run 02 03 05 --name smoke --timeout $(CELL_SECONDS)

# Chromium is the system's: apt-get install chromium, where that is allowed.
test-browser: $(STAMP)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[browser]'
	@command -v chromium >/dev/null || { apt-get update && apt-get install -y chromium; }
	$(RUN) -m pytest tests/browser -o norecursedirs=

# The root is the repository, so that links from notebooks to code and reports work.
lab: $(STAMP)
	$(RUN) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

docs: $(STAMP)
	$(RUN) docs/reference.py

publish: $(STAMP)
	$(RUN) docs/publish.py $(ADDRESS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +

setup: $(STAMP)

# A Python that only seems to be there (a version manager's stub) or that cannot make
# environments (Debian without python3-venv) is passed over: each is tried, not found.
FITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
CANDIDATES := $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3 python)

$(STAMP): pyproject.toml constraints.txt
	@rm -f $@; \
	if ! $(RUN) -c '$(FITS)' 2>/dev/null; then \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(FITS)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "Set-up stopped: no Python 3.11 to 3.13 with its venv module among:" \
	      $(CANDIDATES) >&2; \
	    echo "Install one (on Debian and Ubuntu: apt install python3 python3-venv)" \
	      "or name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV) || { \
	    echo "Set-up stopped: $$found cannot make $(VENV) here (see above)." >&2; \
	    exit 1; }; \
	fi; \
	echo "Installing the packages: about two minutes, log in $(LOG)"; \
	$(RUN) -m pip install -c constraints.txt -e '.[dev,lab]' > $(LOG) 2>&1 || { \
	  grep '^ERROR' $(LOG) | tail -n 3 >&2; \
	  echo "Set-up stopped: pip could not install the packages. Is there a network" \
	    "(or a proxy to name in HTTPS_PROXY)?" >&2; \
	  echo "All that pip said is in $(LOG). Mend it, then run make again." >&2; \
	  exit 1; }; \
	touch $@
