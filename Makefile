# Everything that people and CI run. The environment is .venv, made from the lock (constraints.txt).
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

# What CI shows of a job: GitHub's summary page; on other machines, the terminal.
SUMMARY := $(if $(GITHUB_STEP_SUMMARY),>> "$(GITHUB_STEP_SUMMARY)")
# The longest that a night may be ago, in hours.
WITHIN ?= 26
# Where it is set, each of the many processes that tests start would compile all that it imports, 0.4 s of CPU and more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check format packages preview nights watch nightly nightly.trigger nightly.summary canary demo.log mac.summary mac.measure mac.test \
  server server.postgres deploy site swift

help:  ## this list
	@awk -F ':.*##' '/^[a-z.]+:.*##/ { printf "%-16s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[convert,flows,sign,dev]'
	@touch $@

# The light half, and that with Prefect's client: for jobs that convert nothing.
.venv-light/installed: EXTRAS :=
.venv-flows/installed: EXTRAS := [flows]
.venv-light/installed .venv-flows/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS)'
	@touch $@

packages:  ## Chromium and PostgreSQL, which tests need, where they are missing (Debian, Ubuntu)
	@.ci/packages

demo: .venv  ## the whole pipeline on real models and a Hub on this machine, into demo/
	@$(BIN)/hft2ane demo

test: .venv  ## all tests, the demo among them
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

mac.test: .venv  ## the same on a Mac, but for what needs Chromium or PostgreSQL
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not packages'

check: .venv  ## format, lint, types, workflows, contributed measurements
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict hft2ane flows
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/hft2ane measurements

swift:  ## compile the Swift of the cards; on a Mac
	swift build --package-path swift

format: .venv  ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: .venv-light/installed  ## the catalogue of what the manifests have on the Hub, into site/
	.venv-light/bin/hft2ane site

preview: .venv-light/installed  ## what manifests/ lead to, as Markdown; BASE=main: what is otherwise than there
	@.venv-light/bin/hft2ane plan --markdown $(if $(BASE),--base '$(BASE)') $(SUMMARY)

nightly: .venv  ## the night over manifests/ on this machine, into work/; HOURS=9: begins no model later
	@rm -f work/run.json work/run.md
	@$(BIN)/hft2ane run $(if $(HOURS),--hours '$(HOURS)')

nightly.summary:  ## what the last night on this machine did, as Markdown
	@cat work/run.md $(SUMMARY)

nightly.trigger: .venv-flows/installed  ## the night by the Prefect server at PREFECT_API_URL; SINCE=12: unless its schedule began one in 12 hours
	@.venv-flows/bin/python -m flows.trigger $(if $(SINCE),--since '$(SINCE)')

server: .venv  ## a Prefect server on this machine, with SQLite, until Ctrl-C
	@$(BIN)/python -m flows.server

server.postgres: .venv  ## the same with a PostgreSQL of its own: for several workers
	@$(BIN)/python -m flows.server --database postgres

deploy: .venv  ## pools, schedules and automations of this commit, to the Prefect server at PREFECT_API_URL
	@$(BIN)/python -m flows.deploy

nights: .venv-light/installed  ## the report of the last night, as its organisation has it, as Markdown
	@.venv-light/bin/hft2ane nights --markdown $(SUMMARY)

watch: .venv-light/installed  ## fails when no night has come to its end for WITHIN hours
	@.venv-light/bin/hft2ane nights --markdown --within $(WITHIN) $(SUMMARY)

demo.log:  ## what the demo had to say that was not worth showing
	@tail -n +1 demo/work/run.log demo/work/*/build.log

mac.summary:  ## what Core ML measured in the demo, as the cards say it; fails where it measured nothing
	@.ci/mac-summary $(SUMMARY)

mac.measure: .venv  ## on a Mac, after `make demo`: Core ML unit by unit on its packages, into build/measurements
	@.ci/mac-measure $(SUMMARY)

canary:  ## check and test with the newest versions of everything, in build/canary
	@.ci/canary
