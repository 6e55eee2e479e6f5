"""How far is the guide from the posterior?"""
