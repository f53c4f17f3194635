"""What runs on GitHub: that it can do no harm, and that it runs what people run by hand, which is tried here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from hft2ane import state
from hft2ane.attempts import State
from hft2ane.cli import parser
from hft2ane.hub import Hub
from hft2ane.localhub import LocalHub
from hft2ane.records.night import Run
from hft2ane.records.recipe import TASKS

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
NAMES = ("canary", "check", "manifest", "nightly", "site", "watch")
MAKEFILE = (ROOT / "Makefile").read_text()
# Steps that are no make target, each with its reason. There is none.
OTHER_STEPS: dict[str, str] = {}


class Loader(yaml.SafeLoader):
    """As GitHub reads YAML 1.2: `on` is a word, not true."""


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader)


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = load(GITHUB / f"workflows/{name}.yml")
    return found


def jobs() -> Iterator[Any]:
    """All but the one that writes: to Pages, see test_what_puts_the_catalogue_on_pages_does_only_that."""
    for name in NAMES:
        for job, content in workflow(name)["jobs"].items():
            if (name, job) != ("site", "deploy"):
                yield pytest.param(content, id=f"{name}-{job}")


def steps() -> Iterator[Any]:
    for name in NAMES:
        for job, content in workflow(name)["jobs"].items():
            for number, step in enumerate(content["steps"]):
                yield pytest.param(step, id=f"{name}-{job}-{number}")


def test_all_of_them_are_tested() -> None:
    assert {path.stem for path in (GITHUB / "workflows").iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_may_do_nothing_by_itself(name: str) -> None:
    found = workflow(name)
    assert found["permissions"] == {}
    assert found["name"] == name
    assert found["concurrency"]["group"].startswith(name)
    assert set(found["on"]) <= {"pull_request", "push", "schedule", "workflow_dispatch"}


@pytest.mark.parametrize("job", list(jobs()))
def test_a_job_only_reads_and_has_an_end(job: dict[str, Any]) -> None:
    assert job["permissions"] == {"contents": "read"}
    assert 0 < job["timeout-minutes"] <= 720
    assert "continue-on-error" not in job
    checkouts = [step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == 1
    assert checkouts[0]["with"]["persist-credentials"] is False


def test_what_puts_the_catalogue_on_pages_does_only_that() -> None:
    """It has no checkout, so it runs nothing of the repository's."""
    build, deploy = workflow("site")["jobs"].values()
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}
    assert [step["uses"].partition("@")[0] for step in deploy["steps"]] == ["actions/deploy-pages"]
    assert deploy["environment"]["name"] == "github-pages"
    assert deploy["if"] == build["if"] == "github.ref == 'refs/heads/main'"
    assert "pull_request" not in workflow("site")["on"]
    assert 0 < deploy["timeout-minutes"] <= 60


@pytest.mark.parametrize("step", list(steps()))
def test_a_step_is_a_pinned_action_or_a_make_target(step: dict[str, Any]) -> None:
    if "uses" in step:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"])
        return
    run = step["run"]
    assert "${{" not in run
    if run not in OTHER_STEPS:
        command, target, *settings = shlex.split(run)
        assert command == "make"
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), target
        assert all(re.fullmatch(r"[A-Z]+=\S+", setting) for setting in settings)


