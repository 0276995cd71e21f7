"""`selfalign serve`: opens indexes and serves their search page until it is interrupted."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from manifests.errors import InputError
from pipeline.params import Params
from pipeline.searching import all_indexes, index_folder, region_settings, searcher
from pipeline.serving.engine import ServedIndex


def run(
    params: Params, indexes: Sequence[Path], *, host: str, port: int, device: str, say: Callable[[str], object]
) -> None:
    """Serve `indexes`, or all that there are, until Ctrl-C.

    Parameters
    ----------
    host, port : where to listen; port 0 is any that is free.
    say : prints a line for whoever started it.

    Raises
    ------
    InputError : an index that isn't there or isn't current, an address that is in use, the extra isn't installed.
    """
    try:
        from pipeline.serving import app
    except ImportError as error:
        fix = '`pip install "selfalign[serve]"`'
        raise InputError(f"{error.name} isn't installed", where="selfalign serve", fix=fix) from error
    listening = app.listen(host, port)  # before the indexes, which take longer to open
    with listening:
        loopback = app.is_loopback(host)
        served = open_indexes(params, indexes, device, tells_paths=loopback)
        for index in served:
            say(index.searcher.index.searched)
        if not loopback:
            say(f"warning: whoever reaches {host} can see these pictures and search in them")
        server = app.server(app.make_app(served, loopback=loopback))
        say(f"{app.address(listening)}  (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    say("stopped")


def open_indexes(
    params: Params, indexes: Sequence[Path], device: str, *, tells_paths: bool = False
) -> list[ServedIndex]:
    """The indexes in these folders, or of these names below `indexes/`, ready to answer; all that there are by default.
    tells_paths : as of `ServedIndex`.

    Raises `InputError` that names every one that can't be opened.
    """
    folders = [index_folder(index) for index in indexes] or all_indexes()
    names = [folder.resolve().name for folder in folders]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        fix = "serve them one after the other, or rename a folder"
        raise InputError(f"two indexes have the name {', '.join(twice)}", where="INDEX", fix=fix)
    served, refused = [], []
    for name, folder in zip(names, folders, strict=True):
        try:
            opened = searcher(params, folder, device)
            dataset = opened.source.dataset
            takes = region_settings(params, dataset) is not None
            root = params.image_root(dataset)
            index = ServedIndex(name, opened, root, takes_pictures=takes, tells_paths=tells_paths)
            index.warm()
            served.append(index)
        except InputError as error:
            refused.append(error)
    if len(refused) == 1:
        raise refused[0]
    if refused:
        reason = " | ".join(f"{error.where}: {error.what}. Fix: {error.fix}" for error in refused)
        raise InputError(reason, where=f"{len(refused)} indexes", fix="mend each, or leave it out")
    return served
