"""What a visitor meets: dependencies, licence, links, commands, citation; and what must never be committed."""

import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes


def text_of(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_requirements_and_project_agree():
    lines = [line for line in text_of("requirements.txt").splitlines() if line and not line.startswith("#")]
    assert lines[-1] == "-e ."
    assert lines[:-1] == tomllib.loads(text_of("pyproject.toml"))["project"]["dependencies"]


def test_the_licence_is_mit_everywhere():
    licence = " ".join(text_of("LICENSE").split())
    assert licence.startswith("MIT License")
    assert "Permission is hereby granted, free of charge" in licence and 'THE SOFTWARE IS PROVIDED "AS IS"' in licence
    assert tomllib.loads(text_of("pyproject.toml"))["project"]["license"] == "MIT"


def test_the_paper_and_its_authors_are_cited():
    citation = yaml.safe_load(text_of("CITATION.cff"))
    paper = citation["preferred-citation"]
    authors = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert authors == ["Rundong Luo", "Wenjing Wang", "Wenhan Yang", "Jiaying Liu"]
    assert paper["title"] == "Similarity Min-Max: Zero-Shot Day-Night Domain Adaptation" and paper["year"] == 2023
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def pages():
    return ["README.md", *sorted(path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.glob("docs/**/*.md"))]


LINK = re.compile(r"""!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+"[^"]*")?\)|(?:src|href|srcset)="([^"]+)\"""")


def relative_links(text):
    targets = [markdown or html for markdown, html in LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:|#|//", target)]


def test_links_are_recognised():
    text = '[a](docs/a.md#part) ![b](b.png "title") [c](https://x.org) [d](#here) <img src="e.png"> [f](mailto:a@b.c)'
    assert relative_links(text) == ["docs/a.md#part", "b.png", "e.png"]


@pytest.mark.parametrize("page", pages())
def test_every_relative_link_leads_to_a_file(page):
    folder = (REPOSITORY / page).parent
    missing = [link for link in relative_links(text_of(page)) if not (folder / unquote(link.split("#")[0])).exists()]
    assert not missing


COMMAND = re.compile(r"\bpython3?\s+(?:(-m)\s+)?([\w./-]+)")


def source_of(is_module, target):
    """The file that a `python ...` command runs, or None for a module of another project."""
    if not is_module:
        return REPOSITORY / target if target.endswith(".py") else None
    if target.split(".")[0] not in ("darkening", "minmax"):
        return None
    return REPOSITORY / f"{target.replace('.', '/')}.py"


@pytest.mark.parametrize("page", pages())
def test_every_python_command_names_a_script_that_is_there(page):
    found = [source_of(*command) for command in COMMAND.findall(text_of(page))]
    sources = [source for source in found if source is not None]
    assert not [str(source.relative_to(REPOSITORY)) for source in sources if not source.exists()]
    assert sources or page != "README.md"


def repository_files():
    """Files that are tracked, or would be with `git add .`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [REPOSITORY / name for name in listed.stdout.decode().split("\0") if name]
    return [file for file in files if file.is_file()]


MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:wo" + r"rk|ho" + r"me|ro" + r"ot|Us" + r"ers|t" + r"mp)/\w")


def test_no_file_holds_a_path_of_one_machine():
    assert MACHINE_PATH.search("x = '/" + "home/" + "me'") and not MACHINE_PATH.search("https://x.org/" + "home/me")
    holding = [file for file in repository_files() if MACHINE_PATH.search(file.read_bytes().decode("utf-8", "ignore"))]
    assert not [file.relative_to(REPOSITORY).as_posix() for file in holding]


def test_no_file_is_large():
    sizes = {file.relative_to(REPOSITORY).as_posix(): file.stat().st_size for file in repository_files()}
    assert "pyproject.toml" in sizes
    assert not {name: size for name, size in sizes.items() if size > LARGEST}


def test_what_a_run_makes_is_not_committed():
    names = [file.relative_to(REPOSITORY) for file in repository_files()]
    made = {"__pycache__", "runs", ".venv", ".mypy_cache", ".hypothesis"}
    assert not [name.as_posix() for name in names if made.intersection(name.parts) or name.suffix in (".pt", ".pth")]
