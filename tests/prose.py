"""Lists prose to rewrite: sentences of more than 25 words, and first lines of docstrings that don't say what is done.

    python -m tests.prose                  # counts by file
    python -m tests.prose docs/search.md   # the sentences of some files, with their lines
    python -m tests.prose --most 30

Read are Markdown pages, docstrings, and comments of `params.yaml`, `dvc.yaml` and `presets/`. A code span is a word; a
table's cell and a list's item are texts of their own. A first line should have a verb or a noun of the field;
both lists are below.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
MOST = 25
NOUNS = """
accuracy adam address affinity alignment anchor annotation argument array artifact attention attribute average axis
backbone bag bar base batch benchmark bit block box bucket bundle byte cache caption card cell chance change chart
checkpoint checksum chunk class client cluster code codebook colour column command comment commit concept context
correspondence cosine cost count croissant csv curve cusa data dataset default dependency detection detector
dictionary digest dimension directory document download dtype embedding encoder encoding ensemble entry epoch error
evaluation example exchange exit factor feature field figure file fingerprint fold folder form format forward fraction
function gain gpu gradient graph group hash hdf5 head header help hit id image import index input instance interval
iou item job json key kind label language layer length licence line link list location lock log loss machine manifest
map mark markdown mask matrix mean measure megabyte memory message metadata metric mistake mode model module moment
name ndcg negative network noise norm number object option order output package page pair parameter part path phrase
picture piece pipeline pixel place plot pool position product progress project proposal query rank rate ratio recall
recipe record region registry report repository request result roi row rule run sample scale scene schema score script
search seed sentence server set setting shape shard share side size space spacy speech speed split stage state stem
step store stream string study style sum table task temperature tensor term test text thread threshold tick time token
tokenizer tolerance training transformer tree triplet type unit url value vector verdict version view vocabulary
weight width word worker
""".split()  # noqa: SIM905
VERBS = """
accept add align answer apply ask average begin bind bring build call carry change check choose clean close collect
combine compare compute continue convert copy count create cut decode describe detect divide download draw drop embed
encode end estimate evaluate exit expect explain export extract fail fetch fill find finish fit fix follow forget
freeze gather generate get give go group hash hold import inspect install iterate join keep kill know lead learn leave
let link list load lock look make map mark match mean measure merge move name normalise open order pack pad parse pass
pick plan predict prefetch print project prune put raise rank read recover reduce refuse release remove repeat replace
require resize restore return reuse rewrite round run save say scale score search select send set share show shuffle
skip sort split stack start stop store stream sum take tell test time tokenize train translate try tune turn unpack
update use validate verify wait walk want warn watch wrap write yield
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Finding:
    """A sentence, or a first line, that should be read again."""

    path: Path
    line: int
    words: int
    text: str
    kind: str


def findings(path: Path, most: int = MOST) -> Iterator[Finding]:
    """What is found in one file of the project."""
    text = path.read_text(encoding="utf-8")
    parts = {".md": _markdown, ".py": _docstrings}.get(path.suffix, _comments)(text)
    for line, part, is_docstring in parts:
        for sentence in _sentences(part):
            if (count := len(sentence.split())) > most:
                yield Finding(path, line, count, sentence, "long")
        first = part.strip().split("\n")[0]
        if is_docstring and not _says_something(first):
            yield Finding(path, line, len(first.split()), first, "first line")


def files() -> list[Path]:
    """The files of the project that people read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = (name for name in listed.splitlines() if not name.startswith(("LICENSE", "tests/data")))
    return [ROOT / name for name in names if name.endswith((".md", ".py")) or _is_yaml(name)]


def _is_yaml(name: str) -> bool:
    return name in ("params.yaml", "dvc.yaml") or name.startswith("presets/")


def _markdown(text: str) -> Iterator[tuple[int, str, bool]]:
    """Paragraphs, items and cells with their lines; code, mathematics and headings left out."""
    paragraph: list[str] = []
    start, fenced = 1, False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fence = line.lstrip().startswith("```")
        begins = bool(re.match(r"\s*([-*>|#]|\d+\.)", line))
        if paragraph and (fence or fenced or begins or not line.strip()):
            yield start, " ".join(paragraph), False
            paragraph = []
        fenced ^= fence
        if fence or fenced or not line.strip() or line.startswith("#"):
            continue
        if line.lstrip().startswith("|"):
            yield from ((number, cell.strip(), False) for cell in line.strip().strip("|").split("|"))
            continue
        if not paragraph:
            start = number
        paragraph.append(re.sub(r"^\s*([-*>]|\d+\.)\s+", "", line).strip())


def _docstrings(text: str) -> Iterator[tuple[int, str, bool]]:
    """Docstrings, a paragraph or a parameter each, of which the first has the first line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                line = node.body[0].lineno
                parts = re.split(r"\n\n|\n-+\n|\n(?=[a-z_][\w, ]* : )", docstring)
                for place, part in enumerate(parts):
                    if not re.match(r"\s{4}", part):
                        yield line, part, place == 0 and not isinstance(node, ast.Module)


def _comments(text: str) -> Iterator[tuple[int, str, bool]]:
    """Comments of YAML."""
    for number, line in enumerate(text.splitlines(), 1):
        if (found := re.search(r"(?:^|\s)#\s?(.*)", line)) is not None:
            yield number, found[1], False


def _sentences(text: str) -> list[str]:
    plain = re.sub(r"```.*?```", " ", text, flags=re.S)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    plain = re.sub(r"`+[^`]+`+", "CODE", " ".join(plain.split()))
    return [part.strip() for part in re.split(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_`A-Z0-9])", plain) if part.strip()]


def _says_something(line: str) -> bool:
    words = {word for each in re.findall(r"[A-Za-z][A-Za-z0-9@]*", line.lower()) for word in _stems(each)}
    return "`" in line or bool(words & (set(NOUNS) | set(VERBS)))


def _stems(word: str) -> set[str]:
    found = {word}
    for end, instead in (
        ("ies", "y"),
        ("es", ""),
        ("s", ""),
        ("ing", ""),
        ("ing", "e"),
        ("ed", ""),
        ("ed", "e"),
        ("d", ""),
    ):
        if word.endswith(end):
            found.add(word.removesuffix(end) + instead)
    return found


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--most", type=click.IntRange(1), default=MOST, show_default=True, help="Words of a sentence.")
def main(paths: tuple[Path, ...], most: int) -> None:
    """Print the findings of PATHS, or of the whole project how many each file has."""
    total = {"long": 0, "first line": 0}
    for path in [path.absolute() for path in paths] or files():
        found = list(findings(path, most))
        for each in found:
            total[each.kind] += 1
            if paths:
                click.echo(f"{path.relative_to(ROOT)}:{each.line}: {each.kind}, {each.words} words: {each.text}")
        if found and not paths:
            longs = sum(each.kind == "long" for each in found)
            click.echo(f"{longs:4d} long, {len(found) - longs:3d} first lines  {path.relative_to(ROOT)}")
    click.echo(
        f"{total['long']} sentences of more than {most} words, {total['first line']} first lines that say little"
    )


if __name__ == "__main__":
    main()
