"""What is learnt: which field is predicted from which, and what the classes are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Classification, or whatever the loop makes of it.

    Attributes:
        input, target: names of fields.
        classes: names by number; empty where they have none.
        num_classes: None where the target has no classes, or nobody knows how many.
    """

    input: str = "image"
    target: str = "label"
    classes: tuple[str, ...] = ()
    num_classes: int | None = None

    def class_name(self, number: int) -> str:
        """Its name, or the number where it has none."""
        return self.classes[number] if number < len(self.classes) else str(number)
