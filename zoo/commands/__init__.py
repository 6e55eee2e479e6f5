"""The command ``zoo``: which models, guides and data sets are there, and what does a fit of them give?"""
