"""Finished shards in a folder: each is whole and has a marker beside it with its size, its sha256 and facts about it.

A shard is named by its content, JSON that describes the data to be in it. Many processes and machines may share a
folder.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from manifests.errors import InputError
from manifests.files import abandoned, atomic, fingerprint, json_text, sha256, temporary
from manifests.locks import sole_writer
from manifests.typed import Count, Digest, Written, read_checked

ABOUT = "about.json"  # of a folder: the origin of its shards


class Marker(Written):
    """The keys of every marker; a stage adds facts of its own. The fingerprint is that of all other keys."""

    sha256: Digest
    size: Count
    fingerprint: Digest | None = None


def read_marker(path: Path, kind: Any) -> dict[str, Any] | None:
    """A marker as it stands, if it is of that kind and undamaged."""
    try:
        found = read_checked(path, kind, fix="remove it")[1]
    except InputError:
        return None
    noted = found.pop("fingerprint", None)
    return found if noted in (None, fingerprint(found)) else None


class Finished:
    """The finished shards of one folder.

    Parameters
    ----------
    suffix : of a shard's name.
    marker : the type of the markers.
    sound : whether the shard in a file agrees with its marker, beside the sha256.
    """

    def __init__(
        self,
        folder: Path,
        suffix: str = ".h5",
        marker: type[Marker] = Marker,
        sound: Callable[[Path, dict[str, Any]], bool] = lambda *_: True,
    ):
        self.folder, self.suffix, self._marker, self._sound = Path(folder), suffix, marker, sound
        self._checked: dict[Path, dict[str, Any] | None] = {}

    def path(self, content: Any) -> Path:
        """Where the shard of a content lies once it is finished."""
        return self.folder / f"{fingerprint(content)[:32]}{self.suffix}"

    def finished(self, content: Any) -> dict[str, Any] | None:
        """The marker of the shard of a content, with its ``path``, if it is whole."""
        shard = self.path(content)
        done = self.whole(shard)
        return None if done is None else done | {"path": str(shard)}

    def whole(self, shard: Path) -> dict[str, Any] | None:
        """The marker of a shard that is as it says; a shard is hashed once."""
        if shard not in self._checked:
            done = read_marker(shard.with_suffix(".json"), self._marker)
            if done is None or not shard.is_file():
                return None
            self._checked[shard] = done if done["sha256"] == sha256(shard) and self._sound(shard, done) else None
        return self._checked[shard]

    def draft(self, content: Any) -> Path:
        """Where this process is to write the shard of a content, for `publish`."""
        return temporary(self.path(content))

    def publish(self, draft: Path, content: Any, facts: Mapping[str, Any], digest: str | None = None) -> dict[str, Any]:
        """Make a draft the shard of its content; its marker, with its ``path``. Where another process was first, it is
        that one's. `digest` is the draft's sha256, where it is known."""
        shard = self.path(content)
        done = {"sha256": digest or sha256(draft), "size": draft.stat().st_size, **facts}
        draft.chmod(0o444)
        with sole_writer(shard, "shard"):
            self._checked.pop(shard, None)
            first = self.finished(content)
            if first is not None:
                draft.unlink()
                return first
            # A damaged shard goes first: no marker ever stands beside another one's shard.
            shard.with_suffix(".json").unlink(missing_ok=True)
            os.replace(draft, shard)
            with atomic(shard.with_suffix(".json"), make_folder=False) as marker:
                marker.write_text(json_text(done | {"fingerprint": fingerprint(done)}), encoding="utf-8")
            self._checked[shard] = done
        return done | {"path": str(shard)}

    def prepare(self) -> None:
        """Make the folder, and remove killed processes' files from it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left_behind in abandoned(self.folder):
            left_behind.unlink(missing_ok=True)


class Staging(Finished):
    """The finished shards of one store in the making, in a folder that its installation removes.

    Parameters
    ----------
    root : the machine's staging folder.
    key : JSON that names everything on which the bytes depend: another key is another folder.
    """

    def __init__(self, root: Path, key: Any, suffix: str = ".h5"):
        super().__init__(Path(root) / fingerprint(key)[:32], suffix)

    def discard(self) -> None:
        """Remove all that is staged under this key."""
        shutil.rmtree(self.folder, ignore_errors=True)
