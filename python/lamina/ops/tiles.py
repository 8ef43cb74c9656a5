"""Cuts of packed weights: where a range of features may begin and end without unpacking."""

from __future__ import annotations

Range = tuple[int, int]  # begin and end


def is_at_tiles(cut: Range, extent: int, tile: int) -> bool:
    """Whether a range within (0, extent) begins at a multiple of `tile`, and ends at one or at `extent`."""
    begin, end = cut
    return 0 <= begin <= end <= extent and begin % tile == 0 and (end % tile == 0 or end == extent)


def tiles_of(
    kind: str, n: Range, k: Range, extents: Range, tile: Range, step_k: int | None = None
) -> tuple[slice, slice]:
    """The tiles of rows n and of features k, in a weight of `extents` [n, k] and tiles of `tile` [n, k].

    step_k   a multiple of the tile to which the range of k is held instead
    Raises   ValueError for a range that does not begin and end as is_at_tiles says
    """
    steps = tile[0], step_k or tile[1]
    for name, cut, extent, step in zip("nk", (n, k), extents, steps, strict=True):
        if not is_at_tiles(cut, extent, step):
            raise ValueError(
                f"lamina: {kind}.shard: {name} = {cut}; must be within (0, {extent}), begin at a multiple of "
                f"{step}, and end at one or at {extent}"
            )
    return slice(n[0] // tile[0], -(-n[1] // tile[0])), slice(k[0] // tile[1], -(-k[1] // tile[1]))
