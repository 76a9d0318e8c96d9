"""What is refused, and in which words."""


class Refused(ValueError):
    """What was asked for cannot work; the message says what was given, what is allowed, what to do."""
