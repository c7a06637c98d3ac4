# SPDX-License-Identifier: Apache-2.0
"""The documentation names what exists, and what exists is named in the documentation."""

import argparse
import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from unit.helpers import event, intent
from zamu import cli
from zamu.config import Config
from zamu.documents import BEARABLE
from zamu.engine.check.rules import HARMLESS, PLAYBOOK_KEYS
from zamu.journal import Entry
from zamu.ledger import Letter, Message, Run, Status
from zamu.rulebooks import COLLECTION

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
ADR = DOCS / "adr"
SRC = ROOT / "src" / "zamu"
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md")]
PAGES += sorted(DOCS.rglob("*.md"))
#: What a page shows as something that its reader makes; it does not exist here.
MADE_BY_THE_READER = {
    "boma.zamu.create_drop_box",
    "event_sources/checks.py",
    "inventory/house",
    "playbooks/create_drop_box.yml",
    "playbooks/roles",
    "playbooks/roles/drop_box/tasks/main.yml",
    "playbooks/roles/verify_drop_box/tasks/main.yml",
    "rulebooks/house.yml",
}
#: Directories of the repository; what begins with one of them in a page is a path of it.
_DIRECTORIES = (
    "bench docs event_sources inventory monitoring playbooks plugins requirements roles rulebooks src tests"
)
TOP = rf"(?:{_DIRECTORIES.replace(' ', '|')})"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)


def text(page: Path) -> str:
    return page.read_text()


