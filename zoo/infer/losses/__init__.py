"""Which losses does a fit minimise?"""
