"""Exceptions and warnings, which the engine creates."""

from __future__ import annotations


class ClipError(Exception):
    """What went wrong, and what to do about it.

    message: one line that says what was wrong with which value
    detail:  the figures, or None
    hint:    the remedy, or None
    kind:    "invalid input", "unsupported" or "limit exceeded" concern the image or text; "unknown model", "missing
             file" and "bad model" the model; the others are "out of memory", "disk full", "interrupted" and
             "internal"
    element: the index of the image or text in the list, or None
    """

    def __init__(
        self,
        message: str,
        detail: str | None = None,
        hint: str | None = None,
        kind: str = "internal",
        element: int | None = None,
    ) -> None:
        super().__init__(message, detail, hint, kind, element)
        self.message = message
        self.detail = detail
        self.hint = hint
        self.kind = kind
        self.element = element

    def __str__(self) -> str:
        what = self.message if self.element is None else f"element {self.element}: {self.message}"
        more = [("detail", self.detail), ("hint", self.hint)]
        return "\n".join([what, *(f"  {name}: {text}" for name, text in more if text)])


class ClipWarning(UserWarning):
    """A remark of the engine: a text was cut to the model's context, for example."""
