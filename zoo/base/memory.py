"""The number of rows or draws per chunk, which bounds the memory of a computation."""

NUMBERS = 2**22  # per array and chunk: 16 MB in float32; a decoder needs about ten such arrays at a time


def rows_at_once(numbers_per_row: int) -> int:
    """The number of rows per chunk, for arrays with ``numbers_per_row`` numbers per row; at least 1.

    >>> rows_at_once(2**20), rows_at_once(2**40)
    (4, 1)
    """
    return max(1, NUMBERS // max(1, numbers_per_row))
