"""How far is q from the posterior?"""
