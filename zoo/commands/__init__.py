"""The command ``zoo``: lists models, guides and data sets, fits them, and diagnoses and reports runs."""