def prose(page: Path) -> str:
    """A page without its blocks of code and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S))


def code(page: Path) -> str:
    """Only the blocks of code and the code spans of a page."""
    whole = text(page)
    blocks = re.findall(r"^```.*?^```$", whole, flags=re.M | re.S)
    rest = re.sub(r"^```.*?^```$", "", whole, flags=re.M | re.S)
    return "\n".join([*blocks, *re.findall(r"`[^`\n]+`", rest)])


# --- links and paths -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Forgejo and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", text(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_relative_links_resolve(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text(page), flags=re.M | re.S))
    for link in links:
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


@every_page
def test_paths_of_the_repository_exist(page: Path) -> None:
    found = re.findall(rf"(?<![\w/.$~-])({TOP}/[\w./*-]*)", code(page))
    for path in {one.rstrip("./") for one in found} - MADE_BY_THE_READER:
        if "NAME" in path or "VERB" in path or "NNNN" in path:
            continue
        assert list(ROOT.glob(path)), f"{path} does not exist"


def test_the_docs_that_the_code_names_exist() -> None:
    named = {path for file in SRC.rglob("*.py") for path in re.findall(r"docs/[\w/.-]+\.md", text(file))}
    assert named
    assert all((ROOT / path).exists() for path in named), named


# --- commands ------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    return cli._parser()


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (commands,) = [one for one in parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(commands.choices)


def options(of: argparse.ArgumentParser) -> set[str]:
    return {word for action in of._actions for word in action.option_strings if word.startswith("--")}


@every_page
def test_commands_and_options_of_zamu_exist(page: Path) -> None:
    said = "\n".join(
        [*re.findall(r"^```sh\n(.*?)^```$", text(page), re.M | re.S), *re.findall(r"`[^`\n]+`", text(page))]
    )
    call = r"(?:^|[`/])zamu ((?:--?\w+ ?[\w./$]* )*)([a-z]+)(?=[`\s,])((?: --[\w-]+)*)"
    for line in re.findall(call, said, flags=re.M):
        before, command, after = line
        assert command in subcommands(), f"zamu {command}"
        assert set(re.findall(r"--[\w-]+", before)) <= options(parser()), line
        assert set(after.split()) <= options(subcommands()[command]), line


def test_every_command_and_option_is_documented() -> None:
    reference = text(REFERENCE / "cli.md")
    for name, one in subcommands().items():
        assert f"zamu {name}" in reference, name
        assert one.description, name
        for option in options(one) - {"--help"}:
            assert option in reference, f"{name} {option}"
    for option in options(parser()):
        assert f"`{option}" in reference, option


@cache
def make_targets() -> dict[str, bool]:
    """Every target of the Makefile, and whether it has a help text."""
    found = re.findall(r"^([a-z][a-z-]*):(.*)$", text(ROOT / "Makefile"), flags=re.M)
    return {name: "##" in rest for name, rest in found}


@every_page
def test_make_targets_exist(page: Path) -> None:
    for target in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", code(page), flags=re.M):
        assert target in make_targets(), f"make {target}"


def test_every_make_target_with_a_help_text_is_documented() -> None:
    for target, helped in make_targets().items():
        assert not helped or f"`make {target}`" in text(REFERENCE / "cli.md"), target


def test_the_readme_names_how_to_start_and_how_to_test() -> None:
    for command in ("make run", "make demo", "make test"):
        assert re.search(rf"^{command}\b", text(ROOT / "README.md"), flags=re.M), command


def test_every_field_and_status_of_a_run_is_documented() -> None:
    reference = text(REFERENCE / "cli.md")
    for status in Status:
        assert f"`{status}`" in reference, status
    shown: list[Run | Letter | Entry] = [
        Run("r", 1, 1, intent(), Status.WAITING, None, "", None, None, None, None),
        Letter(1, Message("title"), "", "waiting", 0),
        Entry(1, "am", "pending", {}, None, event("a", received_at="")),
    ]
    for field in {field for one in shown for field in one.as_json()}:
        assert f"`{field}`" in reference, field


# --- configuration -------------------------------------------------------------------------------


def test_the_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_generated_part_that_is_out_of_date_is_noticed(tmp_path: Path) -> None:
    import shutil

    (tmp_path / "event_sources").symlink_to(ROOT / "event_sources")
    shutil.copytree(DOCS, tmp_path / "docs")
    page = tmp_path / "docs" / "reference" / "configuration.md"
    page.write_text(page.read_text().replace("`engine.max_runs`", "`engine.maximum`"))
    command = [sys.executable, str(tmp_path / "docs" / "generate.py")]
    assert subprocess.run([*command, "--check"], capture_output=True, timeout=60, check=False).returncode == 1
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert page.read_text() == text(REFERENCE / "configuration.md")


def test_every_yaml_block_of_zamu_yml_is_a_valid_configuration(tmp_path: Path) -> None:
    """A block that begins with a section of zamu.yml is one, and is read as one."""
    from zamu.config import load

    sections = set(Config.model_fields) - {"root"}
    blocks = [
        block for page in PAGES for block in re.findall(r"^```yaml\n(.*?)^```$", text(page), re.M | re.S)
    ]
    read = 0
    for block in blocks:
        first = re.match(r"(\w+):", block)
        if first is None or first[1] not in sections or "..." in block:
            continue
        if first[1] == "sources" and block.startswith("sources:\n  -"):
            continue
        file = tmp_path / "zamu.yml"
        file.write_text(block)
        load(file)
        read += 1
    assert read >= 5


@every_page
def test_keys_of_zamu_yml_that_pages_name_exist(page: Path) -> None:
    sections = [
        name
        for name in Config.model_fields
        if name in ("intake", "limits", "engine", "guard", "notify", "alarms")
    ]
    for key in re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+)(?:\[\][\w.]*)?`", text(page)):
        if key.endswith((".log", ".json", ".lock", ".yml")):
            continue
        model: Any = Config
        for step in key.split("."):
            assert step in model.model_fields, key
            annotation = model.model_fields[step].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((one for one in inner if hasattr(one, "model_fields")), None)


def test_every_environment_variable_is_documented() -> None:
    used = {
        name
        for directory in (SRC, ROOT / "event_sources", ROOT / "inventory" / "demo")
        for file in directory.rglob("*.*")
        if file.suffix in (".py", ".yml")
        for name in re.findall(r"""["'](ZAMU_[A-Z_]+)["']""", text(file))
    }
    internal = {
        "ZAMU_GATE",
        "ZAMU_RUN_ID",
        "ZAMU_INTENT",
    }  # set by zamu for its own processes, for one call each
    for name in used - internal:
        assert f"`{name}`" in text(REFERENCE / "configuration.md"), name


# --- HTTP ----------------------------------------------------------------------------------------


@cache
def statuses_in_the_code() -> set[str]:
    found: set[str] = {"500"}  # aiohttp's own answer to what nobody foresaw
    for file in SRC.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(text(file))) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func).rpartition(".")[2]
            places = [*call.args[:1]] if name == "Refusal" else []
            if name in ("Response", "json_response"):
                places = [one.value for one in call.keywords if one.arg == "status"]
                if not places:
                    found.add("200")
            for place in places:
                found |= set(re.findall(r"\b[1-5]\d\d\b", ast.unparse(place)))
    return found


