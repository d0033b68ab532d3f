"""The arms of the ablation: the recipe of 0.1.0, the strong one, and one change off that each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from wsi_meta.training.recipe import RECIPES, Augmentation, Recipe

__all__ = ["ARMS", "FIRST", "Arm", "find_arm"]

STRONG = RECIPES["strong"]


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    recipe: Recipe
    longer: int = 1
    """Factor on the number of epochs."""
    courses: int = 0
    """Further trainings, each from the first one's weights and half as long; the average of their weights is the model."""
    cross_fitted: float = 0.0
    """Share of the targets that trainings which did not see the patch give instead of its label."""

    def with_epochs(self, epochs: int, seed: int) -> Recipe:
        """Return the recipe of the first training."""
        return replace(self.recipe, epochs=epochs * self.longer, seed=seed)

    def course(self, number: int, epochs: int, seed: int) -> Recipe:
        """Return the recipe of a further training (from 1): an order of its own, steps a quarter as large."""
        recipe, order = self.recipe, 1000 * (seed + 1) + number
        lr, lr_loaded = recipe.lr / 4, recipe.lr_loaded / 4
        return replace(recipe, epochs=max(1, epochs // 2), seed=order, head_epochs=0, lr=lr, lr_loaded=lr_loaded)


FIRST = "0.1.0"
ARMS: dict[str, Arm] = {
    FIRST: Arm(RECIPES["light"]),
    "strong": Arm(STRONG),
    "frozen layers": Arm(replace(STRONG, freeze="layer1")),
    "light jitter": Arm(replace(STRONG, augmentation=Augmentation())),
    "zoom": Arm(replace(STRONG, augmentation=replace(STRONG.augmentation, zoom=0.12))),
    "no average": Arm(replace(STRONG, ema_epochs=0)),
    "no mosaics": Arm(replace(STRONG, mosaics=0)),
    "longer": Arm(STRONG, longer=2),
    "one picture": Arm(replace(STRONG, consistency=0.0)),
    "teacher": Arm(replace(STRONG, teacher=0.5)),
    "larger batch": Arm(replace(STRONG, batch_size=2 * STRONG.batch_size)),
    "averaged courses": Arm(STRONG, courses=3),
    "cross-fitted labels": Arm(STRONG, cross_fitted=0.5),
}
"""The arms after `strong` are that recipe with one change."""


def find_arm(name: str) -> Arm:
    """Return an arm by its name; ``teacher+averaged courses`` is the strong recipe with the changes of both.

    Raises
    ------
    KeyError
        when there is no arm of a name.
    """
    first, *others = name.split("+")
    arm = ARMS[first]
    for other in (ARMS[other] for other in others):
        changes = {field: value for field, value in vars(other.recipe).items() if value != getattr(STRONG, field)}
        more = {name: max(getattr(arm, name), getattr(other, name)) for name in ("longer", "courses", "cross_fitted")}
        arm = Arm(replace(arm.recipe, **changes), **more)
    return arm
