"""The documents say what is so: contracts that are cited exist, links and paths lead somewhere, examples load."""

import hashlib
import re
import tomllib
from pathlib import Path

import pytest

from configs.reading.load import load_config
from tests.sources import PACKAGES, ROOT
from tests.test_arrows import ORDER

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/design.md", "docs/speed.md")
DESIGN = (ROOT / "docs/design.md").read_text(encoding="utf-8")
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # SHA-256 of apache.org's text


def cited_contracts(text: str) -> set[int]:
    """The numbers of the contracts that `text` names: `contract 4`, `contracts 1 to 5`, `contracts 3 and 4`."""
    numbers: set[int] = set()
    for cited in re.findall(r"\bcontracts?((?:(?:\s+to|\s+and|,)?\s+\d+)+)", text, re.IGNORECASE):
        numbers |= {int(number) for number in re.findall(r"\d+", cited)}
    for first, last in re.findall(r"\bcontracts\s+(\d+)\s+to\s+(\d+)", text, re.IGNORECASE):
        numbers |= set(range(int(first), int(last) + 1))
    return numbers


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_links(document: Path) -> list[str]:
    """Targets of links in `document` that are not there: files beside it, and headings in them."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        if re.match(r"https?:", target):
            continue
        if not path.exists() or (anchor and anchor not in map(anchor_of, headings(path.read_text(encoding="utf-8")))):
            broken.append(target)
    return broken


def missing_paths(text: str, root: Path) -> list[str]:
    """Files and folders of the repository that `text` names in backquotes and that are not there."""
    tops = "|".join([*PACKAGES, "tests", "bench", "docs", r"\.ci"])
    named = re.findall(rf"`((?:{tops})/[\w./-]*)`", text)
    return [path for path in named if not (root / path).exists()]


def contracts_of_the_design() -> set[int]:
    return {int(found[1]) for heading in headings(DESIGN) if (found := re.match(r"Contract (\d+): ", heading))}


def test_the_contracts_are_numbered_without_a_gap() -> None:
    assert contracts_of_the_design() == set(range(1, 10))


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "bench"])
def test_every_contract_that_is_cited_is_in_the_design(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file != Path(__file__):
            assert cited_contracts(text) <= contracts_of_the_design(), file.relative_to(ROOT)
            assert "DESIGN:" not in text, f"{file.relative_to(ROOT)}: the design is docs/design.md, with contracts"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert broken_links(ROOT / name) == []
    assert missing_paths(text, ROOT) == []
    assert cited_contracts(text) <= contracts_of_the_design()


def test_every_document_is_reached_from_the_readme() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"docs/design.md", "docs/speed.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"} <= set(links)


def test_the_design_s_config_is_one(tmp_path: Path) -> None:
    [config] = re.findall(r"^```yaml\n(.*?)^```$", DESIGN, re.MULTILINE | re.DOTALL)
    (tmp_path / "pokemon.yaml").write_text(config)
    assert load_config(tmp_path / "pokemon.yaml").name == "pokemon"


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_the_house_is_drawn_with_every_package(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "`configs ← store ← slurm ← launcher` and `store ← train`" in text
    assert re.findall(rf"^({'|'.join(PACKAGES)})/ ", text, re.MULTILINE) == list(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wings_are_drawn_in_their_order(package: str) -> None:
    drawn = re.search(rf"^{package}/ .*?(?=^\S)", DESIGN, re.MULTILINE | re.DOTALL)
    assert drawn is not None
    without_contents = re.sub(r"\(.*?\)", "", drawn[0])
    wings = [wing for wing in ORDER[package].split() if wing != "__main__"]
    named = [word for word in re.findall(r"\w+", without_contents) if word in wings]
    assert named == wings, "docs/design.md and ORDER in tests/test_arrows.py differ"


def test_the_license_is_apache_2() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_changelog_begins_with_what_is_to_come_and_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert versions[:2] == ["Unreleased", project["version"]]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("Contract 4: the run directory.", {4}),
        ("see contracts 1 to 3, and contract 12", {1, 2, 3, 12}),
        ("contracts 2 and 5", {2, 5}),
        ("a contract with 3 parties", set()),
    ],
)
def test_cited_contracts_are_found(text: str, numbers: set[int]) -> None:
    assert cited_contracts(text) == numbers


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, with 1 comma\n```\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#a-heading-with-1-comma) [c](https://example.org/x) `store/` `other/x.py`\n"
    bad = "[d](none.md) [e](other.md#no-heading) `store/none.py`\n"
    (tmp_path / "store").mkdir()
    (tmp_path / "page.md").write_text(good + bad)
    assert broken_links(tmp_path / "page.md") == ["none.md", "other.md#no-heading"]
    assert missing_paths(good + bad, tmp_path) == ["store/none.py"]
