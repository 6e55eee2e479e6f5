"""The words of a page, for readers who have not met them."""

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "nat",
        "the unit of log probabilities to the base e; 1 nat is 1.44 bits. A row whose log probability is higher by 1 "
        "nat is 2.7 times as probable",
    ),
    (
        "log p(x)",
        "the log likelihood of a row under the model, with its latent variables integrated out; also called the "
        "log marginal likelihood or, with priors on everything, the log evidence",
    ),
    ("guide, q", "the approximation of the posterior p(z | x): which values of the latent variables a row suggests"),
    ("ELBO", "the lower bound on log p(x) that training raises; equal to it if q is the posterior"),
    ("gap, KL(q || p)", "log p(x) minus the ELBO: the Kullback-Leibler divergence of q from the posterior, at least 0"),
    (
        "k-hat",
        "the tail index of the importance weights p(x, z) / q(z), per row. Below 0.7 the guide can be corrected by "
        "weighting its draws; above, it misses parts of the posterior",
    ),
    (
        "replicated data",
        "tables of the same size drawn from the fitted model; what the data have and they have not, the "
        "model does not describe",
    ),
    (
        "unit, factor",
        "one of the latent variables of a row; it has collapsed if q ignores the row and repeats the prior",
    ),
    ("floor", "the least variance that a decoder may give to an entry, without which the likelihood has no bound"),
)
