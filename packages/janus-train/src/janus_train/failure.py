"""What ends a command with exit code 2: something only the user can mend."""


class UserError(Exception):
    """The user's input is wrong. The message says what, where and how to fix it; no traceback is shown."""