def test_http_statuses_are_those_of_the_code() -> None:
    documented = set(re.findall(r"^\| (\d{3})\b", text(REFERENCE / "http.md"), flags=re.M))
    assert documented == statuses_in_the_code()


@every_page
def test_http_statuses_that_pages_name_exist(page: Path) -> None:
    named = re.findall(r"(?:answered|answers|get|gets|with|but) ([2-5]\d\d)\b", prose(page))
    assert set(named) <= statuses_in_the_code()


def test_the_paths_of_the_server_are_documented() -> None:
    found = re.findall(r'"(/\w*)": Route\(', text(SRC / "status" / "page.py"))
    assert found
    for path in found:
        assert f"| `{path}` |" in text(REFERENCE / "http.md"), path


# --- what there is in the house ------------------------------------------------------------------


@every_page
def test_playbooks_and_roles_that_pages_name_exist(page: Path) -> None:
    named = set(re.findall(rf"\b{COLLECTION}\.[a-z]\w+", text(page))) - MADE_BY_THE_READER
    for name in named:
        short = name.rpartition(".")[2]
        places = [
            ROOT / "playbooks" / f"{short}.yml",
            ROOT / "roles" / short,
            ROOT / "plugins" / "callback" / f"{short}.py",
            ROOT / "plugins" / "doc_fragments" / f"{short}.py",
            ROOT / "event_sources" / f"{short}.py",
        ]
        assert any(place.exists() for place in places), name


def test_every_event_source_is_documented() -> None:
    for file in sorted((ROOT / "event_sources").glob("[a-z]*.py")):
        assert f"(../sources/{file.stem}.md)" in text(REFERENCE / "sources.md"), file.name


def test_every_source_has_an_example_of_its_events() -> None:
    """A source that writes {"alert": …, "meta": …} makes `event.alert`, which its page and events.md show."""
    for file in sorted((ROOT / "event_sources").glob("[a-z]*.py")):
        [kind] = [one for one in yaml.safe_load(constant(file, "RETURN")) if one != "group"]
        examples = re.findall(r"```json\n(.*?)```", text(DOCS / "sources" / f"{file.stem}.md"), re.S)
        events = [found for found in map(yaml.safe_load, examples) if kind in found and "meta" in found]
        assert events, f"docs/sources/{file.stem}.md shows no event.{kind}"
        assert all("uuid" in found["meta"] for found in events), file.stem
        assert f"event.{kind}" in text(REFERENCE / "events.md"), kind


def constant(file: Path, name: str) -> str:
    for node in ast.parse(text(file)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    raise AssertionError(f"{file.name} has no {name}.")


def test_every_role_is_in_the_index() -> None:
    for role in sorted((ROOT / "roles").iterdir()):
        assert f"roles/{role.name}/README.md" in text(DOCS / "README.md"), role.name


def test_every_page_is_in_the_index() -> None:
    index = text(DOCS / "README.md")
    for page in DOCS.rglob("*.md"):
        if page.parent != ADR and page != DOCS / "README.md":
            assert f"({page.relative_to(DOCS)})" in index, page.name


@every_page
def test_tests_that_pages_name_exist(page: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", text(page)))
    written = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", text(file), flags=re.M)
    }
    assert named <= written, named - written


def test_what_the_check_allows_of_actions_is_documented() -> None:
    page = text(REFERENCE / "checks.md")
    for word in (*HARMLESS, *PLAYBOOK_KEYS):
        assert f"`{word}`" in page, word


def test_what_the_check_finds_and_bears_is_documented() -> None:
    before_the_table = text(REFERENCE / "checks.md").partition("| check |")[0]
    assert set(re.findall(r"`([a-z-]+)`", before_the_table)) >= BEARABLE


# --- decisions -----------------------------------------------------------------------------------


def records() -> list[Path]:
    return sorted(ADR.glob("[0-9]*.md"))


def test_every_decision_is_in_the_index_with_its_title() -> None:
    index = text(ADR / "README.md")
    assert records()
    for record in records():
        number, title = re.match(r"# (\d{4}): (.+)", text(record)).groups()  # type: ignore[union-attr]
        assert record.name.startswith(f"{number}-")
        assert f"| [{number}]({record.name}) | {title} |" in index, record.name
    assert len(re.findall(r"^\| \[\d{4}\]", index, flags=re.M)) == len(records())


@pytest.mark.parametrize("record", records(), ids=lambda record: record.name)
def test_a_decision_has_its_parts_in_order(record: Path) -> None:
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text(record), flags=re.M)
    assert re.search(r"^Status: \w", text(record), flags=re.M)
    assert re.findall(r"^## (.+)$", text(record), flags=re.M) == ["Context", "Decision", "Consequences"]


