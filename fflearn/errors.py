"""Every exception that fflearn raises on purpose, and its warning.

All derive from `FFLearnError`; each also derives from the built-in exception a caller would
expect, so that ``except ValueError`` keeps working.  The command line turns each into one line
and exit code 2.
"""


class FFLearnError(Exception):
    """Base of all errors raised on purpose."""


class SpecError(FFLearnError, ValueError):
    """A network, rule, option or experiment that cannot be understood."""


class ShapeError(FFLearnError, ValueError):
    """Arrays or layers whose shapes do not fit together."""


class DataError(FFLearnError, ValueError):
    """Data that cannot be learned from, or a file that is not what it should be."""


class LocalityError(FFLearnError, RuntimeError):
    """A rule used a channel, or weights, that it did not declare."""


class RecordError(FFLearnError, TypeError):
    """A step that a tape could not repeat: it branches on a value, or depends on hidden state."""


class DivergenceError(FFLearnError, ArithmeticError):
    """Training produced a number that is not finite.

    Attributes
    ----------
    layer : str
        Name of the first layer with a non-finite array, or "loss".
    step : int
        The step that produced it; the state was put back to before this step.
    """

    def __init__(self, message: str, layer: str = "", step: int = -1):
        super().__init__(message)
        self.layer, self.step = layer, step


class CheckpointError(FFLearnError, ValueError):
    """A checkpoint that is missing, damaged, or of another network."""


class BackendUnavailable(FFLearnError, RuntimeError):
    """A compute backend whose hardware or packages are missing."""


class SettingsWarning(UserWarning):
    """Settings that run, but not as the rule's author meant."""


class MissingExtra(FFLearnError, ImportError):
    """An optional package is not installed; the message names the extra to install."""

    @classmethod
    def of(cls, package: str, extra: str, what: str) -> "MissingExtra":
        """The error for ``what`` needing ``package`` out of ``fflearn[extra]``."""
        return cls(f'{what} needs {package}. Type: pip install "fflearn[{extra}]"')
