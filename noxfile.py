"""Everything that must hold before a change lands: `uv run nox`, or one session with `uv run nox -s NAME`."""

import os
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "test", "integration", "docs"]

PACKAGES = ("janus-comm", "janus-moe", "janus-graph", "matris-model", "janus-train")
TWO_AT_A_TIME = ("-n", "2")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ALL_EDITABLE = tuple(part for name in PACKAGES for part in ("-e", f"packages/{name}"))


def _environment() -> dict[str, str]:
    """What the installer must be told; a site's own wheels (a CPU build of torch, say) are used where it has some."""
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    if links := os.environ.get("UV_FIND_LINKS", os.environ.get("PIP_FIND_LINKS")):
        environment["UV_FIND_LINKS"] = links
    return environment


def _install(session: nox.Session, *arguments: str) -> None:
    session.install(*arguments, env=_environment())


@nox.session
def lint(session: nox.Session) -> None:
    """Style, names, docstrings, and who may import whom."""
    _install(session, "--group", "lint", *ALL_EDITABLE)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict on every package."""
    _install(session, "--group", "types", *ALL_EDITABLE)
    session.run("mypy", *(f"packages/{name}/src" for name in PACKAGES))


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def test(session: nox.Session, package: str) -> None:
    """The tests of one package, with nothing installed but what that package declares."""
    group = f"packages/{package}/pyproject.toml:test"
    _install(session, "--exact", "-e", f"packages/{package}", "--group", group)
    with session.chdir(f"packages/{package}"):
        session.run("pytest", *TWO_AT_A_TIME, *session.posargs, env=_environment() | ONE_THREAD)


@nox.session
def integration(session: nox.Session) -> None:
    """What needs several packages together: whole runs, several ranks, the command line."""
    _install(session, *ALL_EDITABLE, "--group", "test")
    # Runs start processes, and wait for them to import torch more than they compute: two at a time take two thirds.
    session.run("pytest", "tests", *TWO_AT_A_TIME, *session.posargs, env=_environment() | ONE_THREAD)


@nox.session
def docs(session: nox.Session) -> None:
    """Every Python block of the documentation runs, every link between its pages leads somewhere, the site builds."""
    _install(session, *ALL_EDITABLE, "--group", "test", "--group", "docs")
    session.run("pytest", "docs", *TWO_AT_A_TIME, env=_environment() | ONE_THREAD)


@nox.session
def bench(session: nox.Session) -> None:
    """A benchmark: `nox -s bench -- benchmarks/NAME.py`; prints JSON."""
    _install(session, *ALL_EDITABLE)
    script = session.posargs[0] if session.posargs else "benchmarks/train_bundled.py"
    if not Path(script).exists():
        session.error(f"no benchmark {script}")
    session.run("python", script, *session.posargs[1:], env=_environment())
