"""What can go wrong, by kind. Every message says what arrived, what was expected and what to try."""


class ShotnoiseError(Exception):
    """The root of every error that shotnoise raises on purpose."""


class InputError(ShotnoiseError, ValueError):
    """An argument, option or configuration is not what the function takes."""


class DataError(ShotnoiseError):
    """Data that cannot be used: a missing, truncated or altered file, or values out of range."""


class PerSampleGradientError(ShotnoiseError):
    """This model has no well-defined gradient per sample (batch statistics, randomness in the forward pass)."""


class NonFiniteError(ShotnoiseError, ArithmeticError):
    """A loss or a gradient is NaN or infinite; the message names the sample and the layer."""