def test_a_pin_says_which_version_it_is() -> None:
    """And the same action has the same pin everywhere."""
    lines = [line for name in NAMES for line in (GITHUB / f"workflows/{name}.yml").read_text().splitlines()]
    pins = {line.strip() for line in lines if "uses:" in line}
    assert all(re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", pin) for pin in pins)
    assert len(pins) == len({pin.partition("@")[0] for pin in pins})


def test_a_pull_requests_code_sees_no_secret_and_no_machine_of_ours() -> None:
    for name in NAMES:
        if "pull_request" in workflow(name)["on"]:
            text = (GITHUB / f"workflows/{name}.yml").read_text()
            assert not re.search(r"\$\{\{[^}]*\bsecrets\b", text)
            assert not re.search(r"\bgithub\s*\.\s*token\b|GITHUB_TOKEN", text)
            assert "environment" not in text
            for job in workflow(name)["jobs"].values():
                assert job["runs-on"] in ("ubuntu-24.04", "macos-15")
    assert workflow("manifest")["on"] == {"pull_request": {"paths": ["manifests/**"]}}


def test_main_is_checked_to_the_end_and_by_the_names_that_the_docs_give() -> None:
    """A rule that asks for a check of another name waits for ever."""
    found = workflow("check")
    assert found["concurrency"]["cancel-in-progress"] == "${{ github.event_name == 'pull_request' }}"
    names = [f"`linux ({version})`" for version in found["jobs"]["linux"]["strategy"]["matrix"]["python"]]
    assert re.findall(r"`linux[^`]*`", (ROOT / "docs/github.md").read_text()) == names
    assert "name" not in found["jobs"]["linux"]
    (label,) = load(GITHUB / "ISSUE_TEMPLATE/model.yml")["labels"]
    assert f"`{label}`" in (ROOT / "docs/github.md").read_text()


def test_secrets_are_for_main_and_its_environment() -> None:
    for name in NAMES:
        for job in workflow(name)["jobs"].values():
            asks = any("secrets." in str(value) for step in job["steps"] for value in step.get("env", {}).values())
            assert asks == (job.get("environment") == "production"), name
            if asks:
                assert "github.ref == 'refs/heads/main'" in job["if"]
                assert "secrets." not in str(job.get("env", ""))


def test_the_preview_sees_what_is_merged_into() -> None:
    (job,) = workflow("manifest")["jobs"].values()
    assert job["steps"][0]["with"]["fetch-depth"] == 2
    assert job["steps"][-1]["run"] == "make preview BASE=HEAD^1"


def test_what_the_makefile_calls_is_there() -> None:
    called = re.findall(r"(?:bin|\(BIN\))/hft2ane (.*)", MAKEFILE.replace("$(WITHIN)", "26"))
    assert len(called) > 4
    for words in called:
        parser().parse_args(words.partition("$(")[0].split())


# ---- forms


def test_the_form_for_a_model() -> None:
    form = load(GITHUB / "ISSUE_TEMPLATE/model.yml")
    assert form["name"]
    assert form["description"]
    fields = {each["id"]: each for each in form["body"] if each["type"] != "markdown"}
    assert set(fields) == {"model", "task", "license", "lengths", "purpose", "looked"}
    for each in form["body"]:
        assert each["type"] in ("markdown", "input", "dropdown", "textarea", "checkboxes")
        assert each["type"] == "markdown" or each["attributes"]["label"]
    for needed in ("model", "task", "license"):
        assert fields[needed]["validations"]["required"] is True
    assert fields["task"]["attributes"]["options"][1:] == list(TASKS)
    (link,) = load(GITHUB / "ISSUE_TEMPLATE/config.yml")["contact_links"]
    assert set(link) == {"name", "url", "about"}


def test_dependabot_waits() -> None:
    found = load(GITHUB / "dependabot.yml")
    assert found["version"] == 2
    assert {each["package-ecosystem"] for each in found["updates"]} == {"pip", "github-actions"}
    for each in found["updates"]:
        assert each["directory"] == "/"
        assert each["schedule"]["interval"]
        assert each["cooldown"]["default-days"] >= 7
    pinned = re.findall(r'^  "([\w-]+)==', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    ignored = {each["dependency-name"] for each in found["updates"][0]["ignore"]}
    assert ignored == set(pinned)


def test_owners() -> None:
    lines = (GITHUB / "CODEOWNERS").read_text().splitlines()
    owned = [line.split() for line in lines if line and not line.startswith("#")]
    assert {owner for _, *owners in owned for owner in owners} == {"@hft2ane/maintainers"}
    for path, *_ in owned[1:]:
        assert (ROOT / path.strip("/")).exists(), path


# ---- what they run

LIGHT = """\
import sys
sys.modules.update(dict.fromkeys(("torch", "coremltools", "transformers", "numpy", "matplotlib", "prefect")))
from hft2ane.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Makefile and manifests in a repository of two commits: what is merged into, and the merge. Its light environment
    is this one without the heavy libraries."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    executable(folder / ".venv-light/bin/light.py", LIGHT)
    executable(
        folder / ".venv-light/bin/hft2ane",
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} "$(dirname "$0")/light.py" "$@"\n',
    )
    (folder / ".venv-light/installed").touch()
    (folder / ".gitignore").write_text(".venv*/\nbuild/\n")
    (folder / "manifests").mkdir()
    commit(folder, "up/old")
    commit(folder, "up/old", "up/new")
    return folder


def commit(folder: Path, *models: str) -> None:
    lines = ["defaults: {publish: {organization: ane}}", "models:", *(f"- {model}" for model in models)]
    (folder / "manifests/a.yaml").write_text("\n".join(lines) + "\n")
    if not (folder / ".git").exists():
        git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    left_out = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "GITHUB_STEP_SUMMARY", "GITHUB_ACTIONS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.slow
def test_make_preview(checkout: Path, hub: LocalHub, tmp_path: Path) -> None:
    """As manifest.yml runs it: into the job's summary, and red with the whole list when there are mistakes."""
    for name in ("old", "new"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
        (folder / "model.safetensors").write_bytes(bytes(100))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        hub.add(f"up/{name}", folder)
    (job,) = workflow("manifest")["jobs"].values()
    command, summary = shlex.split(job["steps"][-1]["run"]), tmp_path / "summary.md"
    environment = {"HF_ENDPOINT": hub.url, "GITHUB_STEP_SUMMARY": str(summary), "GITHUB_ACTIONS": "true"}
    done = run(checkout, *command, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    page = summary.read_text()
    assert "**1 to create**" in page
    assert "`up/new`" in page
    assert "1 other entry is as it was" in page
    assert "`up/old`" in run(checkout, "make", "preview", HF_ENDPOINT=hub.url).stdout
    summary.unlink()
    commit(checkout, "up/old", "{id: up/new, taks: x}", "{id: x}")
    done = run(checkout, *command, **environment)
    assert done.returncode != 0
    assert "2 problems in the manifests" in summary.read_text()
    assert "::error file=manifests/a.yaml,line=4::" in done.stderr


def test_the_summary_of_a_night(checkout: Path, tmp_path: Path) -> None:
    """A night that left no report has none of an earlier night."""
    executable(
        checkout / ".venv/bin/hft2ane", '#!/bin/sh\necho "$@" > asked\n[ -e fails ] || echo night > work/run.md\n'
    )
    (checkout / ".venv/installed").touch()
    (checkout / "work").mkdir()
    summary = tmp_path / "summary.md"
    assert run(checkout, "make", "nightly").returncode == 0
    assert (checkout / "asked").read_text() == "run\n"
    assert run(checkout, "make", "nightly", "HOURS=9").returncode == 0
    assert (checkout / "asked").read_text() == "run --hours 9\n"
    assert run(checkout, "make", "nightly.summary", GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text() == "night\n"
    (checkout / "fails").touch()
    run(checkout, "make", "nightly")
    assert run(checkout, "make", "nightly.summary").returncode != 0


def test_the_night_by_a_server(checkout: Path) -> None:
    executable(checkout / ".venv-flows/bin/python", '#!/bin/sh\necho "$PREFECT_API_URL" "$@"\nexit 1\n')
    (checkout / ".venv-flows/installed").touch()
    step = next(
        each for each in workflow("nightly")["jobs"]["server"]["steps"] if each.get("run") == "make nightly.trigger"
    )
    assert step["env"]["SINCE"] == "${{ github.event_name == 'schedule' && '12' || '' }}"
    for since, more in (("12", " --since 12"), ("", "")):
        done = run(checkout, *shlex.split(step["run"]), PREFECT_API_URL="http://server/api", SINCE=since)
        assert done.returncode != 0
        assert done.stdout.strip() == f"http://server/api -m flows.trigger{more}"


@pytest.mark.slow
def test_the_watch(checkout: Path, hub: LocalHub, tmp_path: Path) -> None:
    """Green for a night of today, red for one of the day before yesterday, and where there was none."""
    summary = tmp_path / "summary.md"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "GITHUB_STEP_SUMMARY": str(summary)}
    (job,) = workflow("watch")["jobs"].values()
    command = shlex.split(job["steps"][-1]["run"])
    assert run(checkout, *command, **environment).returncode != 0
    for hours, code in ((48, 2), (20, 0)):
        night = Run(datetime.now(UTC) - timedelta(hours=hours), (), (), 60.0)
        assert state.write(Hub(hub.url, hub.token), State(), State(), ["ane"], night) == []
        done = run(checkout, *command, **environment)
        assert done.returncode == code, done.stderr
        assert f"{night.started:%Y-%m-%d}" in summary.read_text()


# The head of the card's table, and what stands there when each unit was asked in vain.
TIMED = "| Mac | Package | Function | Compute units | PSNR, worst row, dB | Median, ms | p90 |\n| 1 ms |"
IN_VAIN = "Not measured: 1 ms"


@pytest.mark.parametrize(("said", "measured"), [(TIMED, True), (IN_VAIN, False), ("", False)])
def test_what_a_mac_measured(checkout: Path, said: str, measured: bool, tmp_path: Path) -> None:
    """The head of the card's table is taken from its template."""
    assert TIMED.partition(" p90")[0] in (ROOT / "hft2ane/card/templates/card.md.j2").read_text()
    card = checkout / "demo/published/ane/x/README.md"
    card.parent.mkdir(parents=True)
    section = f"### Measured with Core ML\n\n{said}\n\n" if said else ""
    card.write_text(f"# x\n\nwords\n\n{section}## Provenance\n\nmore\n")
    summary = tmp_path / "summary.md"
    done = run(checkout, "make", "mac.summary", GITHUB_STEP_SUMMARY=str(summary))
    assert (done.returncode == 0) == measured
    assert ("1 ms" in summary.read_text()) == bool(said)
    assert "words" not in summary.read_text()


@pytest.mark.parametrize("there", [True, False])
def test_packages_that_tests_need(checkout: Path, there: bool, tmp_path: Path) -> None:
    """What is there is not installed again, and not spoken of."""
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    tools.mkdir()
    for name in ("bash", "cat", "env", "mktemp", "rm"):
        (tools / name).symlink_to(str(shutil.which(name)))
    executable(tools / "apt-get", f'#!/bin/sh\necho "$@" >> {asked}\n')
    executable(tools / "sudo", '#!/bin/sh\nexec "$@"\n')
    executable(tools / "postgres", "#!/bin/sh\n")
    if there:
        executable(tools / "chromium", "#!/bin/sh\n")
        executable(tools / "chromedriver", "#!/bin/sh\n")
    done = run(checkout, ".ci/packages", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if there else "packages: installing chromium chromium-driver\n")
    assert asked.exists() != there
    if not there:
        assert asked.read_text().splitlines()[-1].endswith(" chromium chromium-driver")
        executable(tools / "apt-get", "#!/bin/sh\necho no such package >&2\nexit 100\n")
        done = run(checkout, ".ci/packages", PATH=str(tools))
        assert done.returncode == 1
        assert "no such package" in done.stderr


def test_the_canary_takes_newer_versions_of_what_is_pinned(checkout: Path, tmp_path: Path) -> None:
    """With a `make` that only makes an environment, and fails to check: the tests have their turn all the same."""
    pins = checkout / "pyproject.toml"
    pins.write_text(re.sub(r'"numpy==[^"]+"', '"numpy==0.1"', pins.read_text()))
    git(checkout, "commit", "-q", "-a", "-m", "older")
    tools, asked = tmp_path / "bin", tmp_path / "asked"
    python = f'#!/bin/sh\n[ "$2" = pip ] || exec {sys.executable} "$@"\necho "$@" >> {asked}\n'
    executable(tmp_path / "python", python)
    executable(
        tools / "make",
        f'#!/bin/sh\necho "$1" >> {asked}\ncat constraints.txt >> {asked}\n[ "$1" = check ] && exit 1\n'
        f"mkdir -p .venv/bin && cp {tmp_path}/python .venv/bin/python\n",
    )
    done = run(checkout, ".ci/canary", PATH=f"{tools}:{os.environ['PATH']}")
    assert done.returncode == 1
    words = [line.split()[0] for line in asked.read_text().splitlines()]
    assert words == [".venv", "-m", "check", "test"], done.stderr
    assert re.search(r'canary: "numpy==0.1", is now "numpy==\d', done.stdout)
    now = (checkout / "build/canary/pyproject.toml").read_text()
    assert now != pins.read_text()
    assert len(re.findall(r'^  "[\w-]+==', now, re.MULTILINE)) == 4
    assert "numpy==0.1" in pins.read_text()
