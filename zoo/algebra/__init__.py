"""What do linear-Gaussian models and mixtures compute in closed form, with and without missing entries?"""
