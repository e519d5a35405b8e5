# Every target makes the environment it needs; `make` alone lists them.

PYTHON ?= python3
JOBS ?=
WEIGHTS ?=
IMAGES ?=
TRAIN_IMAGES ?=
MODELS ?=
OUT ?=
SUBMISSIONS ?=
MODEL ?=
VS ?=
DEVICE ?=
LIMIT ?=
VENV := .venv
RUN := $(VENV)/bin/python

# glibc hands every large tensor back to the system at once and asks for it anew, page by page; kept, it is used again
export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824

.DEFAULT_GOAL := help
.PHONY: help book test lab lint hooks zoo record report bench assignments grade slides clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; make PYTHON=/path/to/it names one") if sys.version_info < (3, 11) else None'
	@echo "Installing the book's packages into $(VENV) (some minutes, the first time)"
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[book,test]'
	@# so that timm can be imported first, too, whichever builds of torch and torchvision meet (see that file)
	@packages=$$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		&& cp helpers/_torchvision.py "$$packages/_how_vits_see.py" \
		&& echo 'import _how_vits_see; _how_vits_see.make_importable()' > "$$packages/how_vits_see.pth"
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

$(VENV)/installed-course: $(VENV)/installed
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[course]'
	@touch $@

book: $(VENV)/installed ## execute every chapter, build the site, check it, print its path
	@$(RUN) -m helpers.building.book $(if $(JOBS),--jobs $(JOBS))

test: book ## run the tests, on the library, the chapters and the built site
	@$(RUN) -m pytest -n 2 --dist worksteal

lab: $(VENV)/installed ## open JupyterLab on the chapters
	@$(RUN) -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks

lint: $(VENV)/installed ## check the code's form and types, and the notebooks' hygiene
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m pytest -q tests/test_notebooks.py

hooks: $(VENV)/installed ## check form and strip notebooks before each commit
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(VENV)/bin/pre-commit install

zoo: $(VENV)/installed ## train the models of data/zoo that are not there yet
	@$(RUN) -m helpers.networks.training

record: $(VENV)/installed ## measure ImageNet-trained models: make record WEIGHTS=folder IMAGES=folder TRAIN_IMAGES=folder MODELS="vit resnet" [DEVICE=cuda] OUT=folder
	@$(RUN) -m helpers.recording.record $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(IMAGES),--images "$(IMAGES)") $(if $(TRAIN_IMAGES),--train-images "$(TRAIN_IMAGES)") $(if $(MODELS),--models $(MODELS)) $(if $(DEVICE),--device "$(DEVICE)") $(if $(OUT),--out "$(OUT)")

report: $(VENV)/installed ## measure any model and draw a page: make report MODEL=name [VS=names] [IMAGES=folder] [WEIGHTS=file, folder or none] [DEVICE=cuda] [LIMIT=n]
	@$(RUN) -m helpers.reporting.report --model "$(MODEL)" $(if $(VS),--vs $(VS)) $(if $(IMAGES),--images "$(IMAGES)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(DEVICE),--device "$(DEVICE)") $(if $(LIMIT),--limit $(LIMIT)) $(if $(OUT),--out "$(OUT)")

bench: $(VENV)/installed-bench ## time the library, beside other people's code
	@$(RUN) -m tests.bench

assignments: $(VENV)/installed-course ## make the course's assignments, for students and with solutions, and print their path
	@$(RUN) -m helpers.building.assignments

grade: $(VENV)/installed-course ## grade assignments that were handed in: make grade SUBMISSIONS=folder OUT=folder
	@test -n "$(SUBMISSIONS)" || { echo "Name the folder: make grade SUBMISSIONS=folder" >&2; exit 2; }
	@$(RUN) -m helpers.building.grading "$(SUBMISSIONS)" $(if $(OUT),--out "$(OUT)")

slides: book ## make a deck of slides of each chapter from its figures, and these as files, and print their path
	@$(RUN) -m helpers.building.slides

clean: ## remove everything that was built, but neither the environment nor your own runs and reports
	rm -rf *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find helpers tests -name __pycache__ -type d -prune -exec rm -rf {} +
	test ! -d build || find build -mindepth 1 -maxdepth 1 ! -name own ! -name reports -exec rm -rf {} +
