"""The former room of ``helpers.accuracy`` and ``helpers.colours``: import from those."""

from helpers.accuracy import CUES, TEST_SCENES, accuracy, measure  # noqa: F401
from helpers.colours import ColourHistogram, fit_colours  # noqa: F401
