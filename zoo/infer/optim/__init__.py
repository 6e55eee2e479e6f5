"""Which optimizers and schedules does a fit use, and when has a loss settled?"""
