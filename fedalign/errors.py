"""Errors that a user can cause; the command line turns each into one line and exit code 2."""


class UserError(Exception):
    """A mistake in a configuration, a file or a command.

    The message is one line that names the key or the file, the offending value and the fix.
    It is shown without a traceback unless ``--debug`` is given.
    """


class DataError(UserError):
    """A mistake in somebody's data: the message may repeat what they say, so that it does not leave their site."""


class RunFailed(Exception):
    """A federation that could not go on: every client of a round failed, or nodes never came."""
