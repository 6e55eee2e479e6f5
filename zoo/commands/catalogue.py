"""What ``zoo list`` shows, written down so that it need not load torch; the tests compare it with the package."""

GUIDES = ("MeanField", "FullRank", "Amortized", "SemiAmortized", "Flow", "Potential", "Exact")
MODELS = ("PPCA", "FactorAnalysis", "GMM", "VAE", "BayesianPCA", "BayesianFactorAnalysis", "BayesianGMM")
DATA = ("iris", "wine", "digits", "breast_cancer", "faithful", "holzinger", "mnist", "mnist-test")
REFUSED = {  # by model and guide: the latent site that the guide does not serve
    "GMM": dict.fromkeys(("FullRank", "SemiAmortized", "Flow", "Potential"), "component"),
    "VAE": {"Exact": "z"},
    "BayesianPCA": {"Exact": "z"},
    "BayesianFactorAnalysis": {"Exact": "z"},
    "BayesianGMM": dict.fromkeys(("FullRank", "Amortized", "SemiAmortized", "Flow", "Potential", "Exact"), "precision"),
}