def floors() -> list[tuple[int, list[str]]]:
    """ADR 0009's table: the number of each floor and its modules, from left to right."""
    rows = re.findall(r"^\| (\d) \| (.+) \|$", text(ADR / "0009-floors.md"), flags=re.M)
    return [(int(number), re.findall(r"`(\w+)`", modules)) for number, modules in rows]


def imports(file: Path) -> Iterator[str]:
    """The modules directly below `zamu` that a file imports."""
    for node in ast.walk(ast.parse(text(file))):
        if isinstance(node, ast.ImportFrom) and node.module == "zamu":
            yield from (alias.name for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zamu."):
            yield str(node.module).split(".")[1]


def module(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def test_the_floors_are_those_of_the_imports() -> None:
    place = {name: (floor, at) for floor, names in floors() for at, name in enumerate(names)}
    files = [file for file in SRC.rglob("*.py") if not module(file).startswith("__")]
    assert {module(file) for file in files} == set(place)
    for file in files:
        own = module(file)
        for other in set(imports(file)) - {own}:
            assert place[other] < place[own], f"{file.relative_to(SRC)} imports {other}"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads(text(ROOT / "pyproject.toml"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.match(r"[\w-]+", one)[0] for one in wanted}  # type: ignore[index]
    listed = re.findall(
        r"^\| `([\w-]+)` \| [\d.]+ \| .{15,} \|$", text(ADR / "0011-dependencies.md"), flags=re.M
    )
    assert set(listed) == names


# --- figures -------------------------------------------------------------------------------------

FIGURE = re.compile(
    r"(?<![\w.:/-])(\d[\d,.]*)\s?(req/s|requests/s|events/s|lines/s|ms|µs|s|MB|GB|kB|MiB|GiB|KiB)(?![\w/])"
)


def figures(words: str) -> set[tuple[str, str]]:
    """What a text claims as a measured figure, each as its number and unit."""
    return {(number.rstrip(".,").replace(",", ""), unit) for number, unit in FIGURE.findall(words)}


def numbers(value: Any) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def unproven(claims: Iterable[tuple[str, str]], results: Path) -> set[tuple[str, str]]:
    """The figures that no file of results has, rounded to the digits that the claim shows."""
    files = list(results.rglob("*.json")) if results.is_dir() else []
    measured = [number for file in files for number in numbers(json.loads(text(file)))]

    def proven(claim: str) -> bool:
        digits = len(claim.partition(".")[2])
        return any(f"{number:.{digits}f}" == claim for number in measured)

    return {(claim, unit) for claim, unit in claims if not proven(claim)}


def test_figures_are_collected() -> None:
    sample = (
        "It takes 6,705 req/s at 9.4 ms, in 43 MB; 1,500 events/s. Port 8470, 2026-11-22, a 90s cooldown."
    )
    found = figures(sample)
    assert {("6705", "req/s"), ("9.4", "ms"), ("43", "MB"), ("1500", "events/s")} <= found
    assert not {number for number, _ in found} & {"8470", "2026", "22"}


def test_a_figure_without_a_result_is_noticed(tmp_path: Path) -> None:
    claims = figures("6,705 req/s and 43 MB")
    assert unproven(claims, tmp_path / "missing") == claims
    (tmp_path / "intake.json").write_text('{"commit": "abc", "intake": [{"requests per second": 6704.7}]}')
    assert unproven(claims, tmp_path) == {("43", "MB")}


@every_page
def test_every_figure_has_a_result(page: Path) -> None:
    # Code, and what is generated from it, holds defaults, limits and examples, which are no claims.
    claims = re.sub(r"<!-- BEGIN GENERATED.*?<!-- END GENERATED", "", prose(page), flags=re.S)
    assert not unproven(figures(claims), ROOT / "bench" / "results")
