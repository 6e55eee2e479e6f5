r"""Likelihoods p(x | z) of the columns, as functions of a decoder's outputs.

Each is a small module, described by :class:`zoo.likelihoods.shared.Likelihood`:

- ``locations`` and ``noise``: the numbers of location and noise parameters it takes from the decoder;
- ``place(x)``: sets its buffers to means and units of the data (n, d), so that locations of 0 give the column means;
- ``check(x, columns=None)``: raises if ``x`` has a value outside the support (``columns``: the columns' numbers);
- ``forward(location, noise)``: the distribution with event (d,) for parameters (..., locations) and (..., noise).

``place`` and ``check`` treat NaN as a missing entry. A likelihood with unbounded density has a floor on the variance,
in the attribute ``floor``, and a method ``at_floor(noise)`` that returns the share of variances at the floor. A new
likelihood is a class with these methods, registered by name in ``zoo.likelihoods.kinds.LIKELIHOODS``.
"""
