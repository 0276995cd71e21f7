"""The `selfalign` command: one thin command a stage, named as in `dvc.yaml`.

A command reads `params.yaml` and the machine's settings, knows where artifacts lie (`pipeline.places`) and calls the
stage's `run`. Stages are imported when they are called, so that ``selfalign --help`` answers at once.
"""

import errno
import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click
from click.core import ParameterSource

from manifests.errors import InputError
from manifests.schema import SPLITS
from pipeline import places
from pipeline.machine import Machine

# Whose checkpoints `import-model` reads (`train.importing.KINDS`).
MODELS = ("vsrn", "camera", "vse-infinity", "aladin", "selfalign-vsrn", "selfalign-camera")

if TYPE_CHECKING:
    from pipeline.params import Params
    from train.settings import RunSettings

if TYPE_CHECKING:
    from extract.engine.maker import Workers

F = TypeVar("F", bound=Callable[..., Any])

# Threads that spin while they wait make small operators 8 to 15 times slower as soon as another process wants the
# same cores; OpenMP reads this when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def read_params() -> "Params":
    """`params.yaml`; its schema has all bases and losses, and so imports torch."""
    from pipeline.params import read_params as read

    return read()


class _Group(click.Group):
    """Ends with one line where it is the user who can do something about it; any other error is a bug of ours."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each; click would cut it."""
        rows = []
        for name in self.list_commands(context):
            summary = " ".join((self.commands[name].help or "").split("\n\n")[0].split())
            rows.append((name, summary.removesuffix(".")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except InputError as error:
            _end(str(error))
        except KeyboardInterrupt:
            _end(_interrupted(context.invoked_subcommand), 130)
        except BrokenPipeError:
            with suppress(OSError):  # so that Python's last flush says nothing
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end("nobody reads this command's output any more")
        except OSError as error:
            if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            path = os.fsdecode(error.filename)
            _end(str(InputError(str(error.strerror), where=path, fix="change who may read and write there")))


def _end(message: str, code: int = 1) -> NoReturn:
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    sys.exit(code)


def _interrupted(command: str | None) -> str:
    """What Ctrl-C leaves of a command, and how it goes on."""
    if command in ("regions", "text_features", "teachers", "pack", "tokens", "import"):
        return "interrupted; the same command again goes on: finished shards are kept"
    if command in ("train", "study"):
        return "interrupted; the same command again goes on from the last state that was saved, after an epoch at most"
    return "interrupted; start the same command again"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="selfalign")
def main() -> None:
    """SelfAlign: fast and accurate image-text retrieval.

    `dvc repro` runs the pipeline, `dvc repro -s regions@demo` one stage. Start with `selfalign add` for pictures of
    your own, `selfalign metrics` for what the runs reach, and `selfalign doctor` where something is wrong.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)


def _of_stage(what: str) -> Callable[[F], F]:
    """The data set or run of a stage's command. DVC tells it in DVC_STAGE ("regions@demo"), and no shell reads it."""

    def key(context: click.Context, parameter: click.Parameter, value: str) -> str:
        from_environment = context.get_parameter_source(what) is ParameterSource.ENVIRONMENT
        return value.rpartition("@")[2] if from_environment else value

    return click.argument(what, envvar="DVC_STAGE", callback=key)


@main.command()
def scenes() -> None:
    """Draw the demo's pictures and describe them."""
    from demo.scenes.stage import run

    run(settings=read_params().scenes, out=places.SCENES)


@main.command()
def detector() -> None:
    """Train the demo's detector (frozen: its weights are committed)."""
    from demo.detector.training import run

    Machine.from_environment().torch_device()
    run(settings=read_params().detector, out=places.DEMO_WEIGHTS)


@main.command()
@_of_stage("dataset")
def manifest(dataset: str) -> None:
    """Check DATASET's pictures and captions, and list them."""
    from extract.exchange.manifest import run as run_imported
    from extract.text.scripts import SAMPLE, require_cut
    from extract.text.words import load_language
    from manifests.manifest import run
    from manifests.tables import Manifest

    settings = read_params().dataset(dataset)
    source, out = settings.source, places.manifest(dataset)
    language = settings.tokens.language
    nlp, _ = load_language(language)  # the stage of words would stop at it, after hours of regions
    if source.imported:
        given = settings.regions.given | {"precision": settings.regions.precision}
        run_imported(**source.model_dump(exclude={"pictures", "duplicates", "watch", "boxes"}), **given, out=out)
    else:
        run(**source.model_dump(exclude={"pictures", "watch"}), out=out)
    made = Manifest.open(out)
    if settings.tokens.vocabulary is None:
        require_cut(nlp, made.texts(0, min(SAMPLE, made.num_captions)), language)


@main.command()
@click.argument("dataset")
@click.option("--split", type=click.Choice(SPLITS))
@click.option("--id", help="The one image of this id.")
@click.option("--count", type=click.IntRange(0), default=20, show_default=True, help="Images; 0: all.")
@click.option("--captions", is_flag=True, help="Their captions too.")
def rows(dataset: str, **asked: Any) -> None:
    """Print rows of DATASET's manifest, as a table or JSON Lines."""
    from manifests.tables import Manifest
    from pipeline.rows import as_json, as_table, chosen

    found = chosen(Manifest.open(places.manifest(dataset)), **asked)
    for line in (as_table if sys.stdout.isatty() else as_json)(found):
        click.echo(line)


@main.command()
@click.argument("dataset")
def check(dataset: str) -> None:
    """List the pictures of DATASET that changed since its manifest.

    Hashes the pictures, or the imported files, again: DVC doesn't look at them. Where some were changed on purpose:
    dvc repro -f manifest@DATASET
    """
    from extract.stages.import_regions import changed_files
    from manifests.checking import changed_pictures
    from manifests.tables import Manifest

    settings, place = read_params().dataset(dataset), places.manifest(dataset)
    source, listed = settings.source, Manifest.open(place)
    if source.imported:
        wrong = list(changed_files(place, source.images, settings.regions))
        what = "files"
    else:
        wrong = [(str(source.images / row.path), problem) for row, problem in changed_pictures(listed, source.images)]
        what = "pictures"
    for path, problem in wrong:
        click.echo(f"{path}: {problem}")
    again = f"; restore them, or `dvc repro -f manifest@{dataset}`" if wrong else ""
    click.echo(f"{dataset}: {len(wrong) or 'no'} {what} changed, of {len(listed):,} images{again}")
    sys.exit(bool(wrong))


@main.command()
@_of_stage("dataset")
def regions(dataset: str) -> None:
    """Extract the regions of DATASET's pictures, or import them."""
    settings, machine = read_params().dataset(dataset), Machine.from_environment()
    with _workers(machine) as workers:
        common = {
            "dataset": dataset,
            "manifest": places.manifest(dataset),
            "images": settings.source.images,
            "settings": settings.regions,
            "out": places.regions(dataset),
            "readers": machine.readers,
            "workers": workers,
            "about": settings.about,
        }
        if settings.source.imported:
            from extract.stages.import_regions import run as run_imported

            run_imported(**common, staging=machine.staging)
            return

        from extract.stages.regions import run

        device = "cpu" if workers else machine.torch_device()
        run(**common, cache=machine.cache, device=device, batch_size=machine.batch, exact=machine.exact)
    _prune(machine)


def _workers(machine: Machine) -> "AbstractContextManager[Workers | None]":
    """The workers that make stores, or None: this process does."""
    from pipeline.cluster import open_workers

    return open_workers(machine)


def _prune(machine: Machine) -> None:
    from extract.engine.cache import prune

    prune(machine.cache, machine.cache_gb * 1e9)


@main.command()
@_of_stage("dataset")
def tokens(dataset: str) -> None:
    """Split DATASET's captions into words and word pieces."""
    from extract.stages.tokens import run

    settings, machine = read_params().dataset(dataset).tokens, Machine.from_environment()
    with _workers(machine) as workers:
        run(
            dataset=dataset,
            manifest=places.manifest(dataset),
            settings=settings,
            out=places.tokens(dataset),
            staging=machine.staging,
            workers=workers,
        )


@main.command("text_features")
@_of_stage("dataset")
def text_features(dataset: str) -> None:
    """Run a frozen text encoder over DATASET's captions."""
    from extract.stages.text_features import run

    settings, machine = read_params().text_feature(dataset), Machine.from_environment()
    with _workers(machine) as workers:
        run(
            dataset=dataset,
            tokens=places.tokens(dataset),
            settings=settings,
            out=places.text_features(dataset),
            cache=machine.cache,
            device="cpu" if workers else machine.torch_device(),
            batch_size=machine.encode_batch,
            workers=workers,
            exact=machine.exact,
        )
    _prune(machine)


@main.command()
@_of_stage("dataset")
def teachers(dataset: str) -> None:
    """Embed DATASET with uni-modal teachers, for soft labels."""
    from extract.stages.teachers import run

    params, machine = read_params(), Machine.from_environment()
    settings = params.teacher(dataset)
    with _workers(machine) as workers:
        run(
            dataset=dataset,
            manifest=places.manifest(dataset),
            regions=places.regions(dataset),
            images=params.image_roots[dataset],
            settings=settings,
            out=places.teachers(dataset),
            cache=machine.cache,
            staging=machine.staging,
            device="cpu" if workers else machine.torch_device(),
            batch_size=machine.batch,
            caption_batch=machine.encode_batch,
            readers=machine.readers,
            workers=workers,
            exact=machine.exact,
        )
    _prune(machine)


@main.command()
@_of_stage("dataset")
def pack(dataset: str) -> None:
    """Pack DATASET's regions and captions into WebDataset shards."""
    from extract.stages.pack import run

    settings, machine = read_params().pack(dataset), Machine.from_environment()
    with _workers(machine) as workers:
        run(
            dataset=dataset,
            manifest=places.manifest(dataset),
            regions=places.regions(dataset),
            tokens=places.tokens(dataset),
            settings=settings,
            out=places.pack(dataset),
            staging=machine.staging,
            workers=workers,
        )


@main.command()
@_of_stage("run")
def train(run: str) -> None:
    """Train RUN and keep its best epoch."""
    settings, machine = read_params().run(run), Machine.from_environment()
    if machine.processes > 1 and "WORLD_SIZE" not in os.environ:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={machine.processes}"]
        os.execv(sys.executable, [sys.executable, *launcher, "-m", "pipeline.cli", "train", run])

    from eval.validation import validate
    from train.train import run as train_run

    train_run(
        name=run,
        manifest=places.manifest(settings.dataset),
        **_features(settings),
        settings=settings,
        validate=lambda model, data: validate(model, data, machine.encode_batch),
        out=places.model(run),
        curves=places.curves(run),
        teachers=_teachers(settings),
        staging=machine.staging,
        device=machine.torch_device(),
        checkpoint_minutes=machine.checkpoint_minutes,
        tensorboard=machine.tensorboard,
        resident=machine.resident,
        cache=machine.cache,
    )
    _prune(machine)


@main.command()
@_of_stage("run")
def evaluate(run: str) -> None:
    """Evaluate RUN on a split of its data set."""
    import json

    from eval.evaluate import run as evaluate_run
    from eval.figures import FIGURES, evaluation_text

    params, machine = read_params(), Machine.from_environment()
    settings = params.run(run)
    dataset = settings.dataset
    made = evaluate_run(
        name=run,
        manifest_dir=places.manifest(dataset),
        **_features(settings),
        model=places.model(run),
        settings=params.evaluate,
        device=machine.torch_device(),
        batch_size=machine.encode_batch,
        out=places.evaluation(run),
        metrics=places.metrics(run),
        correspondence=places.correspondence(run),
        pieces=settings.text.pieces,
    )
    figures = made or json.loads((places.evaluation(run) / FIGURES).read_text(encoding="utf-8"))
    click.echo(evaluation_text(run, dataset, figures))


@main.command()
@_of_stage("ensemble")
def ensemble(ensemble: str) -> None:
    """Evaluate the mean scores of ENSEMBLE's runs."""
    from eval.ensemble import run

    params = read_params()
    run(
        name=ensemble,
        runs=params.ensemble(ensemble),
        runs_dir=places.RUNS,
        settings=params.evaluate,
        out=places.ensemble(ensemble),
    )


@main.command()
@_of_stage("study")
def study(study: str) -> None:
    """Train and evaluate the runs of STUDY, as one table."""
    from eval.study.stage import run

    machine = Machine.from_environment()
    click.echo(run(**study_work(study, machine), out=places.study(study)))
    _prune(machine)


def study_work(study: str, machine: Machine) -> dict[str, Any]:
    """The fields of `eval.study.stage.Study` of a study of params.yaml, without its points."""
    params = read_params()
    settings = params.study(study)
    dataset = settings.dataset
    return {
        "name": study,
        "settings": settings,
        "base": params.run(settings.run),
        "manifest": places.manifest(dataset),
        "regions": places.regions(dataset),
        "tokens": places.tokens(dataset),
        "text_features": places.text_features(dataset) if settings.reads == "text_features" else None,
        "teachers": places.teachers(dataset) if settings.labels == "teachers" else None,
        "split": params.evaluate.split,
        "rerank": params.evaluate.rerank,
        "device": machine.torch_device(),
        "batch_size": machine.encode_batch,
        "staging": machine.staging,
        "cache": machine.cache,
        "resident": machine.resident,
        "checkpoint_minutes": machine.checkpoint_minutes,
    }


@main.command()
def report() -> None:
    """Draw the pages that compare all runs."""
    from eval.report.report import run
    from pipeline.commit import current_commit

    params = read_params()
    run(
        runs={name: settings.model_dump() for name, settings in params.runs.items()},
        runs_dir=places.RUNS,
        data_dir=places.DATA,
        image_roots=params.image_roots,
        ensembles=params.ensembles,
        ensembles_dir=places.ENSEMBLES,
        studies=params.studies,
        studies_dir=places.STUDIES,
        benchmarks=places.BENCHMARKS,
        commit=current_commit(),
        settings=params.report,
        out=places.REPORT,
    )


@main.command()
def metrics() -> None:
    """Print the recalls of all runs and ensembles as a table.

    Below it stands what they show, and where the report is.
    """
    from eval.report.metrics_table import metrics_table

    params = read_params()
    runs = {name: settings.model_dump() for name, settings in params.runs.items()}
    click.echo(metrics_table(runs, places.RUNS, params.ensembles, places.ENSEMBLES))
    page = places.REPORT / "index.html"
    if page.exists():
        click.echo(f"\nreport: {page.absolute()}")
        click.echo("next: selfalign index RUN DATASET, then selfalign serve; selfalign add for pictures of your own")


@main.command("import-model")
@click.argument("kind", type=click.Choice(MODELS))
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("run")
@click.option("--vocabulary", type=click.Path(path_type=Path), help="That FILE's words have: .json or .pkl.")
def import_model(kind: str, file: Path, run: str, vocabulary: Path | None) -> None:
    """Import a published checkpoint FILE as the model of RUN.

    FILE is one that the authors of KIND published. RUN says the sizes, and on which data set: docs/training.md. Then
    `dvc commit train@RUN`.
    """
    from eval.validation import validate
    from train.importing import run as import_run

    settings, machine = read_params().run(run), Machine.from_environment()
    found = import_run(
        kind=kind,
        file=file,
        name=run,
        manifest=places.manifest(settings.dataset),
        **_features(settings),
        settings=settings,
        validate=lambda model, data: validate(model, data, machine.encode_batch),
        out=places.model(run),
        curves=places.curves(run),
        vocabulary=vocabulary,
        device=machine.torch_device(),
    )
    for note in found.notes:
        click.echo(note)
    click.echo(f"{places.model(run)}: R@sum {found.recalls['rsum']:.1f} on the validation split")
    click.echo(f"next: dvc commit -f train@{run}; dvc repro evaluate@{run}")


@main.command()
@click.argument("name")
@click.option("--images", type=click.Path(path_type=Path), help="The folder of the pictures.")
@click.option(
    "--captions", type=click.Path(path_type=Path), help="A captions file, or a folder of them: docs/captions.md."
)
@click.option(
    "--features",
    type=(str, click.Path(path_type=Path)),
    metavar="FORMAT PATH",
    help="Region features instead of pictures: docs/exchange.md.",
)
@click.option("--boxes", help="scan's boxes: xyxy, xywh, relative_xyxy or relative_xywh. Default: as the numbers say.")
@click.option("--sizes", help="scan's sizes of pictures: wh (default) or hw.")
@click.option("--language", help="Of the captions: a spaCy pipeline, or blank:CODE. Default: found out.")
@click.option("--skip", is_flag=True, help="Leave out what can't be used: rows, captions, pictures that aren't there.")
def add(name: str, **given: Any) -> None:
    """Add a data set NAME to params.yaml, with a run that suits it.

    Says what was understood and what to run next. Nothing is extracted yet.
    """
    from pipeline.adding import run

    machine = Machine.from_environment()
    click.echo(run(name=name, **given, device=machine.torch_device(), staging=machine.staging))


@main.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Don't ask.")
def remove(name: str, yes: bool) -> None:
    """Remove the data set NAME and its runs, never its pictures.

    Entries in params.yaml, stores and runs go; they are listed first. DVC's cache and SELFALIGN_CACHE still hold them:
    docs/space.md.
    """
    from pipeline.removing import Removal, run

    def agreed(found: Removal) -> bool:
        click.echo(f"{name}: this {'is' if yes else 'would be'} removed\n{found}")
        return yes or click.confirm("Remove it?")

    click.echo(f"{name} is removed" if run(name, agreed) else "nothing was removed")


@main.command("import")
@click.argument("format")
@click.argument("images", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--captions", type=click.Path(path_type=Path), help="Default: IMAGES itself, for scan, store and wds.")
@click.option("--boxes", help="scan's boxes: xyxy, xywh, relative_xyxy or relative_xywh.")
@click.option("--sizes", help="scan's sizes of pictures: wh (default) or hw.")
@click.option("--info", is_flag=True, default=None, help="Read classes from bua-npz's pickled info, arrays alone.")
@click.option("--dtype", help="Of base64 features: float32 (default), float16 or float64.")
@click.option("--precision", help="Of the features in the store: float16 (default) or float32.")
@click.option("--images-per-shard", type=int, help="Images a shard of the store holds.")
@click.option("--missing", help="Captions of images without regions: refuse (default) or skip.")
@click.option("--unreadable", help="Broken and repeated rows, captions without a word: refuse (default) or skip.")
def import_(format: str, images: Path, out: Path, captions: Path | None, **options: Any) -> None:
    """Import regions and captions of FORMAT into the folder OUT.

    Reads IMAGES and writes OUT/manifest and OUT/regions; OUT must be new. A data set with that `source.format` in
    params.yaml does the same as stages: docs/exchange.md. So does OUT itself, once
    `selfalign add NAME --features store OUT` has made it one.
    """
    from extract.exchange import manifest
    from extract.stages import import_regions as regions
    from extract.stores.regions import RegionStore
    from manifests.files import whole_folder
    from manifests.left_out import FILE as LEFT_OUT
    from manifests.locks import sole_writer
    from pipeline.options import keys_as_options, read_options

    given = {name: value for name, value in options.items() if value is not None}
    source, settings = read_options({"format": format, "images": images, "captions": captions or images}, given)
    machine = Machine.from_environment()
    with keys_as_options(), sole_writer(out, f"import into {out}"):
        if out.exists():
            raise InputError("it is there already", where=out, fix="name a new folder, or remove this one")
        with whole_folder(out) as folder:
            facts = source.model_dump(exclude={"pictures", "duplicates", "watch", "boxes"}) | settings.given
            facts |= {"precision": settings.precision}
            manifest.run(**facts, listing=out.with_name(f"{out.name}-refused.jsonl"), out=folder / "manifest")
            regions.run(
                dataset=out.name,
                manifest=folder / "manifest",
                images=images,
                settings=settings,
                out=folder / "regions",
                staging=machine.staging,
                readers=machine.readers,
                check=False,
            )
    store = RegionStore(out / "regions")
    listed = out / "manifest" / LEFT_OUT
    left_out = f"; {len(listed.read_bytes().splitlines()):,} left out: {listed}" if listed.exists() else ""
    click.echo(f"{out}: {len(store):,} images, {store.num_boxes.sum():,} regions of {store.dim:,} numbers{left_out}")


@main.command()
@click.argument("format")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--drop-captions", is_flag=True, help="scan: leave out an image's captions after the fifth.")
def export(format: str, data: Path, out: Path, drop_captions: bool) -> None:
    """Export a data set's folder DATA to the folder OUT in FORMAT.

    DATA is for instance data/demo; OUT must be new.
    """
    from extract.exchange.export import run

    run(
        format=format,
        dataset=data.absolute().name,
        manifest=data / "manifest",
        regions=data / "regions",
        tokens=data / "tokens",
        out=out,
        drop_captions=drop_captions,
    )
    names = sorted(path.name for path in out.iterdir())
    click.echo(f"{out}: {', '.join(names[:8])}{f' and {len(names) - 8:,} more' if len(names) > 8 else ''}")


@main.command()
@click.argument("run")
@click.option(
    "--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timings are the medians of these."
)
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/RUN/cost.json, which the report shows.")
def cost(run: str, repeats: int, out: Path | None) -> None:
    """Time encoding and search with RUN's model on this machine.

    Beside them stands what scoring every pair would take. The figures are written as JSON too.
    """
    from eval.cost import run as measure
    from eval.cost import table

    params, machine = read_params(), Machine.from_environment()
    settings = params.run(run)
    dataset = settings.dataset
    found = measure(
        name=run,
        manifest=places.manifest(dataset),
        **_features(settings),
        model=places.model(run),
        split=params.evaluate.split,
        device=machine.torch_device(),
        repeats=repeats,
        rerank=params.evaluate.rerank,
        figures=places.figures(run),
        out=out or places.cost(run),
        pieces=settings.text.pieces,
    )
    click.echo(table(found))


@main.command()
@click.argument("run")
@click.argument("dataset")
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="May be given twice. Default: all.")
@click.option(
    "--kind",
    type=click.Choice(("exact", "hnsw", "ivf")),
    default="exact",
    show_default=True,
    help="hnsw and ivf need FAISS.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Default: indexes/RUN-DATASET.")
def index(run: str, dataset: str, splits: tuple[str, ...], kind: str, out: Path | None) -> None:
    """Embed DATASET with RUN's model, for `selfalign search`.

    The index holds the embeddings of its images and captions.
    """
    from eval.search.index import run as make
    from pipeline.searching import source

    machine = Machine.from_environment()
    summary = make(
        source=source(read_params(), run, dataset),
        splits=splits or SPLITS,
        kind=kind,
        out=out or places.index(run, dataset),
        device=machine.torch_device(),
        batch_size=machine.encode_batch,
    )
    click.echo(summary)


@main.command()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--image", "pictures", multiple=True, help="A picture, or the id of an image: find captions for it.")
@click.option("--images", is_flag=True, help="With --image: find images like it instead.")
@click.option("--index", "folder", type=click.Path(path_type=Path), help="Default: the one below indexes/.")
@click.option("--dataset", help="With --image: find images of this data set like it, by their regions alone, no run.")
@click.option("--count", type=click.IntRange(1, 100), default=10, show_default=True, help="Answers.")
@click.option("--page", type=click.Path(path_type=Path), help="Of one query. Default: searches/QUERY-HASH.html.")
def search(
    texts: tuple[str, ...],
    pictures: tuple[str, ...],
    images: bool,
    folder: Path | None,
    dataset: str | None,
    count: int,
    page: Path | None,
) -> None:
    """Search an index with texts or pictures.

    Finds the images that each TEXT describes, and captions for pictures, or images like them. Every query gets a table
    here and a page of its own.
    """
    import shutil

    from eval.search.answer import table
    from pipeline.searching import Query, answers

    if not texts and not pictures:
        raise click.UsageError("give a TEXT or --image")
    if images and not pictures:
        raise click.UsageError("--images goes with --image")
    if dataset and (folder or texts):
        raise click.UsageError("--dataset goes with --image, and without --index")
    if page and len(texts) + len(pictures) > 1:
        raise click.UsageError("--page goes with one query: each of several has a page of its own")
    alike = "alike" if images or dataset else "captions"
    queries = [Query(text, "images") for text in texts] + [Query(picture, alike) for picture in pictures]
    params, device = read_params(), Machine.from_environment().torch_device()
    refused = []
    for found in answers(params, queries, folder=folder, dataset=dataset, count=count, page=page, device=device):
        if isinstance(found, InputError):
            refused.append(found)
            continue
        answer, written = found
        if len(queries) > 1:
            click.echo(f"\n{answer.query}")
        if answer.unknown:
            click.secho(f"unknown words: {', '.join(answer.unknown)}", fg="yellow", err=True)
        if not answer.fits:
            message = "nothing here fits well: captions score as much with pictures that they don't describe"
            click.secho(message, fg="yellow", err=True)
        click.echo(table(answer, shutil.get_terminal_size((100, 24)).columns))
        click.echo(f"\npage: {written.absolute()}")
    if refused:
        _end("\nerror: ".join(map(str, refused)))


@main.command()
@click.argument("indexes", nargs=-1, type=click.Path(path_type=Path), metavar="[INDEX]...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at. 0.0.0.0: the network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8017, show_default=True, help="0: any that is free.")
def serve(indexes: tuple[Path, ...], host: str, port: int) -> None:
    """Serve a page that searches each INDEX while one types.

    An INDEX is a folder, or the name of one below indexes/. Default: all that are there. Ctrl-C ends it.
    """
    from pipeline.serving.serve import run

    run(read_params(), indexes, host=host, port=port, device=Machine.from_environment().torch_device(), say=click.echo)


@main.command()
@click.argument("run")
@click.argument("image")
@click.option("--caption", type=int, help="Which of the image's captions, from 1. Default: all.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="A .html or .png file. Default: inspections/RUN-IMAGE.html."
)
def inspect(run: str, image: str, caption: int | None, out: Path | None) -> None:
    """Draw the regions that RUN matches with IMAGE's captions.

    Shows their concepts too. IMAGE is an id of the manifest of RUN's data set, in any split.
    """
    from eval.report.inspection import run as inspect_run

    params, machine = read_params(), Machine.from_environment()
    settings = params.run(run)
    dataset = settings.dataset
    out = out or places.INSPECTIONS / f"{run}-{image.replace('/', '-')}.html"
    found = inspect_run(
        name=run,
        image=image,
        caption=caption,
        manifest_dir=places.manifest(dataset),
        image_root=params.image_roots[dataset],
        **_features(settings),
        model=places.model(run),
        device=machine.torch_device(),
        out=out,
        pieces=settings.text.pieces,
    )
    click.echo(f"{found}\n\ndrawn: {out.absolute()}")


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--manifest", type=click.Path(path_type=Path), help="Folder or file. Default: manifest beside STORE.")
@click.option(
    "--limit", type=click.IntRange(0), default=100, show_default=True, help="Findings to print; all are counted."
)
def verify(store: Path, manifest: Path | None, limit: int) -> None:
    """Check all files of a STORE, or of a data set's folder.

    Looks at checksums, arrays, boxes, and every image of the manifest. STORE: regions, tokens, text_features, teachers
    or pack.
    """
    from extract.check.verify import run, stores_in

    unsound = 0
    for each in stores_in(store):
        found = run(store=each, manifest=manifest, limit=limit)
        click.echo(found.text())
        unsound += bool(found.total)
    sys.exit(bool(unsound))


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
@click.option("--croissant", is_flag=True, help="Print the Croissant metadata instead.")
@click.option("--licence", help="Licence of the pictures: write it into the store's card.")
@click.option("--cite", help="What to cite: write it into the store's card.")
def card(store: Path, croissant: bool, licence: str | None, cite: str | None) -> None:
    """Print and check the card of a STORE or of a data set's folder.

    STORE: regions, tokens, text_features, teachers or pack. Of a folder, licence and citation are written into the
    cards that have them: those of regions and pack.
    """
    from extract.cards.card import run, takes_licence
    from extract.check.verify import stores_in
    from manifests.files import json_text

    stores = stores_in(store)
    if croissant and len(stores) > 1:
        raise InputError("it holds several stores", where=store, fix=f"name one of them: {', '.join(map(str, stores))}")
    unsound = False
    for number, each in enumerate(stores):
        given = {"licence": licence, "cite": cite} if len(stores) == 1 or takes_licence(each) else {}
        found = run(each, **given)
        if number:
            click.echo()
        if croissant and not found.croissant:
            raise InputError("it has no Croissant metadata", where=each, fix="name regions, or the shards of pack")
        click.echo(json_text(found.croissant) if croissant else found.text, nl=False)
        for finding in found.findings:
            click.secho(finding, fg="red", err=True)
        unsound |= bool(found.findings)
    sys.exit(unsound)


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--iou", default=0.95, show_default=True, help="From here on two boxes match.")
@click.option("--matched", default=0.99, show_default=True, help="Least share of boxes that match.")
@click.option("--cosine", default=0.999, show_default=True, help="Least centred cosine of an image.")
@click.option("--max-abs", type=float, help="Largest difference of any number of a feature; any if left out.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all numbers there too.")
def compare(a: Path, b: Path, file: Path | None, **tolerances: float) -> None:
    """Compare two region stores: identical, equivalent, different.

    Each is the folder of a store (data/D/regions), of a split in it, or of a data set (data/D).
    """
    from extract.check.compare import Tolerances, run
    from manifests.files import write_json

    a, b = (each / "regions" if (each / "regions").is_dir() else each for each in (a, b))
    found = run(a=a, b=b, tolerances=Tolerances(**tolerances))
    if file:
        write_json(file, found.as_json())
    click.echo(found.text())
    sys.exit(found.verdict == "different")


@main.group("cache")
def cache_() -> None:
    """List, verify or prune the cache of results (SELFALIGN_CACHE)."""


@cache_.command("list")
def cache_list() -> None:
    """List results and trained runs, the least recently used first."""
    from pipeline.caching import listing

    click.echo(listing(Machine.from_environment()))


@cache_.command("verify")
def cache_verify() -> None:
    """Hash all that is kept, and name what is damaged."""
    from extract.engine.cache import damaged

    found = list(damaged(Machine.from_environment().cache))
    for path in found:
        click.echo(f"{path}: not as its sidecar says; it will be made again when it is needed")
    sys.exit(bool(found))


@cache_.command("prune")
@click.option(
    "--gb", type=click.FloatRange(0), help="Keep that many GB that nothing else holds. Default: SELFALIGN_CACHE_GB."
)
def cache_prune(gb: float | None) -> None:
    """Remove what was used least recently.

    As much goes as is beyond the bound; what is in use stays.
    """
    from extract.engine.cache import prune

    machine = Machine.from_environment()
    removed = prune(machine.cache, (machine.cache_gb if gb is None else gb) * 1e9)
    for entry in removed:
        click.echo(f"removed {entry.folder}")
    click.echo(f"{sum(entry.own for entry in removed) / 1e6:,.1f} MB freed")


@main.group(invoke_without_command=True)
@click.pass_context
def detectors(context: click.Context) -> None:
    """List the detectors that are known by name; fetch one, or show all that is known of it."""
    from pipeline.detectors import listing

    if context.invoked_subcommand is None:
        click.echo(listing())


@detectors.command("show")
@click.argument("name")
def detectors_show(name: str) -> None:
    """Show where a detector's weights are, what is published of them, and its settings."""
    from pipeline.detectors import described

    click.echo(described(name))


@detectors.command("fetch")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Keep a file of which nothing is published to hold it against.")
def detectors_fetch(name: str, yes: bool) -> None:
    """Fetch a detector's weights by NAME or address, check them, and print the lines for params.yaml.

    What breaks off is gone on with when the command is run again. Weights are kept in ~/.cache/selfalign/weights.
    """
    from extract.vision.fetching import Undecided
    from pipeline.detectors import fetch

    def confirm(question: str) -> bool:
        try:
            return yes or click.confirm(question)
        except click.Abort:
            fix = "run the same command again with --yes: nothing is fetched a second time"
            raise Undecided("nobody has answered whether to keep it", where=name, fix=fix) from None

    fetch(name, confirm, click.echo)


@main.command()
def migrate() -> None:
    """Bring a project of an older SelfAlign to today's form.

    Its data come along; nothing is extracted again. Afterwards `dvc repro` trains the runs.
    """
    from pipeline.migrating import run

    click.echo(run(Machine.from_environment()))


@main.command()
@click.option(
    "--days",
    type=click.FloatRange(0),
    default=0,
    show_default=True,
    help="Only what nothing was written to for so many days.",
)
@click.option("--yes", is_flag=True, help="Remove what is listed.")
def clean(days: float, yes: bool) -> None:
    """List unfinished work that stages left, or remove it (--yes).

    What is in use stays.
    """
    from pipeline.cleaning import run

    click.echo(run(Machine.from_environment().staging, days=days, remove=yes))


@main.command()
def doctor() -> None:
    """Check settings, versions and what is missing on this machine.

    Exits with 1 where something is missing or wrong, and says what to do.
    """
    machine = Machine.from_environment()
    from pipeline.doctor import examine

    found = examine(machine)
    click.echo(found.text())
    sys.exit(bool(found.wrong))


def _features(settings: "RunSettings") -> dict[str, Path | None]:
    """The stores that a run reads, by the names that stages take: text features are None where it reads words."""
    dataset, cached = settings.dataset, settings.text.reads == "text_features"
    return {
        "regions": places.regions(dataset),
        "tokens": places.tokens(dataset),
        "text_features": places.text_features(dataset) if cached else None,
    }


def _teachers(settings: "RunSettings") -> Path | None:
    """The teacher store that a run learns from, if it does."""
    return places.teachers(settings.dataset) if settings.labels == "teachers" else None


if __name__ == "__main__":
    main()
