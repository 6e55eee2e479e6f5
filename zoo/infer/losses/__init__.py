"""Which losses can a fit minimise?"""
