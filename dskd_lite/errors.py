"""The one exception that means "the input is wrong", as opposed to "the program is wrong"."""

from __future__ import annotations


class InputError(ValueError):
    """A folder, file, option or checkpoint that cannot be used as given.

    The message is one line that says what was wrong, where, and what to do about it. The command
    line prints it without a traceback and exits with status 2.
    """
