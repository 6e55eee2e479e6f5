r"""Likelihoods of a decoder: what its outputs say about the columns, p(x | z).

Each is a small module with

- ``locations`` and ``noise``: how many numbers of either sort it reads from the decoder;
- ``place(x)``: takes means and units of the data (n, d) into its buffers, so that locations of 0 give the column means;
- ``check(x, columns=None)``: raises where ``x`` holds a value outside the support (``columns``: their numbers);
- ``forward(location, noise)``: the distribution with event (d,) for numbers (..., locations) and (..., noise).

NaN is a missing entry to ``place`` and ``check``. Those whose density is unbounded take a floor on the variance, show
it as the attribute ``floor``, and tell by ``at_floor(noise)`` how much of the noise lies there. Another likelihood is a
class with these methods and its name in ``zoo.likelihoods.kinds.LIKELIHOODS``.
"""
