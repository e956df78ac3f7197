"""Lengths to groups: which texts run together. Pure; knows no tokens, no model and no session.

Padding is wasted work and, in attention, costly memory: texts are sorted by length and a group ends where its
shortest text would be padded by more than a share of its own length. Long texts are never padded at all, nor
is anything where a graph does not allow it.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.15  # padding tokens of a text as a share of its own tokens
UNPADDED_FROM_TOKENS = 512  # texts from this length on run only beside texts of equal length


def plan(lengths: Sequence[int], max_batch_tokens: int, *, may_pad: bool = True) -> list[list[int]]:
    """Group indices of `lengths`, longest first, every index once.

    rows x longest of a group stays within `max_batch_tokens`, unless one text alone exceeds it.
    Without `may_pad` only texts of equal length share a group.
    """
    unpadded_from = UNPADDED_FROM_TOKENS if may_pad else 0
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[groups[-1][0]] if groups else 0
        padded_fits = longest - lengths[index] <= MAX_PADDING * lengths[index] and longest < unpadded_from
        fits = groups and longest * (len(groups[-1]) + 1) <= max_batch_tokens
        if fits and (lengths[index] == longest or padded_fits):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
