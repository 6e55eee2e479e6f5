"""How many rows or draws go into one chunk, so that memory stays bounded whatever the data."""

NUMBERS = 2**22  # per array and chunk: 16 MB in float32; a decoder holds some ten such arrays at a time


def rows_at_once(numbers_per_row: int) -> int:
    """The number of rows in a chunk whose arrays hold ``numbers_per_row`` numbers for each of them; at least 1.

    >>> rows_at_once(2**20), rows_at_once(2**40)
    (4, 1)
    """
    return max(1, NUMBERS // max(1, numbers_per_row))
