"""What Hydra composes: recipes and the groups that they choose from."""
