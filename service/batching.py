"""Lengths to groups: which texts run together. Pure; knows no tokens, no model and no session.

Padding is wasted work and, in attention, costly memory: texts are sorted by length and a group ends where its
shortest text would be padded by more than a share of its own length. Long texts are never padded at all.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 0.15  # padding tokens of a text as a share of its own tokens
UNPADDED_FROM_TOKENS = 512  # texts from this length on run only beside texts of equal length


def plan(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Group indices of `lengths`, longest first, every index once.

    rows x longest of a group stays within `max_batch_tokens`, unless one text alone exceeds it.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if groups and _fits(lengths[groups[-1][0]], len(groups[-1]), lengths[index], max_batch_tokens):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _fits(longest: int, num_rows: int, length: int, max_batch_tokens: int) -> bool:
    if longest * (num_rows + 1) > max_batch_tokens:
        return False
    if longest >= UNPADDED_FROM_TOKENS:
        return length == longest
    return longest - length <= MAX_PADDING * length
