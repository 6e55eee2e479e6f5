"""How is a fitted run saved and loaded?"""
