"""What the trainer needs to know of a model, and the models that are known here."""

from janus_train.recipes.recipe import ExpertMap, Recipe, RecipeMaker, Sharding, Start, StartOpener

__all__ = ["ExpertMap", "Recipe", "RecipeMaker", "Sharding", "Start", "StartOpener"]
