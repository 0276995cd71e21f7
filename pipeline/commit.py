"""Which commit the code is at, for a report's provenance."""

import subprocess

CODE = ("manifests", "extract", "demo", "train", "eval", "pipeline", "params.yaml", "dvc.yaml")


def current_commit() -> str | None:
    """The commit's short name, with a remark where code or parameters have changed since; None outside of git."""
    name = _git("rev-parse", "--short=12", "HEAD")
    if not name:
        return None
    return f"{name}, changed since" if _git("status", "--porcelain", "--", *CODE) else name


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
