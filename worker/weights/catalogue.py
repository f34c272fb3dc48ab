"""The repositories that Letterpress knows by name, and the licence that each comes under. Values only.

Any other repository works by its name too; what this knows is what the hub does not say: the licence's
proper name, and what it means for whoever serves images with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Licence:
    """`name` as its author gives it; `meaning` is one sentence for a person who has to say yes or no."""

    name: str
    meaning: str


IDEOGRAM = Licence(
    "Ideogram Non-Commercial Model Agreement",
    "you may not use the weights commercially, and offering them to others as a hosted service counts as "
    "distributing them",
)


@dataclass(frozen=True, slots=True)
class Known:
    """One repository. `note` is for `letterpress weights list`."""

    repository: str
    note: str
    licence: Licence = IDEOGRAM


DEFAULT = "ideogram-ai/ideogram-4-nf4-diffusers"
KNOWN = (
    Known(DEFAULT, "nf4, diffusers' layout: the one to start with"),
    Known("ideogram-ai/ideogram-4-nf4", "nf4, the layout of the published guide"),
    Known("ideogram-ai/ideogram-4-fp8", "fp8, the maker's own layout"),
    Known("fal/ideogram-v4-fast", "distilled transformer, 20 steps, one branch"),
    Known("fal/ideogram-v4-instant", "distilled transformer, 8 steps, one branch"),
)


def licence_of(repository: str, hub_says: str | None = None) -> Licence:
    """The licence of a repository that the hub gates; `hub_says` is the name on its page, if any."""
    for known in KNOWN:
        if known.repository == repository:
            return known.licence
    return Licence(hub_says or "a licence of its own", "read it on the repository's page")
