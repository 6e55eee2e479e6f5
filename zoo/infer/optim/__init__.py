"""Which optimizers does a fit use?"""
