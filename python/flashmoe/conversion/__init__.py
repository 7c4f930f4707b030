"""Make a packed directory of a checkpoint: one aligned record an expert, quantised if asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flashmoe.errors import ArgumentError, ConversionError

__all__ = ["convert"]

_MOST_WORKERS = 8


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    bits: int | None = None,
    group_size: int = 64,
    method: str = "rtn",
    bits_for: Mapping[str, int] | str = "",
    revision: str | None = None,
    progress: bool = True,
) -> Path:
    """Convert a checkpoint into a packed directory.

    Without ``bits`` every number is kept as it is (MLX's quantised ones too), except that FP8
    becomes bf16. With ``bits``, matrices stored as bf16, f16, f32 or FP8 are quantised exactly as
    ``mlx_lm.convert`` does; the router and the shared expert's score take 8 bits, norms and the
    other small tensors are kept, as are matrices whose rows ``group_size`` does not divide.

    A run that was cut off, however roughly, is continued by the same call and ends with the same
    bytes. The source is only read. Until all is done, the directory is no model.

    Args:
        src: A checkpoint directory, or a repository of the Hugging Face hub, whose shards are
            fetched one at a time and dropped when packed.
        dst: The directory to make; new, empty, or of an unfinished conversion.
        bits: 2, 3, 4, 5, 6 or 8; None keeps the source's formats.
        group_size: 32, 64 or 128 numbers share a scale.
        method: ``"rtn"`` rounds to the nearest code between the ends of each group, bit for bit as
            MLX does; ``"search"`` chooses scale, bias and codes of each group for the least squared
            error, in the same format and size: much better at 2 and 3 bits, hardly at 4.
        bits_for: Other bits for some matrices, by role, such as ``{"resident": 4}`` or, as a
            text, ``"resident=4+down=3"``. Roles are ``resident``, what stays in memory, and its
            parts ``embedding``, ``lm_head``, ``attention``, ``shared_expert`` and ``dense``;
            ``experts``, and their parts ``gate``, ``up`` and ``down``. The narrower role counts.
        revision: Branch, tag or commit of the repository.
        progress: Whether to show a bar on stderr.

    Returns:
        The packed directory.

    Raises:
        ConversionError: No room on the disk, a directory in other use or finished already, or a
            source that is quantised already when ``bits`` is given.
        LockedError: Another process is converting into ``dst``.
        NumericalError: NaN or infinity in the source, by the tensor's name.
        ModelFormatError: The source is damaged, or of an unsupported kind.
        ReadError: The source cannot be read or fetched whole; the same call goes on from there.
    """
    from flashmoe.checkpoint import open_checkpoint
    from flashmoe.conversion.method import METHODS, nearest, search
    from flashmoe.conversion.plan import Formats
    from flashmoe.conversion.roles import read_bits_for
    from flashmoe.conversion.run import Conversion, Options
    from flashmoe.conversion.sources import HubSource, LocalSource, Source
    from flashmoe.conversion.write import Fs
    from flashmoe.hub import RemoteCheckpoint, is_local

    formats = Formats(bits, group_size, read_bits_for(bits_for))
    if method not in METHODS:
        raise ArgumentError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    quantiser = search if method == "search" else nearest
    directory = Path(dst)
    source: Source
    if is_local(src):
        _refuse_overlap(Path(src), directory)
        source = LocalSource(open_checkpoint(Path(src)))
    else:
        pinned = revision or _begun_revision(directory, str(src))
        source = HubSource(RemoteCheckpoint(str(src), pinned, progress=progress), directory)
    try:
        workers = min(os.cpu_count() or 1, _MOST_WORKERS)
        options = Options(formats, progress, workers, quantiser, {"method": method})
        Conversion(source, directory, options, Fs()).run()
    finally:
        source.close()
    return directory


def _refuse_overlap(src: Path, dst: Path) -> None:
    src, dst = src.resolve(), dst.resolve()
    if src == dst or src in dst.parents or dst in src.parents:
        raise ConversionError(
            f"{dst} and {src} lie inside each other; the source is never written to, "
            "so name a directory beside it"
        )


def _begun_revision(directory: Path, repo_id: str) -> str | None:
    """The commit that an unfinished conversion of the same repository is of."""
    from flashmoe.conversion.journal import JOURNAL_NAME, read_journal

    lines, _ = read_journal(directory / JOURNAL_NAME)
    if lines and lines[0].get("source") == repo_id:
        commit = lines[0].get("revision")
        return str(commit) if commit else None
    return None
