"""The documents: every command in them exists, every link leads somewhere, and they can be read."""

import functools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, *sorted((ROOT / "docs").glob("*/*.md"))]
RECORDED = "results.md"
"""Repeats the commands of past runs, whose options may be gone by now."""
LOOKED_UP = {"runbook.md", "log.md"}
"""Documents that nobody reads from the beginning to the end."""
GROUPS = ("certs", "data", "drift", "keys", "models")
"""Verbs with verbs of their own."""
ELSEWHERE = {
    "cd",
    "export",
    "find",
    "gcloud",
    "git",
    "helm",
    "npm",
    "pytest",
    "sha256sum",
    "sky",
    "source",
    "tar",
}
"""Programs whose arguments are checked only for files of this project."""


def documented_commands(guide: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command of a guide, as program and arguments.

    Found in shell blocks, in indented blocks, and between backticks if it calls fruitstand, make or python.
    Comments and assignments before the program are left out; pipes and `&&` separate commands.
    """
    text = guide.read_text()
    fenced = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    lines += re.findall(r"^    ((?:fruitstand|make|python|pip|curl) .*)", prose, re.MULTILINE)
    calls = r"`((?:[A-Z_]+=\S+\s+)*(?:fruitstand|make|python -m)\s[^`]*)`"
    lines += [re.sub(r"\s+", " ", call) for call in re.findall(calls, prose)]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if token.strip("|&;"):
                if words or not re.fullmatch(r"[A-Z_0-9]+=.*", token):
                    words.append(token)
            elif words:
                yield re.sub(r"^(\.venv/bin/)?(python)?[\d.]*", r"\2", words[0]), words[1:]
                words = []


@functools.cache
def help_of(*module_and_verb: str) -> str:
    """What `python -m MODULE [VERB] --help` prints."""
    command = [sys.executable, "-m", *module_and_verb, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 0, module_and_verb
    return done.stdout


@functools.cache
def curl_options() -> str:
    """Every option that the installed curl knows."""
    return subprocess.run(["curl", "--help", "all"], capture_output=True, text=True, check=True).stdout


def flags(words: list[str]) -> list[str]:
    """The long options among the words, without their values."""
    return [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]


def check_fruitstand(words: list[str]) -> None:
    """The verb exists and has these flags."""
    verb = words[:2] if words[0] in GROUPS else words[:1]
    if words and re.fullmatch(r"[a-z-]+", verb[-1]):  # not `fruitstand VERB` or `fruitstand --help`
        unknown = [flag for flag in flags(words) if not re.search(rf"{flag}\b", help_of("fruitstand", *verb))]
        assert unknown == []


def check_make(words: list[str]) -> None:
    """Targets exist, and variables are read."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"\$\({name}\)" if is_variable else rf"^{name}:", makefile, re.MULTILINE), word


def check_python(words: list[str]) -> None:
    """A module or script of this checkout, with these flags."""
    if words[:2] == ["-m", "fruitstand"]:
        return check_fruitstand(words[2:])
    if words[0] == "-m" and words[1] in {"http.server", "pip", "venv"}:
        return None
    words = words[: words.index("--")] if "--" in words else words  # the rest is passed on
    place = ROOT / (words[1].replace(".", "/") if words[0] == "-m" else words[0])
    assert place.is_file() or place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
    if words[0] == "-m" and flags(words):
        assert [flag for flag in flags(words) if flag not in help_of(words[1])] == []
    return None


def check_curl(words: list[str]) -> None:
    """The options are known to curl, and the path to our HTTP server."""
    assert [flag for flag in flags(words) if f"{flag} " not in curl_options()] == []
    served = json.loads((ROOT / "serving" / "page" / "openapi.json").read_text())["paths"]
    patterns = [re.sub(r"\{\w+\}", "[^/]+", path) for path in ("/", *served)]
    for word in words:
        if url := re.fullmatch(r"https?://[\w.]+:8000(/[^?]*)?(\?.*)?", word):
            path = url[1] or "/"
            assert any(re.fullmatch(pattern, path) for pattern in patterns), word


def check_docker(words: list[str]) -> None:
    """A service of docker-compose.yml, or a stage of the Dockerfile."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    if words[0] == "compose":
        named = [word for word in words[2:] if not word.startswith("-")]
        if words[1] in ("run", "logs", "exec"):
            assert named[0] in services, words
        elif words[1] == "cp":
            assert named[0].partition(":")[0] in services, words
    elif "--target" in words:
        stages = re.findall(
            r"^FROM .* AS ([\w-]+)", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE
        )
        assert words[words.index("--target") + 1] in stages


def check_pip(words: list[str]) -> None:
    """Extras of this project exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if ours := re.match(r"(?:\.|fruitstand)\[([\w,-]+)\]", word):
            assert set(ours[1].split(",")) <= set(extras)


CHECKS = {
    "fruitstand": check_fruitstand,
    "make": check_make,
    "python": check_python,
    "curl": check_curl,
    "docker": check_docker,
    "pip": check_pip,
    "kubectl": lambda _: None,
}


@pytest.mark.parametrize(
    "guide", [pytest.param(guide, id=guide.stem) for guide in GUIDES if guide.name != RECORDED]
)
def test_every_command_of_a_guide_exists(guide: Path) -> None:
    """Verbs, flags, make targets and variables, modules, HTTP paths, services and files are there."""
    commands = list(documented_commands(guide))
    assert commands or guide.name not in ("README.md", "quickstart.md", "tutorial.md")
    folders = "benchmarks|deploy|docs|examples|export|loadtests|monitoring|serving|tests|training"
    ours = re.compile(rf"(?:{folders})/[\w./-]+")
    for program, words in commands:
        assert program in CHECKS or program in ELSEWHERE, f"{program} {words}: nothing checks it"
        if program in CHECKS and words:
            CHECKS[program](words)
        assert [word for word in words if ours.fullmatch(word) and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("guide", [pytest.param(guide, id=guide.stem) for guide in GUIDES])
def test_links_of_a_guide_lead_somewhere(guide: Path) -> None:
    """Links and paths in backticks that look like files of this project are files of it."""
    text = guide.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (guide.parent / link).exists()]
    named = re.findall(
        r"`((?:docs|monitoring|training|export|serving|deploy|benchmarks)/[\w./-]+\.\w+)`", text
    )
    assert missing + [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", [pytest.param(one, id=one.stem) for one in DOCUMENTS])
def test_a_document_can_be_read(document: Path) -> None:
    """At most 250 lines (the README 130), prose of 120 characters; tables and code may be wider."""
    text = document.read_text()
    written, _, _ = text.partition("<!-- rendered")  # the rest is written by benchmarks.results_page
    prose = re.sub(r"```.*?```", "", written, flags=re.DOTALL).splitlines()
    wide = ("|", "!", "    ")
    assert [line for line in prose if len(line) > 120 and not line.startswith(wide)] == []
    limit = 130 if document == ROOT / "README.md" else 250
    assert document.name in LOOKED_UP or len(text.splitlines()) <= limit


def test_the_site_has_every_document_and_only_small_pictures() -> None:
    """A page that the navigation forgets is found by nobody; a large picture makes every clone slow."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [one.relative_to(ROOT / "docs").as_posix() for one in DOCUMENTS if one.parent != ROOT]
    assert [page for page in pages if page not in navigation] == []
    pictures = (ROOT / "docs" / "pictures").iterdir()
    assert [one.name for one in pictures if one.stat().st_size > 150_000] == []


def test_the_readmes_numbers_are_those_of_a_committed_result() -> None:
    """Each row of the result table names its file, and the file holds the row's numbers."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "benchmarks/results/" in line]
    assert rows
    for row in rows:
        name = re.search(r"benchmarks/results/[\w.-]+\.json", row)
        assert name is not None
        result = json.loads((ROOT / name[0]).read_text())
        shown = [cell.strip() for cell in row.strip("|").split("|")]
        assert f"{result['top1_offline']:.4f}" in shown
        assert f"{result['top1_served']:.4f}" in shown
        assert f"{result['images_per_s']:.0f}" in shown
        assert f"{result['latency_p50_ms']:.0f} / {result['latency_p99_ms']:.0f} ms" in shown
        assert f"{result['mean_batch']:.1f}" in shown
        assert result["commit"][:7] in row
        assert result["date"][:10] in row
