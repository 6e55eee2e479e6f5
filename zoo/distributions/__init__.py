"""Which distributions do models and guides need that Pyro does not have?"""
